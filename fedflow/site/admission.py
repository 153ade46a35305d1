"""May this site take part? Two gates: the manifest once per job, the order before every round.

Everything is denied unless a rule below passes; each rule that fails raises with its own reason.
Nothing here spends budget or answers a peer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from fedflow.crypto.identity import PublicKey
from fedflow.errors import Misuse, Refusal, Violation
from fedflow.federation.members import check_listed
from fedflow.learning.groups import check_asked
from fedflow.learning.plan import Plan
from fedflow.privacy.events import ReleaseEvent
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import evaluation_event, partition, training_event
from fedflow.site.config import SiteFolder
from fedflow.site.policy import check_plan
from fedflow.site.windows import ALWAYS, Schedule
from fedflow.wire.messages import Kind, Manifest, Order
from fedflow.wire.sealed import peek, unseal

#: How far the clocks of coordinator and site may differ (seconds).
CLOCK_SLACK = 120.0


@dataclass(frozen=True)
class Admitted:
    """A job this site agreed to: its public weight in the mean, and when its orders may start."""

    manifest: Manifest
    digest: bytes
    plan: Plan
    index: int
    dataset: str
    coordinator: PublicKey
    roster: dict[int, PublicKey]
    weight: float = 1.0
    schedule: Schedule = ALWAYS

    @property
    def id(self) -> str:
        """The job's id."""
        return self.manifest.job

    def account(self, kind: Kind) -> str:
        """The ledger account that pays for a kind of round: see :func:`partition`."""
        return f"{self.dataset}/{partition(self.plan, kind.word)}"

    def event(self, kind: Kind) -> ReleaseEvent:
        """What one round of this kind releases, for the ledger."""
        return training_event(self.plan) if kind is Kind.TRAIN else evaluation_event(self.plan)

    def dimension(self, kind: Kind) -> int:
        """Length of the summed vector."""
        return self.plan.vector_length(kind, self.manifest.dimension)


def admit_manifest(site: SiteFolder, data: bytes, job: str, digest: bytes | None) -> Admitted:
    """The job described by a sealed manifest, if this site's policy allows it.

    ``digest`` is the manifest hash the session was opened for (None: any the authority signed).
    Raises Violation for bytes that are not what they claim, Refusal for what policy forbids.
    """
    policy = site.policy
    # (0) the authority this site pinned signed exactly these bytes
    if not policy.trust.authority:
        raise Refusal("unknown-authority", "the site's policy names no authority yet")
    manifest = unseal(Manifest, data, PublicKey.from_hex(policy.trust.authority))
    # (1) it is the manifest the session is about
    if manifest.job != job or (digest is not None and manifest.digest() != digest):
        raise Refusal("manifest-mismatch", "the manifest in the exchange is not the one announced")
    # (2) the coordinator is one the operator allowed
    if manifest.coordinator.hex() not in policy.trust.coordinators:
        raise Refusal("unknown-coordinator", "the job's coordinator is not in the site's policy")
    # (3) this site's key is in the roster
    mine = [e.index for e in manifest.roster if e.public_key == site.identity.public.raw]
    if not mine:
        raise Refusal("not-in-roster", f"site {site.settings.label} is not in the job's roster")
    # (3b) no key in it was revoked before it was made, as far as this site has heard
    members = site.members()
    roster = None if members is None else members.newest()
    if roster is not None:
        check_listed(roster, manifest.coordinator, "the coordinator", manifest.created)
        for entry in manifest.roster:
            check_listed(roster, entry.public_key, f"site {entry.label}", manifest.created)
    # (4) now is within its time
    now = time.time()
    if not manifest.created - CLOCK_SLACK <= now <= manifest.not_after:
        raise Refusal("manifest-expired", "the job is not within its time window (check the clock)")
    # (5) manifest and plan say the same about the cohort
    plan = Plan.from_canonical(manifest.plan)
    if (manifest.colluders, manifest.minimum) != (plan.cohort.colluders, plan.cohort.minimum):
        raise Violation("bad-manifest", "manifest and plan disagree about the cohort")
    fixed = plan.secure_aggregation.value_range
    if fixed not in ("auto", manifest.value_range):
        raise Violation("bad-manifest", "manifest and plan disagree about the range of values")
    try:
        plan.coding(len(manifest.roster), manifest.value_range)  # Refusal when bits are too few
    except Misuse as error:
        raise Violation("bad-manifest", error.message) from None
    # (6) every number of the plan is within the policy, which names the data it may use
    dataset, terms = check_plan(policy, plan)
    most = policy.limits.parameters_max
    if manifest.dimension > most:
        size = f"the model has {manifest.dimension} parameters, at most {most} are allowed"
        raise Refusal("policy", f"this site's policy does not allow the job: {size}")
    return Admitted(
        manifest=manifest,
        digest=manifest.digest(),
        plan=plan,
        index=mine[0],
        dataset=dataset,
        coordinator=PublicKey(manifest.coordinator),
        roster={e.index: PublicKey(e.public_key) for e in manifest.roster},
        weight=terms.weight_for(plan),
        schedule=policy.limits.schedule,
    )


def admit_order(admitted: Admitted, ledger: Ledger, data: bytes, sequence: int) -> Order:
    """The order in ``data`` if it is in turn, in time, and affordable at its worst case."""
    # (0) signed by this job's coordinator, for this job and this place in the sequence
    order = unseal(Order, data, admitted.coordinator)
    if order.manifest != admitted.digest:
        raise Violation("foreign-order", "the order belongs to another job")
    if order.sequence != sequence:
        raise Refusal("replayed-order", f"order {order.sequence} was placed as order {sequence}")
    kind, plan = Kind(order.kind), admitted.plan
    # (1) within the job
    if order.round > (last := plan.last_round(kind)):
        raise Refusal("policy", f"round {order.round} is beyond the plan's {last}")
    if order.dimension != admitted.dimension(kind):
        raise Violation("bad-order", "the order's vector length is not the plan's")
    check_asked(plan, order, admitted.roster)
    first = admitted.manifest.initial_model, admitted.manifest.value_range
    if (kind, order.round) == (Kind.TRAIN, 1) and (order.model, order.value_range) != first:
        raise Violation("wrong-model", "round 1 must train the first model that was signed")
    # (2) in time, and not open for longer than the plan allows
    left = order.deadline / 1000 - time.time()
    if left <= 0:
        raise Refusal("order-expired", "the order's deadline has passed (check the clock)")
    if left > plan.order_seconds + CLOCK_SLACK:
        late = "the order's deadline is later than the plan allows (check the clock)"
        raise Refusal("policy", late)
    # (3) at a time the operator gave; what has started may end later, within the deadline of (2)
    _check_window(admitted.schedule, datetime.now(UTC))
    # (4) the ledger can pay the worst case
    ledger.check(admitted.account(kind), admitted.event(kind), manifest=admitted.digest)
    return order


def _check_window(schedule: Schedule, now: datetime) -> None:
    """Refusal ``outside-window``: says when the next one opens, in UTC, and nothing else of them.

    The coordinator needs that one time to come back. Zone, days and ends stay with the operator.
    """
    if not schedule.is_open(now):
        opening = schedule.next_opening(now)
        when = f"{opening:%Y-%m-%d %H:%M} UTC" if opening else "in more than two weeks"
        raise Refusal("outside-window", f"outside this site's hours; it takes orders from {when}")


def peek_order(data: bytes) -> Order:
    """The order before verification, to read its deadline when choosing where to join."""
    return peek(Order, data)
