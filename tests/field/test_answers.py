"""Answers as people, teachers and students write them, and the values that they mean."""

import json
import pathlib

import pytest

from kpod_jax.data import answers, commonsense_qa
from kpod_jax.utils.errors import UserError

BARE = [
    # Thousands: thin, narrow, no-break, figure and plain spaces; other countries' marks.
    ("1 234 567", "1234567"),
    ("1\u2009234\u2009567", "1234567"),
    ("1\u202f234,50 €", "1234.5"),
    ("1\u00a0234\u00a0567.5", "1234567.5"),
    ("12\u2007345", "12345"),
    (r"1{,}234{,}567", "1234567"),
    (r"1\,234\,567", "1234567"),
    (r"12\!,345", "12345"),
    ("1.234,56", "1234.56"),
    ("1.234.567", "1234567"),
    ("12,34,567", "1234567"),
    ("1'234'567", "1234567"),
    ("1_000_000", "1000000"),
    ("3,5 km", "3.5"),
    ("0,125", "0.125"),
    ("12,50 €", "12.5"),
    ("1,234", "1234"),
    ("1.234", "1.234"),
    # Times.
    ("2:00", "2"),
    ("2:00 PM", "2"),
    ("2:30", "2.5"),
    ("10:15:00", "10.25"),
    # Fractions.
    ("½", "1/2"),
    ("⅔", "2/3"),
    ("2½ cups", "5/2"),
    ("2 ½", "5/2"),
    ("-¾", "-3/4"),
    ("1 1/2", "3/2"),
    ("1 and 1/2", "3/2"),
    ("3 and a half hours", "3.5"),
    ("3⁄4", "3/4"),
    (r"\frac34", "3/4"),
    (r"\dfrac{3}{4}", "3/4"),
    (r"\tfrac{3}{4}", "3/4"),
    (r"\frac{3}4", "3/4"),
    (r"\frac{1,200}{7}", "1200/7"),
    (r"-\frac{3}{4}", "-3/4"),
    (r"1\frac{1}{2}", "3/2"),
    (r"1\,\dfrac{1}{2}", "3/2"),
    # Powers.
    ("1.5 x 10^3", "1500"),
    ("1.5 × 10³", "1500"),
    ("1.5 × 10⁻³", "0.0015"),
    (r"1.5 \times 10^{3}", "1500"),
    (r"1.5\cdot10^{-3}", "0.0015"),
    ("1.5 * 10**3", "1500"),
    ("1.5e3", "1500"),
    ("10^6", "1000000"),
    ("2^5", "32"),
    # Words of scale.
    ("$1.2 million", "1200000"),
    ("1.2 Million dollars", "1200000"),
    ("$1.2M", "1200000"),
    ("$3bn", "3000000000"),
    ("5k", "5000"),
    ("3 dozen", "36"),
    ("2.5 dozens", "30"),
    ("1/2 a dozen", "6"),
    ("5 hundred", "500"),
    ("2 hundred thousand", "200000"),
    ("3 lakh", "300000"),
    # Percents and units; a unit's exponent is no number.
    ("25%", "25"),
    ("25 percent", "25"),
    ("25 per cent", "25"),
    (r"25\%", "25"),
    ("12 m^2", "12"),
    ("12 m²", "12"),
    ("12 m2", "12"),
    ("12 m**2", "12"),
    (r"12\text{ cm}^2", "12"),
    (r"12\ \mathrm{m}^{-2}", "12"),
    ("9.8 m/s^2", "9.8"),
    (r"90^\circ", "90"),
    ("-30 °C", "-30"),
    ("12 square meters", "12"),
    # Digits and signs of other keyboards.
    ("１２３", "123"),
    ("￥１，２００", "1200"),
    ("１２．５％", "12.5"),
    ("٣٤", "34"),
    ("–5", "-5"),
    ("−5", "-5"),
    ("‑5", "-5"),
    ("－５", "-5"),
    ("-$1,200.50", "-1200.5"),
    ("negative 5", "-5"),
    ("US$5", "5"),
    ("USD 5", "5"),
    ("₹500", "500"),
    ("€ 5", "5"),
    (r"\$1,200", "1200"),
]


