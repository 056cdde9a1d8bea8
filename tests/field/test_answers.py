"""Answers as people, teachers and students write them, and the values that they mean."""

import json
import pathlib
import sys

import pytest

from kpod_jax.data import answers, commonsense_qa, mathematics
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
    assert (
        answers.extract_answer(rf"We get $\boxed{{{text}}}$ in the end, after 3 days.") == expected
    )
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
        ("The answer is 20% of 50 = 10.", "10"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72.", "72"),
        ("12 apples", "12"),
        ("9 (apples)", "9"),
        ("$1,200 per month", "1200"),
        ("60 km/h", "60"),
        (" +5 ", "5"),
        (r"$\frac{1}{2}$", "1/2"),
        (r"\boxed{72}", "72"),
        ("**72**", "72"),
        ("-0", "0"),
    ],
)
def test_more_numbers_are_gold_answers(text, expected):
    assert answers.parse_gold(text) == expected == answers.extract_answer(text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            ("number", text)
            for text in (
                "Paris", "NaN", "nan", "None", "null", "Infinity", "-inf", "1e999999999", "1/0", "",
                " ", "-", "$", "N/A", "?", "x2", "3\\pi", "2√3", "\\sqrt{2}", "x = 5", "3 or 4",
                "3-4", "3, 4", "3 + 4 = 7", "between 3 and 4", "9" * 41, "12/25/2023", "1.2.3.4",
                "He has 3. So 3 + 4 = 7.", "The answer is 72.", "so 9 in all\n#### 72", "(3, 4)",
                "0x1F", "5 feet 3 inches", "12 apples and 3 pears", "three", "[5]",
            )
        ),
        *(
            ("choice", text)
            for text in ("bank", "a bank", "", "K", "AB", "3", "Because", "e.g. x", "A\nB", "1")
        ),
        *(("yes_no", text) for text in ("maybe", "", "yes and no", "1", "no cars", "None")),
        *(("text", text) for text in ("", " ", "\n", "...", "two\nlines", "long " * 50)),
        *(
            ("math", text)
            for text in (
                "", "Paris", "So we get the sum of both", "\\frac{", "(" * 100, "9999999!",
                "10^{10^{10}}", "1 + " * 200 + "1",
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_answer_of_its_kind_is_no_gold_answer(kind, text):
    with pytest.raises(ValueError, match=r"^has the answer .*, which is not .*; expected "):
        answers.parse_gold(text, kind)


@pytest.mark.parametrize(
    ("kind", "text", "question", "expected"),
    [
        ("choice", "B", "", "B"),
        ("choice", "(b)", "", "B"),
        ("choice", "B. library", "", "B"),
        ("choice", "J", "", "J"),
        ("choice", "I", "", "I"),
        ("choice", "Library", "Where? (A) bank (B) library", "B"),
        ("choice", "Library", "Where?\nA. bank\nB. library", "B"),
        ("yes_no", "Yes", "", "yes"),
        ("yes_no", "FALSE", "", "no"),
        ("text", " The  Beatles! ", "", "beatles"),
        ("text", "St. Louis", "", "st. louis"),
        ("text", "ＮＡＳＡ", "", "nasa"),
        ("math", r"$3\pi$", "", r"3\pi"),
        ("math", "x^2 + 1", "", "x^2 + 1"),
        ("math", r"\text{Evelyn}", "", r"\text{Evelyn}"),
        ("math", "(1, 2]", "", "(1, 2]"),
    ],
)
def test_gold_answers_of_other_kinds(kind, text, question, expected):
    assert answers.parse_gold(text, kind, question) == expected
    assert answers.answers_equal(f"I see. The answer is {text}.", text, kind, question)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        (r"The answer is $3\pi$.", "3", False),
        (r"The answer is $3\pi$.", r"\pi \cdot 3", True),
        (r"so \boxed{\frac{1}{2}}", "0.5", True),
        ("The answer is 5 apples.", "5", True),
        (r"Hence $(x+1)^2$. The answer is $x^2 + 2x + 1$.", "(x+1)^2", True),
        (r"$a = 3$, so finally $b = 4$", "4", True),
        (r"The answer is \(2\sqrt{2}\).", r"\sqrt{8}", True),
        ("The answer is x = 5.", "5", True),
        (r"\boxed{(1, 2]}", "(1,2)", False),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", True),
        ("I do not know.", "5", False),
        (r"\boxed{10^{10^{10}}}", "5", False),
    ],
)
def test_math_is_compared_as_symbols(prediction, gold, expected):
    assert answers.answers_equal(prediction, gold, "math") is expected


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("Therefore, the answer is Paris. It is in France.", "paris", True),
        ("The answer is the Eiffel Tower.", "Eiffel tower", True),
        ("The answer is St. Louis.", "St. Louis", True),
        ("Paris", "Paris", True),
        ("Answer: **J. K. Rowling**", "J. K. Rowling", True),
        (r"\boxed{\text{Paris}}", "Paris", True),
        ("The answer is not Paris but Rome.", "Paris", False),
        ("First Paris.\nThen Rome.", "Rome", False),
        ("The answer is “Don’t stop”.", "don't stop", True),
    ],
)
def test_text_is_compared_without_case_and_marks(prediction, gold, expected):
    assert answers.answers_equal(prediction, gold, "text") is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, since there are no cars.", "yes"),
        ("That is not true.", "no"),
        ("The answer is no, not yes.", "no"),
        ("So no, as there is no rain.", "no"),
        ("**Final answer: True**", "yes"),
        (r"\boxed{\text{No}}", "no"),
    ],
)
def test_yes_and_no(text, expected):
    assert answers.extract_answer(text, "yes_no") == expected


