"""Where a verifier and the verdicts on record disagree, and why: by rule, and as a report in Markdown."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from offline.verifiers.numeric import NUMBER

SHOWN = 160
"""Characters of a solution's end that the report shows."""

CAUSES = {
    "gave up": "Recorded as right; the verifier took too long over it, or crashed.",
    "no answer found": "Recorded as right; the verifier finds no answer.",
    "sign": "Recorded as right; the final answer is the ground truth but for its sign.",
    "several values": "Recorded as right; the ground truth stands in the last line, but another value is read.",
    "other answer": "Recorded as right; the final answer is another one.",
    "another form": "Recorded as wrong; the ground truth is the answer, in another form or with a unit: 18.00, 36/2.",
    "right among several": "Recorded as wrong; the ground truth is the answer, and other values stand beside it.",
    "right": "Recorded as wrong; the ground truth is the answer, as it is written.",
}
"""In the order of the report."""


@dataclass(frozen=True)
class Judged:
    """One solution, as recorded and as the verifier says."""

    row: int
    """In the file, from 0."""
    model: str
    solution: str
    ground_truth: str
    recorded: bool
    answer: str | None
    correct: bool
    gave_up: bool = False


def cause(judged: Judged) -> str:
    """One of CAUSES, of a solution that the two disagree on."""
    truth = judged.ground_truth.rpartition("####")[2].strip()
    last_line = (judged.solution.strip().splitlines() or [""])[-1]
    as_written = re.search(rf"(?<![\w.,\-\u2212]){re.escape(truth)}(?!\w|[.,]\d)", last_line) is not None
    if judged.recorded:
        if judged.answer is None:
            return "gave up" if judged.gave_up else "no answer found"
        if judged.answer.strip("-") == truth.strip("-"):
            return "sign"
        return "several values" if as_written else "other answer"
    if not as_written:
        return "another form"
    return "right among several" if len(NUMBER.findall(last_line)) > 1 else "right"


@dataclass(frozen=True)
class Agreement:
    """How far a verifier agrees with the verdicts on record; counts are of solutions."""

    solutions: int
    recorded_right: int
    right_but_refused: int
    """Recorded as right, wrong to the verifier."""
    wrong_but_accepted: int

    @property
    def of_right(self) -> float:
        """Share of those recorded as right that the verifier refuses; 0 where there are none."""
        return self.right_but_refused / self.recorded_right if self.recorded_right else 0.0

    @property
    def of_all(self) -> float:
        return (self.right_but_refused + self.wrong_but_accepted) / self.solutions if self.solutions else 0.0


def agreement(judged: Sequence[Judged]) -> Agreement:
    return Agreement(
        len(judged),
        sum(one.recorded for one in judged),
        sum(one.recorded and not one.correct for one in judged),
        sum(one.correct and not one.recorded for one in judged),
    )


def by_model(judged: Sequence[Judged]) -> dict[str, Agreement]:
    return {
        model: agreement([one for one in judged if one.model == model])
        for model in dict.fromkeys(one.model for one in judged)
    }


def disagreements(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """All of them, by cause."""
    differing = [(cause(one), one) for one in judged if one.correct != one.recorded]
    return {name: found for name in CAUSES if (found := [one for why, one in differing if why == name])}


def report(title: str, provenance: str, judged: Sequence[Judged]) -> str:
    """A report in Markdown that lists every disagreement.

    Args:
        provenance: JSON text.
    """
    found = disagreements(judged)
    total = agreement(judged)
    lines = [
        f"# {title}",
        "",
        f"Of {total.recorded_right} solutions recorded as right the verifier refuses {total.right_but_refused} "
        f"({total.of_right:.2%}); of all {total.solutions} it disagrees on "
        f"{total.right_but_refused + total.wrong_but_accepted} ({total.of_all:.2%}).",
        "",
        "| model | solutions | recorded right | refused of them | recorded wrong, accepted | disagree |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {_cell(model)} | {one.solutions} | {one.recorded_right} | {one.right_but_refused} ({one.of_right:.2%}) "
            f"| {one.wrong_but_accepted} | {one.of_all:.2%} |"
            for model, one in by_model(judged).items()
        ),
    ]
    for name, those in found.items():
        models = ", ".join(f"{model} {n}" for model, n in Counter(one.model for one in those).most_common())
        lines += ["", f"## {name.capitalize()}: {len(those)}", "", f"{CAUSES[name]} By model: {models}.", ""]
        lines += ["| row | model | ground truth | read as | the solution's end |", "| ---: | --- | --- | --- | --- |"]
        lines += [
            f"| {one.row} | {_cell(one.model)} | {_code(one.ground_truth)} | {_code(one.answer or '')} "
            f"| {_code(one.solution.strip())} |"
            for one in those
        ]
    return "\n".join([*lines, "", "## Provenance", "", "```json", provenance, "```", ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    """The end of a text as one line of code, whatever it holds."""
    shown = ("…" if len(text) > SHOWN else "") + text[-SHOWN:]
    return f"`{_cell(shown).replace('`', chr(39))}`" if shown else ""
