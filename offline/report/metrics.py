"""The metrics of a report, by the names that the field gives them, and what each means.

Sources: AIQ: Hu et al., "RouterBench", 2024. APGR, CPT: Ong et al., "RouteLLM: learning to route LLMs with preference
data", 2024, section 2.2. ECE: Guo et al., "On calibration of modern neural networks", 2017.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    key: str
    heading: str
    higher_is_better: bool | None = None
    """None where no value is better than another for itself."""
    meaning: str = ""
    """A metric's definition."""


_METRICS = (
    Column("accuracy", "accuracy, %", True, "Share of test problems answered correctly: the mean over their answers."),
    Column(
        "accuracy_diff",
        "against best single, points",
        True,
        "Accuracy minus the best single arm's on the same problems.",
    ),
    Column("cost_usd", "cost", None, "Mean USD, prompts included, and the probes' prefill for methods that read them."),
    Column("saving", "saving, %", True, "1 - cost / the best single arm's cost, at the chosen knob."),
    Column(
        "parity_saving",
        "saving at equal accuracy, %",
        True,
        "Saving where the frontier (the convex hull of a method's knobs) crosses the best single arm's accuracy; 0 in "
        "draws of the bootstrap in which it stays below.",
    ),
    Column("limit_share", "of the limit's saving, %", True, "Saving at equal accuracy, as a share of the limit's."),
    Column(
        "peak_accuracy_gain",
        "peak accuracy gain, points",
        True,
        "Accuracy over the best single arm's, at the knob that was most accurate on validation problems.",
    ),
    Column("gap_closed", "gap to oracle closed, %", True, "Peak accuracy gain, as a share of the limit's."),
    Column("aiq", "AIQ", True, "Mean accuracy of the frontier over the costs of the single arms."),
    Column("p_auccc", "P-AUCCC", True, "Area under the cost-coverage curve: AIQ above the cheapest arm's accuracy."),
    Column(
        "apgr",
        "APGR",
        True,
        "Two arms: mean share of the accuracy gap recovered over shares of strong calls, 0.5 at random.",
    ),
    Column(
        "cpt50", "CPT(50%), %", False, "Two arms: least share of strong calls that recovers 50% of the accuracy gap."
    ),
    Column(
        "cpt80", "CPT(80%), %", False, "Two arms: least share of strong calls that recovers 80% of the accuracy gap."
    ),
    Column(
        "auroc", "AUROC", True, "Probability that a right answer has a higher success probability than a wrong one."
    ),
    Column("ece", "ECE", False, "Mean gap between success probability and success rate, over bins."),
    Column("brier", "Brier score", False, "Mean squared gap between success probability and success rate."),
    Column("spearman", "Spearman's rho", True, "Rank correlation."),
)


def metric(key: str, unit: str = "") -> Column:
    """A metric's column; `unit` is added to the heading."""
    found = next(column for column in _METRICS if column.key == key)
    if not unit:
        return found
    return Column(found.key, f"{found.heading}, {unit}", found.higher_is_better, found.meaning)
