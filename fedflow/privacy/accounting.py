"""Two accountants and the filter that says yes or no.

* The **filter** (:class:`FixedOrderFilter`) decides. It fixes one Renyi order before any data are
  touched and adds up the Renyi divergence of every release at that order. Then even releases whose
  parameters depend on earlier answers are covered: Feldman and Zrnic, "Individual Privacy
  Accounting via a Renyi Filter" (NeurIPS 2021). Taking the best order afterwards would not be.
* :func:`epsilon_rdp` and :func:`epsilon_pld` describe. They compose a list of events as if it had
  been fixed in advance; privacy loss distributions are the tighter of the two. Stopping when such a
  figure reaches a bound is not a valid rule when parameters adapt, so nothing here does that.

Conversion from Renyi divergence rho at order a to epsilon, Balle et al., "Hypothesis Testing
Interpretations and Renyi Differential Privacy" (AISTATS 2020), Theorem 21:

    epsilon = rho + log((a - 1) / a) - log(delta * a) / (a - 1)

The GDP accountant is not offered: its central limit approximation understates epsilon.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedflow.errors import Misuse, Refusal
from fedflow.privacy.events import ReleaseEvent, merged

# dp-accounting is imported where it is used: with the parts of scipy it needs that takes a second,
# which a command that computes nothing should not cost.
if TYPE_CHECKING:
    import dp_accounting
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ORDERS: tuple[float, ...] = (
    *(round(1.5 + i / 10, 1) for i in range(95)),
    *(float(a) for a in range(11, 65)),
    80.0,
    96.0,
    128.0,
    192.0,
    256.0,
    512.0,
)
PLD_INTERVAL = 1e-3
RELATIONS = {
    "zero-out": "REPLACE_SPECIAL",
    "add-remove": "ADD_OR_REMOVE_ONE",
    "replace-one": "REPLACE_ONE",
}
"""What a neighbouring data set may be, and dp-accounting's name for it.

