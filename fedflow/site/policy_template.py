"""The commented policy file a new site starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedflow.errors import Misuse
from fedflow.settings_file import toml_string

if TYPE_CHECKING:
    from fedflow.learning.plan import Plan

_TEMPLATE = """\
# What this site takes part in. Everything not allowed here is denied.
# Whoever can change this file decides what the data are used for: keep it yours.

[trust]
# The federation's authority. Compare its fingerprint by phone before you trust it.
authority = {authority}
# Coordinators whose round orders are obeyed. They never see more than sums.
coordinators = {coordinators}

[limits]
# Workloads are local code, found by name. Nothing is ever downloaded and run.
workloads = [{workloads}]
# Who may add the noise that protects your data, and whom you trust with it:
#   "local"   this site adds all of it itself. Trusts nobody; costs the most accuracy.
#   "summed"  every site adds a share to one sum, for record or person. Trusts that no more sites
#             work with the server than the plan assumes, and that the others add their share.
#   "site"    the same, and what is protected is this site's whole update at once. Trusts the same,
#             and needs hundreds of sites.
mechanisms = [{mechanisms}]
# Whether the clipping norm of "site" may follow the sizes of updates, found out with noise.
adaptive_clipping = {adaptive_clipping}
# How keys are agreed. "x25519-mlkem768" also withstands quantum computers: leave out "x25519" if
# what you send today must stay secret from those of later.
suites = [{suites}]
# Fewest sites in a sum this site helps to open, and how many of them a plan must
# assume to work with the server. Their difference is the number of honest sites
# your update hides among.
minimum_cohort = {minimum_cohort}
colluders = {colluders}
# Largest L2 norm of what one unit contributes: a record, a person, or the site.
clipping_norm_max = {clipping_norm_max}
# Least noise, as a multiple of the clipping norm. A site's whole update has a bound of its own:
# no sampling helps it, so what is plenty for one of many sampled steps is little there.
noise_multiplier_min = {noise_multiplier_min}
site_noise_multiplier_min = {site_noise_multiplier_min}
# Highest probability that a unit is used in a step.
sample_rate_max = {sample_rate_max}
# Least noise of an evaluation, in units.
evaluation_noise_multiplier_min = {evaluation_noise_multiplier_min}
# What a job may cost this machine: gradient steps per round, rounds, units worked on at once
# (memory), parameters of the model (memory, disk and traffic), and seconds that one order may take
# from its start to its last answer.
local_steps_max = {local_steps_max}
rounds_max = {rounds_max}
batch_max = {batch_max}
parameters_max = {parameters_max}
order_seconds_max = {order_seconds_max}
# When an order may start, for example ["Mon-Fri 20:00-06:00", "Sat-Sun 00:00-24:00"]; empty is
# always. Days are those a window starts on. An order that started inside is carried out, at most
# order_seconds_max longer. Others are told only when the next window opens.
windows = []
window_zone = "UTC"

{datasets}"""

_DATASET = """\
[datasets.{dataset}]
# Relative to the folder of this file.
path = {path}
workload = {workload}
# The privacy budget of one unit, for good, over all jobs. Once the ledger has
# opened an account with it, a change here is refused.
epsilon = {epsilon}
delta = {delta}
# What is protected as a whole: "record" (one row), "person" (all rows of one) or "site" (all data
# here). Only plans for the same unit may use the data.
unit = {unit}
# "adaptive": plans may react to results, each release is paid when it is made. "fixed-plan": each
# plan is paid whole before its first release, which buys more rounds, and nothing is given back
# when it ends early.
accounting = "adaptive"
# How many further attempts at a round such a plan pays for, beyond its own rounds.
spare_rounds = 2
# This site's weight, over 0 and at most 1, in plans that weigh sites by what they declare.
# You declare it and it counts as public: choose it from what may be known. The true number
# of examples is private and never becomes a weight, because the sum of such weights is
# opened in every round: a release that no privacy budget pays for.
weight = 1.0
"""

_NO_DATASET = """\
# One section per data set this site lends to a workload, for example:
#
"""


def template(
    *,
    authority: str = "",
    coordinators: Sequence[str] = (),
    workload: str | None = None,
    dataset: str | None = None,
    path: str = "data.csv",
    epsilon: float = 1.0,
    delta: float = 1e-5,
    unit: str = "person",
    plan: Plan | None = None,
) -> str:
    """The TOML text of a policy. Keys are 64 hex digits; ``dataset`` is lower-case and dashes.

    With a ``plan`` the limits and ``unit`` are exactly that plan's, so it and anything gentler is
    allowed; without, they are cautious defaults to edit. Without arguments it accepts nothing at
    all and shows a data set as a comment. ``dataset`` and ``workload`` come together.
    """
    if (workload is None) != (dataset is None):
        raise Misuse("a data set in a policy needs its workload, and a workload its data set")
    limits: dict[str, object] = {
        "mechanisms": '"local"',
        "adaptive_clipping": "false",
        "suites": '"x25519", "x25519-mlkem768"',
        "minimum_cohort": 4,
        "colluders": 1,
        "clipping_norm_max": 1.0,
        "noise_multiplier_min": 1.0,
        "site_noise_multiplier_min": 4.0,
        "sample_rate_max": 0.1,
        "local_steps_max": 20,
        "rounds_max": 50,
        "batch_max": 512,
        "parameters_max": 10_000_000,
        "order_seconds_max": 3600.0,
        "evaluation_noise_multiplier_min": 1.0,
    }
    if plan is not None:
        unit = plan.privacy.unit
        noise = "site_noise_multiplier_min" if unit == "site" else "noise_multiplier_min"
        limits |= {
            "mechanisms": toml_string(plan.privacy.mechanism),
            "adaptive_clipping": str(plan.privacy.clipping_quantile is not None).lower(),
            "suites": toml_string(plan.secure_aggregation.suite),
            "minimum_cohort": plan.cohort.minimum,
            "colluders": plan.cohort.colluders,
            "clipping_norm_max": plan.privacy.clipping_norm,
            noise: plan.privacy.noise_multiplier,
            "sample_rate_max": plan.privacy.sample_rate,
            "local_steps_max": plan.local_steps,
            "rounds_max": max(plan.plan.rounds, 1),
            "batch_max": plan.training.max_physical_batch,
            "order_seconds_max": plan.order_seconds,
            "evaluation_noise_multiplier_min": plan.evaluation.noise_multiplier,
        }
    section = _DATASET.format(
        dataset=dataset or "my-data",
        path=toml_string(path),
        workload=toml_string(workload or "randhie"),
        epsilon=repr(float(epsilon)),
        delta=repr(float(delta)),
        unit=toml_string(unit),
    )
    if dataset is None:
        section = _NO_DATASET + "".join(f"# {line}\n" for line in section.splitlines())
    return _TEMPLATE.format(
        authority=toml_string(authority),
        coordinators="[" + ", ".join(toml_string(key) for key in coordinators) + "]",
        workloads="" if workload is None else toml_string(workload),
        datasets=section,
        **limits,
    )
