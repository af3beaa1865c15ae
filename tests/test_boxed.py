import pytest

from offline.verifiers.base import VerifierError
from offline.verifiers.boxed import Boxed, last_boxed, number


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"7 \boxed{7}", "7"),
        (r"first \boxed{3}, no: \boxed{4}", "4"),
        (r"\boxed{ +007.50 }", "7.5"),
        (r"\boxed{$1,234$}", "1234"),
        (r"\boxed{1{,}234}", None),
        (r"\boxed{12\,000}", "12000"),
        (r"\boxed{-0.0}", "0"),
        (r"\boxed{.5}", "0.5"),
        (r"\boxed{5.}", "5"),
        (r"\boxed{123456789012345678901234567890123456789}", "123456789012345678901234567890123456789"),
        (r"\boxed{\frac{1}{2}}", None),
        (r"\boxed{seven}", None),
        (r"\boxed{}", None),
        (r"\boxed{.}", None),
        (r"\boxed{-}", None),
        (r"\boxed{1e3}", None),
        (r"\boxed{1,2}", None),
        (r"\boxed{٣}", None),
        (r"the answer is 7", None),
        (r"\boxed{3} and then \boxed{4", "3"),
        ("", None),
    ],
)
def test_the_last_boxed_number_is_the_answer(solution: str, answer: str | None) -> None:
    assert Boxed().extract(solution) == answer


def test_nested_braces_stay_together() -> None:
    assert last_boxed(r"so \boxed{\text{x} = \frac{1}{{2}}} holds") == r"\text{x} = \frac{1}{{2}}"


def test_answers_are_compared_as_numbers() -> None:
    boxed = Boxed()
    assert boxed.is_correct(boxed.extract(r"\boxed{18.0}"), "18")
    assert boxed.is_correct("18", "018.00")
    assert not boxed.is_correct("1.8", "18")
    assert not boxed.is_correct(None, "18")
    with pytest.raises(VerifierError, match="'eighteen' is no number"):
        boxed.is_correct("18", "eighteen")


def test_a_number_is_never_rounded() -> None:
    tiny = "0." + "0" * 40 + "1"
    assert number(tiny) == tiny
