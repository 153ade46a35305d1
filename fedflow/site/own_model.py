"""The model of a job as its own site may use it, there and nowhere else.

What a site computed of the job's history itself, with the layers and the update that it kept. And,
if its operator wants it, trained further on the site's own data: without clipping and noise, as it
is not released to anybody (fine-tuning after the last round: Wang et al., "Federated evaluation of
on-device personalization", 2019). With ``training.proximal`` it is held near the shared model.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import PublicKey
from fedflow.errors import InputError, Refusal
from fedflow.exchange import open_exchange
from fedflow.exchange.base import get_blob
from fedflow.exchange.layout import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, blob, manifest
from fedflow.learning.dpsgd import train_plain
from fedflow.learning.evaluation import exact_score
from fedflow.learning.first_model import decode_state
from fedflow.learning.model_file import Arrays, ModelSpec, flatten, unflatten
from fedflow.learning.plan import Plan
from fedflow.learning.preprocessing import prepared_data
from fedflow.learning.site_state import personal_model, read_kept, site_model
from fedflow.learning.workload import PersonData, Workload, find_workload
from fedflow.site.config import SiteFolder
from fedflow.site.kept import kept_bytes
from fedflow.site.remembered import Remembered
from fedflow.wire.messages import Manifest
from fedflow.wire.sealed import unseal


@dataclass(frozen=True)
class OwnModel:
    """A job's model at one site: with the site's ``layers`` of its own, and personalised.

    ``orders`` is how many of the job's orders led to it. The two are the same where the plan keeps
    nothing at sites.
    """

    plan: Plan
    workload: Workload
    orders: int
    shared: Arrays
    personal: Arrays

    def tuned(self, data: PersonData, times: int) -> Arrays:
        """The personalised model after ``times`` more local trainings of the plan, not private.

        ``data`` as the workload loads them. Refusal for a method without a gradient; Aborted when
        training diverges.
        """
        if self.plan.is_method:
            raise Refusal("not-trained", f"there is no local training in {self.plan.strategy.name}")
        ready, model = prepared_data(data, self.plan, self.workload), self.personal
        for _ in range(times):
            change = train_plain(self.workload, ready, model, self.plan, Csprng.from_os())
            model = unflatten(flatten(model) + change, ModelSpec.of(model))
        return model

    def score(self, data: PersonData, model: Arrays) -> float:
        """The plan's metric on the site's held-out persons, exact: not private."""
        return exact_score(self.workload, data.holdout, model, self.plan)


def own_model(site: SiteFolder, job: str) -> OwnModel:
    """The newest model of ``job`` whose history this site knows.

    It need not be that of the last round: the site may have left before. InputError for a job that
    is not in the exchange, OSError while that is down; Refusal ``unknown-authority``, and
    ``no-model`` when the site took part in nothing that came to an end.
    """
    if not site.policy.trust.authority:
        raise Refusal("unknown-authority", "the site's policy names no authority yet")
    exchange = open_exchange(site.exchange, site.identity)
    data = exchange.get(manifest(job), MAX_MANIFEST_BYTES)
    if data is None:
        raise InputError(f"there is no job {job!r} in the exchange", field="JOB")
    signed = unseal(Manifest, data, PublicKey.from_hex(site.policy.trust.authority))
    # What is remembered is bound to the manifest that this site admitted, whatever is there now.
    memory = Remembered.load(site.path / "history", job, signed.digest())
    newest = max(memory.states.values(), key=lambda state: state.sequence, default=None)
    if newest is None:
        raise Refusal("no-model", f"this site knows no round of {job} that came to an end")
    file = memory.model(newest.model)
    if file is None:
        file = get_blob(exchange, blob(job, newest.model), newest.model, MAX_MODEL_BYTES)
    if file is None:
        raise Refusal("no-model", f"the model of {job} is neither here nor in the exchange")
    plan = Plan.from_canonical(signed.plan)
    workload = find_workload(plan.plan.workload)
    state = decode_state(file, workload, plan)
    own = read_kept(kept_bytes(site.path, job), workload, plan)
    shared = site_model(workload, state, own, plan)
    return OwnModel(plan, workload, newest.sequence, shared, personal_model(shared, own, plan))
