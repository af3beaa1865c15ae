"""AIME 2025: the thirty problems of one year, after most models were trained.

Source: MathArena/aime_2025, one split, which is cut here: `--split test=all` alone asks for a fifth of it. A row looks
like this one, which is made up:

    problem_idx:  31
    problem:      Find the number of ordered pairs of digits whose sum is $9$.
    answer:       10
    problem_type: ["Combinatorics"]

Other copies call the problem `question`, and opencompass/AIME2025 parts the two papers: `--dataset
opencompass/AIME2025 --dataset-config AIME2025-I,AIME2025-II`.
"""

from offline.dataset_benchmark import MATHEMATICS, DatasetBenchmark


class Aime2025(DatasetBenchmark):
    dataset = "MathArena/aime_2025"
    question, answer = ("problem", "question", "Problem", "Question"), ("answer", "Answer")
    keeps = ("problem_idx", "problem_type")
    verifier = "math"
    suffix = MATHEMATICS
