"""What another policy would have done with requests on record, what that costs, and how often it is right.

record = recorded(success, cost, allowed, arm, outcome=outcome)
replay(record, build("utility", {"lambda": 0.2}, tier_cost)).expected_accuracy

How often it is right is told twice: by the success probabilities of the arms that it chooses, which are as good as the
probes are, and by outcomes where these can say (`off_policy`).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, PolicyError
from routing_policies.off_policy import Estimate, FromOutcomes, Z, estimate, from_outcomes

FEWEST_PAID = 30
"""So many answers of an arm tell how what it costs stands to what was expected."""


@dataclass(frozen=True)
class Recorded:
    """n requests and the decisions on them, among the k arms of one pool. `recorded` makes it."""

    success: FloatArray
    """Success probabilities, (n, k)."""
    cost: FloatArray
    """Expected USD of one answer, (n, k)."""
    allowed: BoolArray
    """Arms that could serve, (n, k)."""
    arm: IndexArray
    """Where it went, (n,)."""
    propensity: FloatArray
    """Probability, given the request, with which it went there, (n,)."""
    outcome: FloatArray
    """How right the answer was, 0 to 1, NaN where nobody said, (n,)."""
    paid_usd: FloatArray
    """What the answer cost, NaN where that is not known, (n,)."""
    probe_usd: FloatArray
    """What the probe model's prefill cost, (n,)."""
    fixed: BoolArray
    """Where no policy is asked, such as at a safe arm, (n,)."""
    left_out: int
    """Rows given that lack a success probability or expected cost of an arm that could serve."""

    @cached_property
    def able(self) -> IndexArray:
        """How many arms could serve each request, (n,)."""
        counts: IndexArray = self.allowed.sum(axis=1)
        return counts

    @cached_property
    def cost_ratio(self) -> FloatArray:
        """What each arm's answers cost, over what was expected of them, (k,); 1 where too few tell."""
        expected = _of(self.cost, self.arm)
        known = np.isfinite(self.paid_usd) & (expected > 0)
        arm, k = self.arm[known], self.success.shape[1]
        paid, thought = (np.bincount(arm, usd[known], minlength=k) for usd in (self.paid_usd, expected))
        enough = np.bincount(arm, minlength=k) >= FEWEST_PAID
        return np.divide(paid, thought, out=np.ones(k), where=enough)

    @cached_property
    def usd(self) -> FloatArray:
        """What each request cost, prefill included, (n,); where that is not known, what was expected x `cost_ratio`."""
        expected = _of(self.cost, self.arm) * self.cost_ratio[self.arm]
        return np.where(np.isfinite(self.paid_usd), self.paid_usd, expected) + self.probe_usd

    @cached_property
    def best(self) -> int:
        """The arm that would be right most often, it is expected, if it took all that it can serve; of equals the
        cheapest."""
        each = [_by_one_arm(self, arm) for arm in range(self.success.shape[1])]
        merits = [(float(_of(self.success, chosen).mean()), -float(_usd(self, chosen).mean())) for chosen in each]
        return max(range(len(each)), key=merits.__getitem__)

    @cached_property
    def best_usd(self) -> FloatArray:
        """What each request would cost with that arm alone, (n,)."""
        return _usd(self, _by_one_arm(self, self.best))


@dataclass(frozen=True)
class Replayed:
    """What a policy does with the requests. Means per request."""

    requests: int
    mix: tuple[float, ...]
    """Share of the requests that each arm gets, (k,)."""
    changed: float
    """Share of the requests that go elsewhere than they went."""
    cost_usd: float
    """The probe model's prefill included, where the policy reads probabilities. Of an answer that stays with its arm,
    what was paid; of any other, what was expected times the arm's `cost_ratio`."""
    expected_cost_usd: float
    """The same from the expected costs alone."""
    saving: Estimate | None
    """1 - `cost_usd` over that of what was done, request by request; None where that cost nothing."""
    saving_vs_best: Estimate | None
    """The same over that of the best arm alone (`Recorded.best`)."""
    expected_accuracy: Estimate
    """From success probabilities. The interval is over requests; how true the probabilities are it cannot tell."""
    from_outcomes: FromOutcomes


