"""PolyMath: the same 500 problems of four levels in eighteen languages.

Source: Qwen/PolyMath, a configuration per language (ar, bn, de, en, ...), splits top, high, medium and low, which are
levels of difficulty, 125 problems each (Wang et al., PolyMath: Evaluating Mathematical Reasoning in Multilingual
Contexts, 2025). A row looks like this one, which is made up:

    id:       low-en-126
    question: Kim has 3 pens and buys 4 more. How many pens does Kim have?
    answer:   7

English, unless `--dataset-config sw` or, for several, `--dataset-config en,sw` says otherwise. A problem is in the same
split in all languages.
"""

import re
from typing import Any

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark, Row

NUMBER = re.compile(r"\d+$")


class Polymath(DatasetBenchmark):
    dataset = "Qwen/PolyMath"
    config = "en"
    question, answer = ("question",), ("answer",)
    keeps = ("id",)
    verifier = "math"
    suffix = MATHEMATICS

    def about(self, row: Row) -> dict[str, Any]:
        return {**super().about(row), "level": row.split}

    def group(self, row: Row) -> str:
        number = NUMBER.search(row.text("id")) if "id" in row.cells else None
        return f"{row.split} {number[0]}" if number else super().group(row)
