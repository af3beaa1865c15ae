"""E2H-AMC: competition mathematics with the difficulty that people had, from the results of tens of thousands of them.

Source: furonghuang-lab/Easy2Hard-Bench, configuration E2H-AMC, 1,000 train and 2,975 eval problems (Ding et al.,
Easy2Hard-Bench, 2024). A row looks like this one, which is made up:

    contest:         AMC
    year:            2031
    problem:         How many whole numbers divide $12$?
    answer:          6
    rating:          0.31
    item_difficulty: 0.44

`rating` is the difficulty by item response theory, higher for harder problems. It is kept as `human_difficulty`, so
that a report can hold it against what models find difficult.
"""

from typing import Any

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark, Row


class E2hAmc(DatasetBenchmark):
    dataset = "furonghuang-lab/Easy2Hard-Bench"
    config = "E2H-AMC"
    question, answer = ("problem",), ("answer",)
    needs = ("rating",)
    keeps = ("rating", "item_difficulty", "contest", "year", "index")
    verifier = "math"
    suffix = MATHEMATICS

    def about(self, row: Row) -> dict[str, Any]:
        about = super().about(row)
        return {"human_difficulty": about.pop("rating", None), **about}
