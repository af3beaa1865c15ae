"""AIME, 1983 to 2024: hard competition problems whose answers are whole numbers from 0 to 999.

Source: gneubig/aime-1983-2024, 933 problems in one split, which is cut here. A row looks like this one, which is made
up:

    ID:             1999-II-16
    Year:           1999
    Problem Number: 16
    Question:       Find the number of ordered pairs of digits whose sum is $9$.
    Answer:         10
"""

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark


class Aime(DatasetBenchmark):
    dataset = "gneubig/aime-1983-2024"
    question, answer = ("Question",), ("Answer",)
    keeps = ("ID", "Year", "Problem Number")
    verifier = "math"
    suffix = MATHEMATICS
