import json
import string
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data import answers
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Money, thousands, zeros, signs, units.
        ("$1,234.50", "1234.5"),
        ("1,000,000.25", "1000000.25"),
        ("3.0", "3"),
        ("3.0 = 3", "3"),
        ("half a dozen", None),
        ("The answer is half a dozen", None),
        ("The answer is 12 km/h.", "12"),
        ("#### 1,200 dollars", "1200"),
        ("50 percent", "50"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-3", "-3"),
        ("\u22123", "-3"),
        ("-0", "0"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$5.", "5"),
        ("12 apples", "12"),
        ("25kg", "25"),
        ("50%", "50"),
        ("5-3", "3"),
        ("1e3", "1000"),
        ("2.5e-1", "0.25"),
        ("12\u00a0dollars", "12"),
        # Fractions.
        ("1/2", "1/2"),
        ("2/4", "1/2"),
        ("4/2", "2"),
        ("-1/2", "-1/2"),
        ("1\u20442", "1/2"),
        ("2 1/2 cups", "5/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac{-3}{6}", "-1/2"),
        # Where it stands.
        ("Therefore, the answer is 72.", "72"),
        ("THE FINAL ANSWER IS: **1,000**", "1000"),
        ("The answer is 5. No, the answer is 6.", "6"),
        ("The answer is 3.5. Then 4 more.", "3.5"),
        ("The answer is 4.\nQ: How many are 5 and 6?", "4"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("The answer is x = 3", "3"),
        ("so 9 in all\n#### 72", "72"),
        ("#### 1,234\nnext 5", "1234"),
        (r"thus \boxed{72}, not 5", "72"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"the answer is $\boxed{18}$.", "18"),
        (r"\$18", "18"),
        (r"1{,}234", "1234"),
        ("Answer: 9 of 10", "9"),
        ("**Answer:** 9", "9"),
        ("He has 3 and then 8 apples left.", "8"),
        # None.
        ("", None),
        ("no number", None),
        ("I had 5, and the answer is", None),
        ("the answer is unknown", None),
        ("1/0", None),
        ("x2", None),
        ("9" * 41, None),
        ("1e31", None),
        ("__import__('os').getcwd()", None),
        ("the answer is 2**3", "2"),
    ],
)
def test_numbers(text, expected):
    assert answers.extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(B)", "B"),
        ("b", "B"),
        ("**B**", "B"),
        ("a) bank", "A"),
        ("Option C", "C"),
        ("The answer is (B) bank.", "B"),
        ("The answer is B. bank", "B"),
        (r"The answer is \boxed{E}", "E"),
        (r"The answer is $\boxed{\text{(E)}}$.", "E"),
        ("Answer: D", "D"),
        ("Not (A).\nIt must be (C), as banks hold money.", "C"),
        ("The answer is a bank.", "a bank"),
        ("The answer is  Bank  of England!", "bank of england"),
        ("Believe me", "believe me"),
        ("First this.\nThen that.", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_choices(text, expected):
    assert answers.extract_answer(text, "choice") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("The answer is no.", "no"),
        ("TRUE", "yes"),
        ("The answer is false, not true", "no"),
        ("Yes, at first. But no.", "no"),
        ("The answer is yes. No doubt.", "yes"),
        ("yesterday I did not know", None),
        ("Yes, but the answer is unknown", None),
    ],
)
def test_yes_no(text, expected):
    assert answers.extract_answer(text, "yes_no") == expected


@pytest.mark.parametrize(
    ("a", "b", "kind", "expected"),
    [
        ("0.5", "1/2", "number", True),
        ("2/4", "$0.50", "number", True),
        ("1,000", "1000.0", "number", True),
        ("0.33", "1/3", "number", False),
        ("3", "-3", "number", False),
        ("0.1", "0.10000000000000001", "number", False),
        ("none", "none", "number", False),
        (None, "3", "number", False),
        (None, None, "number", False),
        ("(B) bank", "B", "choice", True),
        ("(B) bank", "Bank.", "choice", True),
        ("bank", "(B) bank", "choice", True),
        ("(B) 5", "5", "choice", True),
        ("(B) bank", "(C) bank", "choice", False),
        ("B", "bank", "choice", False),
        ("", "", "choice", False),
        ("Yes", "true", "yes_no", True),
        ("Yes", "no", "yes_no", False),
    ],
)
def test_equality(a, b, kind, expected):
    assert answers.answers_equal(a, b, kind) is expected
    assert answers.answers_equal(b, a, kind) is expected


@given(st.text(string.printable + "\\{}$−⁄", max_size=60), st.sampled_from(answers.KINDS))
@settings(deadline=None)
def test_any_text_has_an_answer_or_none_and_a_canonical_one_stays(text, kind):
    answer = answers.extract_answer(text, kind)
    if answer is not None and (kind != "choice" or answer.isupper()):
        assert answers.extract_answer(answer, kind) == answer
        assert answers.answers_equal(text, answer, kind)


@given(st.fractions(max_denominator=1000))
@settings(deadline=None)
def test_a_fraction_is_read_as_it_is_written(value):
    text = f"so we get 7. Therefore, the answer is {value} dollars."
    assert answers.extract_answer(text) == str(value)


@given(st.decimals(-(10**9), 10**9, places=3))
@settings(deadline=None)
def test_a_decimal_is_read_with_its_thousands(value):
    answer = answers.extract_answer(f"The answer is ${value:,}.")
    assert answer is not None and Fraction(answer) == Fraction(value)


# Each of these makes a pattern that is quadratic, or an integer that is huge, take hours.
_HOSTILE = r"""
from kpod_jax.data import answers
size = 50_000
texts = (
    "1" * size + ",111" * size + "1 " + "1/" * size + "1e" + "9" * size + "\\frac{" * size,
    "the answer is " * size + "\\boxed{" * size + "the " * size + "answer" + " " * size,
    "not 5 " * size + "1:00:" * size + "1 234 " * size + "2^" * size + "<think>" * size,
    "(A) no, " * size + "A and " * size + "a b c " * size + "unlike a b " * size,
    "-$" * size + "(A" * size + "\n" * size + "." * size + " " * size + "_" * size,
)
for kind in answers.KINDS:
    for text in texts:
        answers.extract_answer(text, kind)
        answers.answers_equal(text, "1", kind)
"""


def test_hostile_text_costs_a_pass():
    # The limit is no measurement: a pass takes seconds, and nothing can interrupt a pattern but
    # the end of its process.
    command = [sys.executable, "-c", _HOSTILE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["test.jsonl", "rationales.jsonl"])
def test_gold_answers_of_gsm8k_are_all_read(shared_data, name):
    read = 0
    with (shared_data / "gsm8k" / name).open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            rationale, gold = record.get("rationale"), record["answer"]
            if rationale is None:
                rationale, _, gold = gold.rpartition("####")
            answer = answers.extract_answer(f"{rationale} Therefore, the answer is {gold.strip()}.")
            assert answer == gold.strip().replace(",", ""), record
            assert answers.extract_answer(record["answer"]) == answer
            read += 1
    assert read == {"test.jsonl": 1319, "rationales.jsonl": 6974}[name]


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="'float'; expected one of number, choice, yes_no"):
        answers.extract_answer("1", "float")
    with pytest.raises(UserError, match="'float'"):
        answers.answers_equal(None, "1", "float")
