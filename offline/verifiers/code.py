r"""Python programs, judged by running tests: the last ```python block of a solution is the program.

The ground truth is JSON text of one of these forms:

    {"kind": "stdin", "tests": [{"input": "1 2\n", "output": "3\n"}, ...]}
        A whole program. For each test it is run anew; what it prints must be the output, lines compared without the
        space at their ends, and numbers as numbers where a line's words differ.
    {"kind": "functional", "entry_point": "add", "tests": [{"input": [1, 2], "output": 3}, ...]}
        A function, or a method of a class `Solution`, called with the arguments that `input` lists; what it returns
        must equal `output` (JSON values; tuples count as lists).
    {"kind": "check", "entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
        Test code, as HumanEval's: `check` is called with the function and must return.

Beside these there may stand, in any form:

    "prelude": code that is put before the program, such as imports or the problem's own stub (default: none);
    "limit_s": CPU seconds that one run of the program may take (default: 10).

All tests must pass. Expected outputs of `stdin` and `functional` never enter the process that runs the program.
"""

import re

from offline.verifiers.base import Verifier

BLOCK = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.IGNORECASE | re.MULTILINE
)


class Code(Verifier):
    limit_s = 600.0

    def extract(self, solution: str) -> str | None:
        blocks = BLOCK.findall(solution)
        return blocks[-1] if blocks else None

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        raise NotImplementedError
