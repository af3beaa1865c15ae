"""What the demo's answers add up to: shares, accuracy, cost, and how routing compares with the best arm alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from offline.evaluate import paired_bootstrap


@dataclass(frozen=True)
class Answer:
    """One request's outcome."""

    arm: str | None
    """Who answered; None where the request failed."""
    correct: bool
    cost_usd: float
    request_id: str | None = None


@dataclass(frozen=True)
class Side:
    """One way of answering all problems."""

    accuracy: float
    cost_usd: float
    share: Mapping[str, float]
    """Of the answered requests, by arm, in the pool's order; adds up to 1."""


@dataclass(frozen=True)
class Summary:
    requests: int
    """Problems."""
    routed: Side
    """Its cost includes the probe's."""
    always: Mapping[str, Side]
    oracle: Side
    """In-sample: the cheapest arm whose answer was right, else the cheapest. It has seen the answers; no router can."""
    best: str
    """The most accurate arm alone, the cheaper one of equals."""
    accuracy_diff_ci: tuple[float, float]
    """95%, routed - best, paired by problem."""
    errors: int

    @property
    def saving_vs_best(self) -> float:
        best_usd = self.always[self.best].cost_usd
        return 1 - self.routed.cost_usd / best_usd if best_usd else 0.0

    @property
    def accuracy_diff(self) -> float:
        return self.routed.accuracy - self.always[self.best].accuracy

    def to_json(self) -> dict[str, Any]:
        """The demo's last line."""
        routed, oracle = (
            {"accuracy": side.accuracy, "cost_usd": side.cost_usd, "share": dict(side.share)}
            for side in (self.routed, self.oracle)
        )
        return {
            "requests": self.requests,
            "routed": routed,
            "always": {
                arm: {"accuracy": side.accuracy, "cost_usd": side.cost_usd} for arm, side in self.always.items()
            },
            "oracle": oracle,
            "best": self.best,
            "saving_vs_best": self.saving_vs_best,
            "accuracy_diff": self.accuracy_diff,
            "accuracy_diff_ci": list(self.accuracy_diff_ci),
            "errors": self.errors,
        }


def summarise(
    routed: Sequence[Answer], always: Mapping[str, Sequence[Answer]], probe_cost_usd: float, seed: int
) -> Summary:
    """
    Args:
        routed: one answer per problem.
        always: by arm, its answers to the same problems in the same order.
        probe_cost_usd: what reading the routed prompts cost.
        seed: of the bootstrap.
    """
    arms = list(always)
    sides = {arm: _side(answers, arms) for arm, answers in always.items()}
    cheapest_first = sorted(arms, key=lambda arm: sides[arm].cost_usd)
    best = max(cheapest_first, key=lambda arm: sides[arm].accuracy)
    oracle = [
        next((always[arm][i] for arm in cheapest_first if always[arm][i].correct), always[cheapest_first[0]][i])
        for i in range(len(routed))
    ]
    return Summary(
        requests=len(routed),
        routed=_side(routed, arms, probe_cost_usd),
        always=sides,
        oracle=_side(oracle, arms),
        best=best,
        accuracy_diff_ci=paired_bootstrap(
            [answer.correct for answer in routed], [answer.correct for answer in always[best]], seed=seed
        ),
        errors=sum(answer.arm is None for answers in (routed, *always.values()) for answer in answers),
    )


def _side(answers: Sequence[Answer], arms: Sequence[str], extra_usd: float = 0.0) -> Side:
    answered = max(sum(answer.arm is not None for answer in answers), 1)
    return Side(
        accuracy=sum(answer.correct for answer in answers) / len(answers),
        cost_usd=sum(answer.cost_usd for answer in answers) + extra_usd,
        share={arm: sum(answer.arm == arm for answer in answers) / answered for arm in arms},
    )


def table(summary: Summary) -> Table:
    """One row per way of answering all problems."""
    best = summary.always[summary.best]
    table = Table(
        title=f"{summary.requests} held-out problems",
        caption="share: of the routed requests, by the arm that answered\noracle: the cheapest arm that was right",
    )
    table.add_column("arm", no_wrap=True)
    for column in ("share", "accuracy", "cost, USD", "against best alone"):
        table.add_column(column, justify="right")

    def add(name: str, side: Side, share: float | None = None) -> None:
        change = f"{side.cost_usd / best.cost_usd - 1:+.0%}" if best.cost_usd and side is not best else "best alone"
        share_text = "" if share is None else f"{share:.0%}"
        table.add_row(name, share_text, f"{side.accuracy:.1%}", f"{side.cost_usd:.6f}", change)

    add("[bold]routed", summary.routed, 1.0)
    for arm, side in summary.always.items():
        add(f"always {arm}", side, summary.routed.share[arm])
    add("oracle (in-sample)", summary.oracle)
    return table


def in_words(summary: Summary) -> str:
    """The result as a sentence."""
    best, routed = summary.always[summary.best], summary.routed
    low, high = summary.accuracy_diff_ci
    saving = summary.saving_vs_best
    return (
        f"Routing {'saved' if saving >= 0 else 'cost'} {abs(saving):.0%}{'' if saving >= 0 else ' more'}: "
        f"${routed.cost_usd:.6f} instead of ${best.cost_usd:.6f} for always {summary.best}, reading the prompts "
        f"included. It was right on {routed.accuracy:.1%} instead of {best.accuracy:.1%} of the problems "
        f"({100 * summary.accuracy_diff:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f})."
    )