Ledgers charge zero-out; the others are for comparison.
"""
_FINE_BELOW = 0.5  #: epsilon under which losses are so small that a grid of 1e-4 is needed
_COARSE_STEPS = 500  #: sampled steps up to which a grid of 1e-3 is within 1e-3 of the truth
_LARGEST_LOSS = 30.0
MAX_SAMPLED_STEPS = 1 << 20  #: composing more takes minutes


def load_accountants() -> None:
    """Import what pricing needs, for a process that will be asked in the middle of a round."""
    import dp_accounting.pld.privacy_loss_distribution
    import dp_accounting.rdp  # noqa: F401


def rdp_at(event: ReleaseEvent, order: float) -> float:
    """Renyi divergence of ``event`` at ``order`` > 1, in nats. Infinite beyond what it supports.

    Sampled Gaussian: Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian
    Mechanism" (2019), Section 3.3, as implemented by dp-accounting.
    """
    return _rdp_of_step(event.sample_rate, event.noise_multiplier, order) * event.steps


@functools.lru_cache(maxsize=4096)
def _rdp_of_step(rate: float, noise: float, order: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    if not (math.isfinite(order) and order > 1.0):
        raise Misuse(f"Renyi order {order!r} is not a finite number above 1")
    accountant = RdpAccountant([order], _relation("zero-out"))
    accountant.compose(ReleaseEvent("poisson-gaussian", rate, noise, 1).to_dp_event())
    rho = float(accountant.rdp[0])
    # Rounding can leave a tiny negative value where the true one is positive: no price, no release.
    return rho if rho > 0.0 else math.inf


def replace_rdp_at(event: ReleaseEvent, order: float) -> float:
    """An upper bound on the Renyi divergence of ``event`` when one unit is replaced by another.

    Without sampling the sensitivity doubles, which is exact. With sampling: take one unit away, put
    the other in, and join the two steps by the weak triangle inequality with p = q = 2 (Mironov,
    "Renyi Differential Privacy", CSF 2017, Proposition 11):

        D_a(P|R) <= (a - 1/2) / (a - 1) * D_2a(P|Q) + D_(2a-1)(Q|R)

    dp-accounting 0.6.0 is no help here: its Renyi accountant takes no Poisson sampling with
    REPLACE_ONE, and prices a Gaussian without sampling as if the sensitivity did not double.
    """
    if event.sample_rate == 1.0:
        return 4.0 * rdp_at(event, order)
    away = (order - 0.5) / (order - 1.0) * rdp_at(event, 2.0 * order)
    return away + rdp_at(event, 2.0 * order - 1.0)


def conversion(order: float, delta: float) -> float:
    """What turning Renyi divergence at ``order`` into epsilon at ``delta`` adds."""
    if not 0.0 < delta < 1.0:
        raise Misuse(f"delta {delta!r} is not between 0 and 1")
    return math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)


def epsilon_rdp(events: Sequence[ReleaseEvent], delta: float, adjacency: str = "zero-out") -> float:
    """Epsilon of ``events`` if they had been fixed in advance, by Renyi accounting; 0 for none.

    ``adjacency`` is a key of :data:`RELATIONS`; for "replace-one" see :func:`replace_rdp_at`.
    """
    if not events:
        return 0.0
    joined = merged(list(events))
    price = replace_rdp_at if _known(adjacency) == "replace-one" else rdp_at

    def at(order: float) -> float:
        return math.fsum(price(event, order) for event in joined) + conversion(order, delta)

    return max(0.0, min(at(order) for order in ORDERS))


def epsilon_pld(events: Sequence[ReleaseEvent], delta: float, adjacency: str = "zero-out") -> float:
    """Epsilon of ``events`` if they had been fixed in advance, by privacy loss distributions.

    An upper bound: losses are rounded up to a grid, so fine that within 1e-3 of the exact figure is
    reached (see docs/privacy.md). 0 for no events. Independent of :func:`rdp_at`, so it also serves
    as the auditor's second opinion. Beyond epsilon 30 it is the Renyi figure: the grid grows with
    the loss, and so little is protected that it matters no more. So it is beyond a million sampled
    steps, where composing would take minutes.

    ``adjacency`` is a key of :data:`RELATIONS`. "add-remove" is the same pair of distributions as
    "zero-out", as sample rates and divisors are public. "replace-one" composes the pair
    q N(1, s^2) + (1 - q) N(0, s^2) against q N(-1, s^2) + (1 - q) N(0, s^2), which dominates every
    pair of clipped contributions: proof in docs/privacy.md, "Accounting".
    """
    replaces = _known(adjacency) == "replace-one"
    coarse = epsilon_rdp(events, delta)
    steps = sum(event.steps for event in events if event.sample_rate < 1.0)
    if coarse > (_LARGEST_LOSS / 2 if replaces else _LARGEST_LOSS) or steps > MAX_SAMPLED_STEPS:
        return epsilon_rdp(events, delta, adjacency)
    joined = tuple(sorted(merged(list(events)), key=ReleaseEvent.canonical))
    return _pld(joined, delta, replaces, _interval(steps, coarse))


def _interval(steps: int, coarse: float) -> float:
    """The grid for sampled steps: what it rounds away grows with them and with its own square."""
    halvings = max(0, math.ceil(math.log2(max(1, steps) / _COARSE_STEPS) / 2.0))
    fine = PLD_INTERVAL / 2.0 ** min(halvings, 6)
    return min(fine, PLD_INTERVAL / 8.0) if coarse < _FINE_BELOW else fine


def _known(adjacency: str) -> str:
    if adjacency not in RELATIONS:
        raise Misuse(f"adjacency {adjacency!r} is not one of {tuple(RELATIONS)}")
    return adjacency


def _relation(adjacency: str) -> dp_accounting.NeighboringRelation:
    import dp_accounting

    return dp_accounting.NeighboringRelation[RELATIONS[adjacency]]


@functools.lru_cache(maxsize=1024)
def _pld(events: tuple[ReleaseEvent, ...], delta: float, replaces: bool, interval: float) -> float:
    import dp_accounting
    from dp_accounting.pld.privacy_loss_distribution import identity

    if not events:
        return 0.0
    if all(event.sample_rate == 1.0 for event in events):
        # Gaussians compose to one Gaussian, whose epsilon is known: Balle and Wang (ICML 2018).
        sensitivity = 2.0 if replaces else 1.0
        precision = math.fsum(event.steps / event.noise_multiplier**2 for event in events)
        deviation = 1.0 / (sensitivity * math.sqrt(precision))
        return float(dp_accounting.get_epsilon_gaussian(deviation, delta))
    composed = identity(interval)
    for event in events:
        step = _pld_of_step(event.sample_rate, event.noise_multiplier, replaces, interval)
        composed = composed.compose(step.self_compose(event.steps))
    return float(composed.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=32)
def _pld_of_step(
    rate: float, noise: float, replaces: bool, interval: float
) -> PrivacyLossDistribution:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise,
        value_discretization_interval=interval,
        sampling_prob=rate,
        neighboring_relation=_relation("replace-one" if replaces else "zero-out"),
    )


def choose_order(least_noisy: ReleaseEvent, epsilon: float, delta: float) -> float:
    """The order at which a budget (epsilon, delta) admits the most events like ``least_noisy``.

    To be fixed before the first release, from public parameters only. The Renyi divergence of a
    sampled Gaussian leaps by orders of magnitude above some order (noise 1, rate 0.01, 1000 steps:
    0.9 at 8, 38 at 10); an event with less noise than the one given here may find itself beyond
    that cliff and be refused. Refusal ``bad-budget`` when not even one such event fits.
    """
    best, most = 0.0, 0.0
    for order in ORDERS:
        count = (epsilon - conversion(order, delta)) / rdp_at(least_noisy, order)
        if count > most:
            best, most = order, count
    if most < 1.0:
        raise Refusal(
            "bad-budget",
            f"a budget of epsilon {epsilon:g} at delta {delta:g} does not pay for a single release"
            f" with noise multiplier {least_noisy.noise_multiplier:g}, sample rate"
            f" {least_noisy.sample_rate:g} and {least_noisy.steps} steps",
        )
    return best


def best_order(event: ReleaseEvent, delta: float) -> float:
    """The order at which ``event`` converts to the smallest epsilon."""
    return min(ORDERS, key=lambda order: rdp_at(event, order) + conversion(order, delta))


@dataclass(frozen=True)
class FixedOrderFilter:
    """Admits releases while their summed Renyi divergence at ``order`` stays within capacity.

    The whole interaction is then (``epsilon``, ``delta``)-DP, whatever later releases depended on.
    Refusal ``bad-budget`` when ``epsilon`` does not even cover the conversion at this order.
    """

    epsilon_budget: float
    delta: float
    order: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.order) and self.order > 1.0):
            raise Misuse(f"Renyi order {self.order!r} is not a finite number above 1")
        if not (math.isfinite(self.epsilon_budget) and self.capacity > 0.0):
            raise Refusal(
                "bad-budget",
                f"epsilon {self.epsilon_budget:g} at delta {self.delta:g} leaves nothing to spend"
                f" at Renyi order {self.order:g}",
            )

    @property
    def capacity(self) -> float:
        """The Renyi divergence that may be spent in total at the order."""
        return self.epsilon_budget - conversion(self.order, self.delta)

    def admits(self, spent: float, rho: float) -> bool:
        """Whether a release of divergence ``rho`` still fits after ``spent``. NaN never fits."""
        return spent >= 0.0 and rho > 0.0 and math.fsum((spent, rho)) <= self.capacity

    def epsilon(self, spent: float) -> float:
        """The epsilon guaranteed so far for ``spent``; 0 when nothing was spent."""
        if spent == 0.0:
            return 0.0
        return max(0.0, spent + conversion(self.order, self.delta))
