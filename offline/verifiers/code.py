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

All tests must pass, within 300 s together. Expected outputs of `stdin` and `functional` never enter the process that
runs the program, and one that ends before its tests are through has not passed them. How it is confined: `confine.py`.

Sources: https://huggingface.co/datasets/openai/openai_humaneval, https://livecodebench.github.io.
"""

import json
import logging
import math
import re
import secrets
import time
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from offline.verifiers import sandbox
from offline.verifiers.base import Verifier, VerifierError

logger = logging.getLogger(__name__)

ALL_TESTS_S = 300.0
BLOCK = re.compile(r"^[ \t]*```[ \t]*(?P<language>\w*)[^\n]*\n(?P<program>.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prelude: str = ""
    limit_s: int = Field(default=10, ge=1, le=300)


class StdinTest(BaseModel):
    input: str
    output: str


class Stdin(_Form):
    kind: Literal["stdin"]
    tests: tuple[StdinTest, ...] = Field(min_length=1)


class FunctionalTest(BaseModel):
    input: list[Any]
    output: Any


class Functional(_Form):
    kind: Literal["functional"]
    entry_point: str
    tests: tuple[FunctionalTest, ...] = Field(min_length=1)


class Check(_Form):
    kind: Literal["check"]
    entry_point: str
    test: str


FORMS: TypeAdapter[Stdin | Functional | Check] = TypeAdapter(
    Annotated[Stdin | Functional | Check, Field(discriminator="kind")]
)


class Code(Verifier):
    limit_s = ALL_TESTS_S + 60

    def extract(self, solution: str) -> str | None:
        """The last block that says python; where none does, the last that names no language."""
        blocks = list(BLOCK.finditer(solution))
        for languages in (("python", "python3", "py"), ("",)):
            programs = [block["program"] for block in blocks if block["language"].lower() in languages]
            if programs:
                return str(programs[-1])
        return None

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """Run the program; see above.

        Raises:
            VerifierError: the ground truth is of none of these forms.
            OSError: no process can be started, or there is no room for its files.
        """
        try:
            form = FORMS.validate_json(ground_truth)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the ground truth"
            raise VerifierError(f"no tests as offline/verifiers/code.py describes: {where}: {first['msg']}") from error
        if answer is None:
            return False
        program = f"{form.prelude}\n{answer}" if form.prelude else answer
        match form:
            case Stdin():
                return _prints(program, form)
            case Functional():
                return _returns(program, form)
            case Check():
                return _passes(program, form)


def _prints(program: str, form: Stdin) -> bool:
    deadline = time.monotonic() + ALL_TESTS_S
    for test in form.tests:
        finished = _run(program, test.input, form.limit_s)
        if finished.exit_code != 0 or not same_output(finished.output, test.output) or time.monotonic() > deadline:
            return False
    return True


def _returns(program: str, form: Functional) -> bool:
    call = {"entry_point": form.entry_point, "inputs": [test.input for test in form.tests]}
    results = _run(program, json.dumps(call), form.limit_s, calls=True).results
    return len(results) == len(form.tests) and all(
        _equal(_json(line), test.output) for line, test in zip(results, form.tests, strict=True)
    )


def _passes(program: str, form: Check) -> bool:
    # A token that the program has not seen when it is loaded: to end without an error is not to pass.
    token = secrets.token_hex(16)
    call = {"entry_point": form.entry_point, "test": form.test, "token": token}
    return _run(program, json.dumps(call), form.limit_s, calls=True).results == [json.dumps(token)]


def _run(program: str, stdin: str, cpu_s: int, calls: bool = False) -> sandbox.Finished:
    finished = sandbox.run(program, stdin, cpu_s, calls)
    if finished.missing:
        _warn(finished.missing)
    return finished


@cache  # once per process
def _warn(missing: str) -> None:
    logger.warning("this kernel has no %s: programs are less confined (offline/verifiers/confine.py)", missing)


def same_output(printed: str, expected: str) -> bool:
    """Whether a program printed what it should, but for space at the ends of lines and how numbers are written."""
    pairs = zip_longest(printed.strip().split("\n"), expected.strip().split("\n"), fillvalue=None)
    return all(
        one is not None and other is not None and (one.strip() == other.strip() or _same_words(one, other))
        for one, other in pairs
    )


def _same_words(line: str, expected: str) -> bool:
    words, wanted = line.split(), expected.split()
    try:
        return [Decimal(word) for word in words] == [Decimal(word) for word in wanted]
    except InvalidOperation:
        return False


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _equal(value: Any, expected: Any) -> bool:
    """Equality of JSON values; floating-point numbers may differ by rounding."""
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(_equal(value[key], expected[key]) for key in value)
    if isinstance(value, float) and isinstance(expected, int | float):
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
    return bool(value == expected)
