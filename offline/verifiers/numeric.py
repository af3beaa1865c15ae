r"""A number as answer, in whatever style: `#### 18`, "A: 18", `\boxed{18}`, "... is $18.50 per day."

The last mark that says "here is the answer" and has a number counts. Without any it is the number of the last sentence
that the last calculation gave ("36 / 6 = 6. So 6 buses will carry 36 children."), else the last number of all.
Commas, currencies, units and percent signs do not matter (50% is 50), nor does the form: 18.00, 36/2 and 18 are equal.
Example of a problem that it is for: GSM8K, https://huggingface.co/datasets/openai/gsm8k.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

from offline.verifiers.base import Verifier, VerifierError
from offline.verifiers.boxed import last_boxed

CALCULATION = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's calculator annotations: <<48/2=24>>."""
MARK = re.compile(
    r"####(?P<hashes>.*)"
    r"|^[^\w\n]*A(?:nswer)?[ \t]*:(?P<a>.*)"
    r"|\banswer\b[*_]*(?:\s+is\b|\s*[:=])(?P<prose>.*?(?=\.\s|$))",
    re.IGNORECASE | re.MULTILINE,
)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
RESULT = re.compile(r"=([^=\n]*)$", re.MULTILINE)
SPACES = re.compile(r"\\[,!;: ]|\{,\}|(?<=\d)[\u00a0\u202f](?=\d{3})")
"""Thin spaces and braced commas inside a number in LaTeX or print; they count as commas."""
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}")
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,300}(?![0-9])|[0-9]{1,999}+)(?:\.[0-9]{1,999}+)?|\.[0-9]{1,999}+"
"""Longer numbers, which only a model that repeats itself writes, come to pieces."""
NUMBER = re.compile(
    # A minus is a sign where it touches its number and nothing before: 10-5 and 3 - 5 are differences, "- 5" a list.
    rf"""(?P<minus>(?<![\w)\]}}])[-\u2212\u2013])?(?:[$\u20ac\u00a3\u00a5]\s?)?(?<![\w.])(?P<whole>{DIGITS})(?::00\b)?
    (?: [eE](?P<exponent>[+-]?[0-9]{{1,2}})(?!\w)
      | (?P<above>[ -][0-9]{{1,9}})?\s?/\s?(?P<below>{DIGITS}) )?""",
    re.VERBOSE,
)


class Numeric(Verifier):
    def extract(self, solution: str) -> str | None:
        """The number in its shortest form: "18.5", "-3", "1/3"."""
        found = _answer(CALCULATION.sub("", solution))
        return None if found is None else shortest(found)

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """
        Raises:
            VerifierError: the ground truth holds no number, or several.
        """
        truth = numbers(ground_truth.rpartition("####")[2])
        if len(truth) != 1:
            raise VerifierError(f"the ground truth {ground_truth!r} must be one number; `exact` compares texts")
        return answer == shortest(truth[0])


def _answer(solution: str) -> Fraction | None:
    boxed = last_boxed(solution)
    if boxed is not None and (found := numbers(boxed.rpartition("=")[2])):
        return found[-1]
    for mark in reversed(list(MARK.finditer(solution))):
        text = next(part for part in mark.groups() if part is not None)
        if found := numbers(text.rpartition("=")[2]):
            return found[0]
    last_sentence = SENTENCE.split(solution.rstrip().rpartition("\n")[2])[-1]
    if "=" not in last_sentence:
        results = [numbers(text)[:1] for text in RESULT.findall(solution)]
        result = next((result[0] for result in reversed(results) if result), None)
        if result in numbers(last_sentence):
            return result
    found = numbers(solution)
    return found[-1] if found else None


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text, in order."""
    text = FRACTION.sub(r"\1/\2", SPACES.sub(",", text)).replace("\\", "")
    return [value for match in NUMBER.finditer(text) if (value := _value(match)) is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    whole = Fraction(match["whole"].replace(",", ""))
    if match["exponent"]:
        whole *= Fraction(10) ** int(match["exponent"])
    if match["below"]:
        below = Fraction(match["below"].replace(",", ""))
        if below == 0:
            return None
        above = Fraction(match["above"].strip(" -")) if match["above"] else whole
        whole = above / below + (whole if match["above"] else 0)
    return -whole if match["minus"] else whole


def shortest(value: Fraction) -> str:
    """The decimal form where it ends, else a fraction."""
    rest, places = value.denominator, 0
    while (factor := math.gcd(rest, 10)) > 1:
        rest //= factor
        places += 1
    if rest > 1:
        return str(value)
    return format(Decimal(f"{value.numerator * 10**places // value.denominator}E-{places}"), "f")
