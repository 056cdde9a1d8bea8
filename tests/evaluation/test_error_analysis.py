"""Equations read from texts, and the classes of wrong generations, by hand-made cases."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpod_jax.data import arithmetic
from kpod_jax.evaluation import error_analysis
from kpod_jax.evaluation.error_analysis import CLASSES, classify, equations

GOLD = "First, Anna has 3 * 4 = 12 nuts. Then she eats some: 12 - 5 = 7. So 7 are left."


@pytest.mark.parametrize(
    ("prediction", "extracted", "expected"),
    [
        ("Anna has 3 * 4 = 12 nuts and so on and so on", None, "no answer"),
        ("3 * 4 = 13. 12 - 5 = 7. The answer is 7.", None, "no answer"),
        ("3 * 4 = 13. 13 - 5 = 8. The answer is 8.", "8", "arithmetic slip"),
        ("3 times 4 is 12. 12 minus 5 is 6. The answer is 6.", "6", "arithmetic slip"),
        # A slip comes before the wrong operator.
        ("3 + 4 = 8. 8 - 5 = 3. The answer is 3.", "3", "arithmetic slip"),
        ("3 + 4 = 7. 7 - 5 = 2. The answer is 2.", "2", "wrong operator"),
        ("4 plus 3 is 7. The answer is 7.", "7", "wrong operator"),
        ("3 * 4 = 12. The answer is 12.", "12", "too few steps"),
        ("3 * 4 = 12. 12 - 5 = 7. 7 * 2 = 14. The answer is 14.", "14", "too many steps"),
        ("It is 12. The answer is 12.", "12", "too few steps"),
        ("3 * 5 = 15. 15 - 5 = 10. The answer is 10.", "10", "wrong operand or copy"),
        # Exchanged operands.
        ("3 * 4 = 12. 5 - 12 = -7. The answer is -7.", "-7", "wrong operand or copy"),
        # All is right, and something else is said in the end.
        ("4 * 3 = 12. 12 - 5 = 7. The answer is 8.", "8", "wrong operand or copy"),
        # The gold answer is another one than that of the gold rationale's last equation.
        ("3 * 4 = 12. 12 - 5 = 7. The answer is 7.", "7", "other"),
        # One line for two steps is two steps all the same.
        ("3 * 4 - 5 = 7. The answer is 7.", "7", "other"),
    ],
)
def test_the_first_class_that_applies(prediction, extracted, expected):
    assert classify(prediction, extracted, GOLD) == expected
    assert expected in CLASSES


def test_without_the_teachers_equations_only_what_needs_none_is_said():
    assert classify("3 + 4 = 8", "8", "") == "arithmetic slip"
    assert classify("3 + 4 = 7", "7", "Seven, of course.") == "other"


def test_a_choice_is_not_held_against_the_last_number():
    assert classify("3 * 4 = 12, 12 - 5 = 7. The answer is (B).", "B", GOLD, "choice") == "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7", [True]),
        ("3 + 4 = 8", [False]),
        ("3 plus 4 is 7, 9 minus 2 is 6", [True, False]),
        ("3 x 4 = 12, 3 × 4 = 13, 3 times 4 equals 12", [True, False, True]),
        ("8 ÷ 2 = 4, 8 over 2 is 5, 8 divided by 2 is 4", [True, False, True]),
        ("16 - 3 - 4 = 9 eggs", [True]),  # Not 3 - 4 = 9.
        ("2 + 3 * 4 = 14, (2 + 3) * 4 = 20, 2 + 3 * 4 = 20", [True, True, False]),
        ("80,000+50,000=$130,000", [True]),
        ("9 * 2 = $<<9*2=18>>18", [True]),
        ("3 \u2212 8 = \u22125", [True]),
        ("10 / 3 = 3.33, 2 / 3 = 0.66, 10 / 4 = 2.4, 10 / 3 = 3", [True, True, False, False]),
        ("0.5 + 0.2 = 0.8", [False]),
        ("50/60 = 5/6 of an hour, 1/2 * 8 = 4, 2 1/2 + 1 = 3.5", [True, True, True]),
        ("3 + 4 = 7 + 2 = 9, 5 + 3 = 4 + 4, 5 + 3 = 4 + 5", [True, True, True, False]),
        ("5 red pens + 3 pens = 8 pens", [True]),
        ("1. 3 + 4 = 7\n2) 7 - 2 = 5\n- 5 * 2 = 10\n* 2 + 2 = 5", [True, True, True, False]),
        ("(3 + 4 = 7) and **3 + 4 = 8**", [True, False]),
        ("3 + 4 = 7 - that is all; it is 3 + 4 = 7kg.", [True, True]),
        ("a total of 3 + 4 = 8", [False]),
    ],
)
def test_equations_and_whether_they_hold(text, expected):
    assert [equation.holds for equation in equations(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7 = 7, and 15 = 3 * 5",
        "x + 3 + 4 = 12, 2y + 3 = 7, 3x-5=16, 10 + 4 = 2y, y - 3 + 1 = 4",
        "3^2 + 1 = 10, 3**2 + 1 = 10, 4 + 5 = 3^2",
        "half of 3 + 5 = 4, twice 3 + 5 = 16, 1/2 of 3 + 5 = 4, 2 and 1/4 + 1 = 3.25",
        "10 / 50 * 100 = 20%, 50% * 20 = 10, 50 cents * 4 = $2",
        "7:15 + 52 minutes = 8:07, 16,0000 / 10 = 16000",
        "5 / 0 = 3",
        "20 -\n 5 = 15 and 3 + 4\n= 8",
        "3 + 4 =",
        "3 + 4 is more than 6",
    ],
)
def test_what_is_not_certain_is_not_judged(text):
    assert equations(text) == []


def test_operations_are_in_the_order_of_calculation_with_the_smaller_addend_first():
    (equation,) = equations("20 - (4 + 3) * 2 = 6")
    assert equation.operations == ((3, "+", 4), (2, "*", 7), (20, "-", 14))
    assert equation.result == 6


def test_no_text_is_too_long_or_too_large():
    assert equations("9 * " * 50_000 + "9 = 1") == []
    assert equations("(" * 50_000 + "1 + 1 = 2") == []
    assert equations(f"1 + {'9' * 5000} = 3") == []
    assert equations("3 + 4 = 7" + ")" * 100_000) == []
    assert len(equations("3 + 4 = 7. " * 5000)) == 5000
    assert equations("pens " * 100_000 + "= 3") == []


@given(st.text(alphabet="0123456789+-*/x×÷=().,$% \nabis of" + "plusover", max_size=80))
def test_any_text_can_be_read(text):
    assert all(equation.operations for equation in equations(text))
    assert classify(text, "1", text) in CLASSES


@given(
    st.integers(0, 999),
    st.sampled_from("+-*/"),
    st.integers(1, 999),
    st.integers(-3, 3),
)
def test_an_equation_holds_exactly_where_its_result_is_right(a, operator, b, off):
    value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[operator]
    (equation,) = equations(f"So {a} {operator} {b} = {value + off}.")
    assert equation.holds == (off == 0)
    assert equation.result == value + off


def test_the_built_in_tasks_rationales_have_no_false_equation():
    records = arithmetic.generate("test", 300, 0)
    found = [equations(record.rationale) for record in records]
    assert all(equation.holds for own in found for equation in own)
    assert sum(map(bool, found)) > 250
    # A right rationale with a wrong answer behind it.
    record = next(r for r, own in zip(records, found, strict=True) if own and own[-1].result == 20)
    text = f"{record.rationale} The answer is 21."
    assert error_analysis.classify(text, "21", record.rationale) == "wrong operand or copy"


def test_gsm8ks_solutions_seldom_have_a_false_equation(shared_data):
    """Its authors' own slips; a misreading of ours would be among them."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [equations(line) for line in lines]
    assert sum(map(len, found)) > 3500
    assert sum(not all(e.holds for e in own) for own in found) == 7