@pytest.mark.parametrize("name", ["explanations", "explanations_text"])
def test_explanations_are_read_as_they_are_meant(shared_data, name):
    forms = (pathlib.Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    lines = (shared_data / "samples/commonsense_qa.jsonl").read_text(encoding="utf-8").splitlines()
    wrong = []
    for line in lines:
        row = json.loads(line)
        question, letter = commonsense_qa.parse(row)["question"], row["answerKey"]
        texts = dict(zip("ABCDE", row["choices"]["text"], strict=True))
        others = [other for other in "ABCDE" if other != letter]
        fields = {"L": letter, "l": letter.lower(), "t": texts[letter]}
        fields |= dict(zip("WVU", others, strict=False))
        fields |= {name: texts[other] for name, other in zip("wv", others, strict=False)}
        for form in forms:
            text = form.replace("\\n", "\n")
            for field, value in fields.items():
                text = text.replace(f"{{{field}}}", value)
            if name == "explanations" and answers.extract_answer(text, "choice") != letter:
                wrong.append(text)
            if not answers.answers_equal(text, letter, "choice", question):
                wrong.append(text)
    assert len(wrong) <= 0.01 * len(lines) * len(forms), wrong


@pytest.mark.parametrize(
    ("prediction", "gold", "question", "expected"),
    [
        ("The answer is bank", "(A) bank", "", True),
        ("The answer is the bank, as money is there.", "(A) bank", "", True),
        ("The answer is bank.", "A", "Where? (A) bank (B) library", True),
        ("The answer is bank robbery.", "(A) bank", "", False),
        ("The answer is library.", "A", "Where? (A) bank (B) library", False),
        ("It is a money bank.", "B", "What? (A) money (B) money bank", True),
        ("(A)", "bank", "Where? (A) bank (B) library", True),
        ("So a library is best.", "library", "Where?\nA) bank\nB) library", True),
        ("I take vitamin C at the bank (A).", "A", "", True),
    ],
)  # fmt: skip
def test_choices_are_equal_by_letter_and_by_text(prediction, gold, question, expected):
    assert answers.answers_equal(prediction, gold, "choice", question) is expected


def test_equal_answers_are_one():
    extracted = ["3", "1/2", "0.5", None, "2", "0.50"]
    assert answers.by_value(extracted) == ["3", "1/2", "1/2", None, "2", "1/2"]
    assert answers.by_value([r"\frac{1}{2}", "3", "0.5"], "math") == [
        r"\frac{1}{2}",
        "3",
        r"\frac{1}{2}",
    ]
    assert answers.by_value(["B", "bank", "a bank"], "choice") == ["B", "bank", "bank"]


def ends_alike(prediction, gold):
    """A judge of one's own."""
    if gold == "boom":
        raise KeyError(gold)
    return prediction.endswith(gold)


def test_a_judge_of_ones_own_gets_the_whole_text():
    kind = f"{__name__}:ends_alike"
    assert answers.answers_equal("The answer is\nx.", "\nx.", kind)
    assert not answers.answers_equal("y", "x", kind)
    assert answers.parse_gold(" f(x) ", kind) == "f(x)"
    assert answers.extract_answer("so\nf(x)", kind) == "so\nf(x)"
    with pytest.raises(UserError, match=r"ends_alike' failed on .*KeyError"):
        answers.answers_equal("y", "boom", kind)
    with pytest.raises(UserError, match="cannot be imported"):
        answers.answers_equal("y", "x", "no_such_module:judge")
    with pytest.raises(UserError, match="is not a function"):
        answers.answers_equal("y", "x", f"{__name__}:BARE")


def test_math_names_its_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    mathematics.require.cache_clear()
    with pytest.raises(UserError, match="pip install math-verify"):
        answers.extract_answer("5", "math")


@pytest.mark.parametrize("name", ["gsm8k", "svamp"])
def test_published_gold_answers_are_gold_answers(shared_data, name):
    golds = [
        json.loads(line)["answer"]
        for line in (shared_data / name / "rationales.jsonl").open(encoding="utf-8")
    ]
    for gold in golds:
        assert answers.answers_equal(gold, answers.parse_gold(gold))
