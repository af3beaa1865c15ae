"""Mathematics: when two ways to write an answer are one answer."""

import pytest

from offline.verifiers.base import VerifierError, load


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{4}, then \boxed{5}", "5"),
        (r"$x=\boxed{1}$ and $y = \boxed{2}$", "1, 2"),
        (r"\boxed{3} or \boxed{-1}", "3, -1"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("She earns $18.50 per day.", "18.50"),
        (r"The answer is $\frac12$.", r"\frac{1}{2}"),
        (r"so \boxed{}", None),
        ("no answer", None),
    ],
)
def test_the_answer_is_what_the_solution_writes(solution: str, answer: str | None) -> None:
    assert load("math").extract(solution) == answer


EQUAL = [
    (r"\frac12", "0.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"3\tfrac12", r"\frac{7}{2}"),
    ("1{,}234", "1234"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("xy", "yx"),
    (r"\{1,2,3\}", "3, 2, 1"),
    (r"\pm 2", "2, -2"),
    (r"(1,2)\cup(3,4)", r"(3,4) \cup (1,2)"),
    (r"x \in [1,2)", "[1,2)"),
    (r"1 \le x < 2", "[1,2)"),
    (r"x > 3", r"(3,\infty)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("x=5", "5"),
    ("y=2x+1", "2x+1"),
    ("2x+3y=5", "3y+2x=5"),
    (r"5\text{ cm}", "5"),
    (r"\text{10 apples}", "10"),
    (r"90^\circ", "90"),
    (r"\$18.50", "18.5"),
    (r"12\%", "12"),
    (r"3.0 \times 10^8", "300000000"),
    (r"\text{Tuesday}", "tuesday."),
    (r"\text{(B)}", "B"),
    ("$7$", "7"),
    (r"\boxed{7}", "7"),
]
DIFFERENT = [
    ("3", "-3"),
    (r"\frac13", "0.333"),
    (r"\sqrt{2}", "1.414"),
    ("[1,2]", "(1,2)"),
    ("(3,5)", "(5,3)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("x^2", "x^3"),
    ("east", "seat"),
    (r"\text{no solution}", "0"),
    ("yes", "no"),
]


@pytest.mark.parametrize(("ground_truth", "answer"), EQUAL)
def test_one_answer_in_two_forms(ground_truth: str, answer: str) -> None:
    math = load("math")
    assert math.is_correct(math.extract(rf"Thus \boxed{{{answer}}}."), ground_truth)
    if "boxed" not in ground_truth:
        assert math.is_correct(math.extract(rf"Thus \boxed{{{ground_truth}}}."), answer)


@pytest.mark.parametrize(("ground_truth", "answer"), DIFFERENT)
def test_two_answers(ground_truth: str, answer: str) -> None:
    math = load("math")
    assert not math.is_correct(math.extract(rf"Thus \boxed{{{answer}}}."), ground_truth)
    assert not math.same(ground_truth, answer)


def test_an_empty_ground_truth_is_refused() -> None:
    with pytest.raises(VerifierError, match="give each problem its answer"):
        load("math").is_correct("1", "  ")
