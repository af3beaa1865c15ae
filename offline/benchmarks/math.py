r"""MATH: competition mathematics of seven subjects and five levels, with written solutions.

Source: DigitalLearningGmbH/MATH-lighteval, 7,500 train and 5,000 test problems (Hendrycks et al., Measuring
Mathematical Problem Solving With the MATH Dataset, 2021). A row looks like this one, which is made up:

    problem:  What is the area of a square whose diagonal is $\sqrt{2}$?
    level:    Level 2
    type:     Geometry
    solution: A diagonal $d$ spans the area $d^2/2$, here $\boxed{1}$.

The answer is what stands in the solution's last box.
"""

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark, Row
from offline.verifiers.boxed import last_boxed


class Math(DatasetBenchmark):
    dataset = "DigitalLearningGmbH/MATH-lighteval"
    question, answer = ("problem",), ("solution",)
    keeps = ("level", "type")
    verifier = "math"
    suffix = MATHEMATICS

    def truth(self, row: Row, seed: int) -> str:
        return (last_boxed(super().truth(row, seed)) or "").strip()