@pytest.mark.parametrize(("text", "expected"), BARE)
def test_a_number_is_read_and_is_a_gold_answer(text, expected):
    assert answers.parse_gold(text) == expected
    assert answers.extract_answer(text) == expected
    assert answers.extract_answer(f"He had 7. Therefore, the answer is {text}.") == expected
    assert answers.extract_answer(rf"So we get $\boxed{{{text}}}$ in the end, after 3 days.") == expected
    assert answers.answers_equal(f"#### {text}", expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Turned down.
        ("The answer is 42, not 43.", "42"),
        ("The answer is not 43 but 42.", "42"),
        ("So there are 42 apples, not 43.", "42"),
        ("So it is 42 rather than 43.", "42"),
        ("The answer is 42. It isn't 43.", "42"),
        ("The answer is 42. The answer is not 43.", "42"),
        ("It is 42 instead of $43.", "42"),
        # No single number.
        ("The answer is between 3 and 4.", None),
        ("The answer is 3 or 4.", None),
        ("The answer is 3-4.", None),
        ("The answer is 3–4 apples.", None),
        ("The answer is 3 to 4 apples.", None),
        ("The answer is 3, 4 and 5.", None),
        ("The answer is 5 feet 3 inches.", None),
        ("The answer is 3 dollars and 50 cents.", None),
        ("The answer is 3 + 4.", None),
        ("The answer is 1/2 or 0.5.", "1/2"),
        ("The number lies between 3 and 4", None),
        ("The difference between 8 and 3 is 5.", "5"),
        (r"The answer is $3\pi$.", None),
        (r"\boxed{2\sqrt{3}}", None),
        (r"\boxed{\frac{\pi}{2}}", None),
        ("The answer is √2.", None),
        # Calculations and explanations.
        ("The answer is 3 + 4 = 7.", "7"),
        ("The answer is 7 = 3 + 4.", "7"),
        ("The answer is 7 (3 + 4 = 7).", "7"),
        ("The answer is 7, since 2 * 5 = 10 and 10 - 3 = 7.", "7"),
        ("The answer is 12, which is more than 2 * 5 = 10.", "12"),
        ("The answer is 3 apples x $4 = $12.", "12"),
        (r"the answer is $5 \times 4 = 20$", "20"),
        (r"\boxed{x = 5}", "5"),
        ("The answer is 9 of the 10.", "9"),
        # Where it is announced.
        ("The answer is 5 apples? Wait.\n\\boxed{6}", "6"),
        ("The answer is 5 at first.\n**Final Answer:** 6 apples", "6"),
        ("**Final Answer**\n\n42\n", "42"),
        ("## Answer\n42", "42"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"$$\boxed{\text{12 apples}}$$ as 3 * 4 = 12, 5 less.", "12"),
        (r"\boxed {\dfrac{3}{4}} of 8", "3/4"),
        ("<think>\\boxed{3}?</think>So it is 4.", "4"),
        ("9 in 3\n<answer>72</answer>\nand 5", "72"),
        ('{"answer": "42", "confidence": 1}', "42"),
        ("My answer would be 6.", "6"),
        ("The answer to the second question is 6.", "6"),
        ("#### Step 1\nHe has 3.\n#### Step 2\nSo he has 8.", "8"),
        ("Answer: Tom has 3 apples. He buys 4 more. So he has 7.", "7"),
        ("Answer: 9. Explanation: 3 * 3 makes it.", "9"),
        # A unit's exponent and names are no numbers.
        ("The area is 12 m^2", "12"),
        ("The area is 12 m² of CO2.", "12"),
    ],
)
def test_which_number_wins(text, expected):
    assert answers.extract_answer(text) == expected
    assert expected is None or answers.answers_equal(text, expected)


@pytest.mark.parametrize(
    ("text", "gold", "question", "expected"),
    [
        ("The answer is 3 dozen.", "36", "How many eggs?", True),
        ("The answer is 3 dozen.", "3", "How many eggs?", False),
        ("The answer is 3 dozen.", "3", "How many dozens of eggs?", True),
        ("= $4 million left", "4", "It has $32 million. What is left?", True),
        ("= $2k per month", "2", "He has a mortgage of $280k. What is due?", True),
        ("25 percent", "25%", "", True),
        ("½", "0.5", "", True),
        ("1 234", "1,234", "", True),
    ],
)
def test_numbers_are_equal_by_value_and_by_the_questions_unit(text, gold, question, expected):
    assert answers.answers_equal(text, gold, question=question) is expected
