"""What every verifier promises, and what each of the quick ones reads as the answer."""

import pytest

from offline.verifiers.base import VerifierError, load, names

RIGHT = {
    "boxed": (r"so \boxed{18}", "18"),
    "math": (r"so \boxed{\frac{1}{2}}", "0.5"),
    "choice": ("The answer is (B)", "B"),
    "numeric": ("#### 18", "18.0"),
    "exact": ("Answer: New York.", "new york"),
    "code": (
        "```python\ndef one():\n    return 1\n```",
        '{"kind": "functional", "entry_point": "one", "tests": [{"input": [], "output": 1}]}',
    ),
}
"""Of each verifier a solution and a ground truth that it must find right. A new verifier needs one."""


@pytest.mark.parametrize("name", names())
def test_every_verifier_keeps_the_contract(name: str) -> None:
    verifier = load(name)
    solution, ground_truth = RIGHT[name]
    answer = verifier.extract(solution)
    assert answer is not None
    assert verifier.is_correct(answer, ground_truth)
    assert verifier.same(answer, answer)
    assert not verifier.is_correct(None, ground_truth)
    for empty in ("", "\n", "…", "I do not know"):
        assert not verifier.is_correct(verifier.extract(empty), ground_truth)
    with pytest.raises(VerifierError, match=r"ground truth|tests"):
        verifier.is_correct(None, " ")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(VerifierError, match="unknown verifier 'numerc': did you mean 'numeric'"):
        load("numerc")
    for name in ("base", "grading", "sandbox", "../x", ""):
        with pytest.raises(
            VerifierError, match=r"choose one of boxed, choice, code, exact, math, numeric|did you mean"
        ):
            load(name)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("#### 18", "18"),
        ("5 + 13 = <<5+13=18>>18\n#### 18\n\n", "18"),
        ("#### $18.50", "18.5"),
        ("#### 225 minutes or 3 hours and 45 minutes", "225"),
        ("He has 3.\nA: 18", "18"),
        ("**Answer:** 1,234 apples", "1234"),
        ("A: 10 - 3 = 7", "7"),
        (r"so \boxed{18}, not 19", "18"),
        (r"\boxed{x = 18}", "18"),
        ("She makes $18.50 per day.", "18.5"),
        ("The answer is 3. That suffices for 80 flagstones.", "3"),
        ("6000 / 2000 = 3.\n\nSo 3 trucks will carry 80 flagstones in 1 trip.", "3"),
        ("The total is 40 + 24 = $64.", "64"),
        ("She has 5 left; he has 7", "7"),
        ("it is 50%", "50"),
        (r"it is 18\%", "18"),
        (r"\frac{3}{4}", "0.75"),
        (r"$\dfrac{-3}{4}$", "-0.75"),
        ("1 1/2 hours", "1.5"),
        ("1-1/2 hours", "1.5"),
        ("1/3", "1/3"),
        ("2/6 cups", "1/3"),
        ("is -10 degrees", "-10"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("about \u22124", "-4"),
        ("10-5", "5"),
        ("2 - 5", "5"),
        ("- 5 apples", "5"),
        ("1.5e3", "1500"),
        ("5kg", "5"),
        ("1{,}234", "1234"),
        (r"12\,000", "12000"),
        ("the party ends at 2:00 pm", "2"),
        ("18.00", "18"),
        ("007", "7"),
        (".5", "0.5"),
        ("0.0000001", "0.0000001"),
        ("1/0", None),
        ("#### none", None),
        ("no number", None),
        ("", None),
    ],
)
def test_numeric_reads_the_final_number(solution: str, answer: str | None) -> None:
    assert load("numeric").extract(solution) == answer


def test_numeric_takes_the_ground_truth_in_any_form_but_only_one_number() -> None:
    numeric = load("numeric")
    for truth in ("18", "18.00", "$18", "36/2", "He has 18.\n#### 18"):
        assert numeric.is_correct("18", truth)
        assert not numeric.is_correct("18.1", truth)
        assert not numeric.is_correct("-18", truth)
    for truth in ("", "eighteen", "3 or 4"):
        with pytest.raises(VerifierError, match="must be one number"):
            numeric.is_correct("18", truth)


@pytest.mark.parametrize(
    ("solution", "letter"),
    [
        ("The answer is (B)", "B"),
        ("The answer is B.", "B"),
        ("The answer is: B", "B"),
        (r"so \boxed{C}", "C"),
        (r"\boxed{\textbf{(D)}}", "D"),
        (r"the answer is $\text{(E)}$", "E"),
        ("Answer: D", "D"),
        ("**Answer:** B", "B"),
        ("Answer: **(A) 5**", "A"),
        ("Answer:\n\n**C**", "C"),
        ("The correct option is **C**.", "C"),
        ("The correct answer is option D", "D"),
        ("#### A", "A"),
        ("B", "B"),
        ("(b)", "B"),
        ("C. Because it is.", "C"),
        ("Answer: B\nNo, the answer is C.", "C"),
        (r"The answer is (A). So \boxed{B}", "B"),
        ("The answer is A because the rest is false", "A"),
        ("The answer is A train", None),
        ("A good idea would be to think", None),
        ("The answer is Bob", None),
        ("I think so", None),
        ("", None),
    ],
)
def test_choice_reads_the_last_letter_given(solution: str, letter: str | None) -> None:
    assert load("choice").extract(solution) == letter


@pytest.mark.parametrize(
    ("solution", "ground_truth", "correct"),
    [
        ("The answer is  New  York.", "new york", True),
        ("Thinking...\nAnswer: **Paris**", "Paris", True),
        ("Thinking...\nParis", "paris", True),
        (r"Answer: Rome. No: \boxed{Paris}", "Paris", True),
        ("ﬁve", "five", True),
        ("Answer: Paris, France", "Paris", False),
        ("Paris it is, I think\nRome", "Paris", False),
    ],
)
def test_exact_compares_normalised_texts(solution: str, ground_truth: str, correct: bool) -> None:
    exact = load("exact")
    assert exact.is_correct(exact.extract(solution), ground_truth) is correct


@pytest.mark.parametrize("name", ["boxed", "choice", "exact", "numeric"])
@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "9", "9,", "9/", "9 ", "answer is ", "A:\n", "\n", " ", "(", "*", "#", "-", "<<", "=9\n"]
)
def test_quick_verifiers_stay_quick_over_a_model_that_repeats_itself(name: str, piece: str) -> None:
    """A square of the length would take minutes."""
    load(name).extract(piece * (50_000 // len(piece)))


def test_boxes_are_read_with_escaped_and_nested_braces() -> None:
    boxed = load("exact")
    assert boxed.extract(r"\boxed{\{1, \frac{1}{2}\}}") == r"\{1, \frac{1}{2}\}"
    assert boxed.extract(r"\boxed {one} \boxed{two \boxed{three") == "one"
