"""GSM8K: grade-school word problems that take two to eight steps.

Source: openai/gsm8k, configuration main, 7,473 train and 1,319 test problems (Cobbe et al., Training Verifiers to Solve
Math Word Problems, 2021). A row looks like this one, which is made up:

    question: A baker sells 12 rolls in the morning and twice as many after noon. How many rolls is that?
    answer:   After noon she sells 12*2 = <<12*2=24>>24 rolls. Together these are 12+24 = <<12+24=36>>36.
              #### 36
"""

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark, Row


class Gsm8k(DatasetBenchmark):
    dataset = "openai/gsm8k"
    config = "main"
    question, answer = ("question",), ("answer",)
    verifier = "math"
    suffix = MATHEMATICS

    def truth(self, row: Row, seed: int) -> str:
        _, mark, number = super().truth(row, seed).rpartition("####")
        return number.strip() if mark else ""
