"""GPQA diamond: questions of physics, chemistry and biology that experts solve and others cannot look up.

Source: Idavidrein/gpqa, configuration gpqa_diamond, 198 questions in one split, which is cut here (Rein et al., GPQA: A
Graduate-Level Google-Proof Q&A Benchmark, 2023). It is gated: its page asks for consent. A row looks like this one,
which is made up:

    Question:           Which of these particles feels no strong force?
    Correct Answer:     the muon
    Incorrect Answer 1: the pion
    Incorrect Answer 2: the neutron
    Incorrect Answer 3: the kaon
    Subdomain:          High-energy particle physics

The choices are shuffled, by the question and the seed alone.
"""

import random

from offline.dataset_benchmark import CHOICE, DatasetBenchmark, Row

LETTERS = "ABCD"


class Gpqa(DatasetBenchmark):
    dataset = "Idavidrein/gpqa"
    config = "gpqa_diamond"
    question, answer = ("Question",), ("Correct Answer",)
    needs = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    keeps = ("Record ID", "High-level domain", "Subdomain", "Writer's Difficulty Estimate")
    verifier = "choice"
    suffix = CHOICE

    def text(self, row: Row, seed: int) -> str:
        choices = (f"{letter}) {choice}" for letter, choice in zip(LETTERS, self._choices(row, seed), strict=True))
        return "\n".join([row.text(*self.question).strip(), "", *choices])

    def truth(self, row: Row, seed: int) -> str:
        right = super().truth(row, seed)
        return LETTERS[self._choices(row, seed).index(right)] if right else ""

    def _choices(self, row: Row, seed: int) -> list[str]:
        choices = [row.text(column).strip() for column in (*self.answer, *self.needs)]
        random.Random(f"{seed}/{row.text(*self.question)}").shuffle(choices)  # noqa: S311 - an order, no secret
        return choices