def recorded(
    success: FloatArray,
    cost: FloatArray,
    allowed: BoolArray,
    arm: IndexArray,
    propensity: FloatArray | None = None,
    outcome: FloatArray | None = None,
    paid_usd: FloatArray | None = None,
    probe_usd: FloatArray | None = None,
    fixed: BoolArray | None = None,
) -> Recorded:
    """The requests on record that can be replayed: all that is needed of the arms that could serve is known.

    Args: as the fields of `Recorded`; what is None is not known of any row (a propensity is 1, prefill costs nothing).

    Raises:
        PolicyError: shapes differ, or no row is left.
    """
    n = len(arm)
    if success.ndim != 2 or not success.shape == cost.shape == allowed.shape or len(success) != n:
        raise PolicyError(
            f"success {success.shape}, cost {cost.shape} and allowed {allowed.shape} must be the same (requests, arms) "
            f"matrix, with a row for each of the {n} arms chosen"
        )
    k = success.shape[1]
    sound = (arm >= 0) & (arm < k)
    # What answered could serve, whatever else is said.
    allowed = allowed.copy()
    allowed[np.flatnonzero(sound), arm[sound]] = True
    unknown = ~(np.isfinite(success) & np.isfinite(cost))
    rows = np.flatnonzero(sound & ~(unknown & allowed).any(axis=1))
    if not len(rows):
        raise PolicyError(
            f"none of the {n:,} decisions has success probabilities of all arms that could serve: a policy that does "
            "not read them (min_cost, random) records none"
        )

    def column(values: FloatArray | None, unsaid: float) -> FloatArray:
        return np.full(len(rows), unsaid) if values is None else values[rows]

    return Recorded(
        # `take` copies rows several times as fast as an index does.
        success=success.take(rows, axis=0),
        cost=cost.take(rows, axis=0),
        allowed=allowed.take(rows, axis=0),
        arm=arm[rows].astype(np.intp),
        propensity=column(propensity, 1.0),
        outcome=column(outcome, np.nan),
        paid_usd=column(paid_usd, np.nan),
        probe_usd=np.nan_to_num(column(probe_usd, 0.0)),
        fixed=np.zeros(len(rows), dtype=np.bool_) if fixed is None else fixed[rows],
        left_out=n - len(rows),
    )


def replay(record: Recorded, policy: Policy) -> Replayed:
    """What the policy does with the requests.

    Raises:
        PolicyError: the policy was built for a pool of other arms.
    """
    chosen = np.where(record.fixed, record.arm, policy.choose(record.success, record.cost, record.allowed))
    return _judged(record, chosen, record.propensity, policy.needs_success)


def as_it_was(record: Recorded) -> Replayed:
    """What was done with them; of the outcomes, the plain mean."""
    return _judged(record, record.arm, np.ones(len(record.arm)), probed=True)


def always(record: Recorded, arm: int) -> Replayed:
    """One arm takes all requests that it can serve; the others go where they went."""
    return _judged(record, _by_one_arm(record, arm), record.propensity, probed=False)


def _judged(record: Recorded, chosen: IndexArray, propensity: FloatArray, probed: bool) -> Replayed:
    n, k = record.success.shape
    prefill = record.probe_usd * probed
    usd = _usd(record, chosen) + prefill
    p = _of(record.success, chosen)
    return Replayed(
        requests=n,
        mix=tuple((np.bincount(chosen, minlength=k) / n).tolist()),
        changed=float((chosen != record.arm).mean()),
        cost_usd=float(usd.mean()),
        expected_cost_usd=float((_of(record.cost, chosen) + prefill).mean()),
        saving=_saving(usd, record.usd),
        saving_vs_best=_saving(usd, record.best_usd),
        expected_accuracy=estimate(float(p.mean()), float(p.std()) / np.sqrt(n)),
        from_outcomes=from_outcomes(record.outcome, propensity, chosen == record.arm, record.able, p),
    )


def _by_one_arm(record: Recorded, arm: int) -> IndexArray:
    """(n,)."""
    return np.where(record.allowed[:, arm], arm, record.arm)


def _usd(record: Recorded, chosen: IndexArray) -> FloatArray:
    """What each answer costs, without prefill, (n,)."""
    stays = (chosen == record.arm) & np.isfinite(record.paid_usd)
    return np.where(stays, record.paid_usd, _of(record.cost, chosen) * record.cost_ratio[chosen])


def _saving(usd: FloatArray, was: FloatArray) -> Estimate | None:
    """Of costs against costs of the same requests, (n,) each; its interval is that of a ratio (delta method)."""
    paid = float(was.mean())
    if paid <= 0:
        return None
    ratio = float(usd.mean()) / paid
    distance = usd - ratio * was  # 0 on average
    error = float(np.sqrt(distance @ distance)) / paid / len(usd)
    return Estimate(1 - ratio, 1 - ratio - Z * error, 1 - ratio + Z * error)


def _of(values: FloatArray, arms: IndexArray) -> FloatArray:
    """Each row's value for one arm: (n, k), (n,) -> (n,)."""
    n, k = values.shape
    taken: FloatArray = values.ravel().take(arms + k * np.arange(n))
    return taken
