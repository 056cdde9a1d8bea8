from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpod_jax.data import formulas, steps


@pytest.mark.parametrize(
    ("formula", "answer", "expected"),
    [
        ("( 76.0 - 25.0 )", "51", "76 - 25 = 51."),
        ("(9-6)*2=6", "6", "9 - 6 = 3. 3 * 2 = 6."),
        ("2+3*4", "14", "3 * 4 = 12. 2 + 12 = 14."),
        ("(12+3)×2÷5", "6", "12 + 3 = 15. 15 * 2 = 30. 30 / 5 = 6."),
        ("0.1+0.2", "0.3", "0.1 + 0.2 = 0.3."),
        ("10/3*3", "10", "10 / 3 = 10/3. (10/3) * 3 = 10."),
        ("10/3=3.33", "3.33", "10 / 3 = 10/3. 10/3 is about 3.33."),
        ("20%*50", "10", "20 / 100 = 0.2. 0.2 * 50 = 10."),
        ("1,200*2", "2400", "1200 * 2 = 2400."),
        ("007-1.05", "5.95", "7 - 1.05 = 5.95."),
        ("3-5", "-2", "3 - 5 = -2."),
        ("-(2+3)+9", "4", "2 + 3 = 5. (-5) + 9 = 4."),
        ("5=5", "5", "It is 5."),
    ],
)
def test_one_step_for_each_operation(formula, answer, expected):
    assert formulas.rationale(formula, answer) == expected


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("x+5=7", "not purely numeric"),
        ("", "not purely numeric"),
        ("9" * 201, "not purely numeric"),
        ("1e9", "not purely numeric"),
        ("__import__('os')", "not purely numeric"),
        ("2**9", "cannot be parsed"),
        ("2(3)", "cannot be parsed"),
        ("7//2", "cannot be parsed"),
        ("1.2.3", "cannot be parsed"),
        ("(" * 150, "cannot be parsed"),
        ("1/0", "divides by zero"),
        ("1/(2-2)", "divides by zero"),
        ("1+1", "equal to 2; its answer is 3"),
    ],
)
def test_what_is_no_formula_of_the_answer(formula, said):
    with pytest.raises(ValueError, match=said):
        formulas.rationale(formula, "3")


def _operation(parts):
    """A formula, its value (None where it divides by zero) and the number of its operations."""
    (left, a, m), sign, (right, b, n) = parts
    text, count = f"( {left} {sign} {right} )", m + n + 1
    if a is None or b is None or (sign == "/" and b == 0):
        return text, None, count
    values = {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}
    return text, values[sign], count


TREES = st.recursive(
    st.decimals(0, 999, places=2).map(lambda number: (str(number), Fraction(number), 0)),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(_operation),
    max_leaves=6,
)


@given(TREES)
def test_every_formula_ends_with_its_value(tree):
    formula, value, count = tree
    if value is None:
        with pytest.raises(ValueError, match="divides by zero"):
            formulas.rationale(formula, "0")
        return
    text = formulas.rationale(formula, str(value))
    assert len(steps.split_steps(text)) == max(1, count)
    last = text.removesuffix(".").rpartition("= " if count else "is ")[2]
    assert Fraction(last) == value
