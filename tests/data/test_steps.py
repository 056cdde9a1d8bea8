import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data.steps import split_steps

PIECES = st.sampled_from(
    [
        *'Tom a . . ! ? … ... 3.5 $4.20 <<48/2=24>> 。 ！ " ) - ** 5! = No.'.split(),
        *(" ", " ", "\n", "\r\n", "\u00a0", "Mr. ", "e.g. ", "1. "),
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=40)


@pytest.mark.parametrize(
    "text",
    [
        "He pays $3.50 for 2.5 pens. |So 7.",
        "Mr. Bean and Mrs. Lee have 3 cats. |Dr. Who has 1.",
        "He likes fruit, e.g. plums, i.e. sweet ones. |So 5.",
        "Well... it is 5. |So…  we go on! |Why? |Because.",
        "Now... |So it is.",
        "1. Add 2 and 3.\n|2. Take 5.\n\n|Step 3. Stop.",
        "1.\nFirst\n|2.\nSecond",
        "Natalia sold 48/2 = <<48/2=24>>24 clips.\n|She has 48.<<24+24=48>> |So 48.",
        "Is <<5! = 120>>120 it? |Yes.",
        "5! = 120 is big. |So 120.",
        "你好。|再见！|“好。”|真的？|是",
        '"Stop!" he said. |"Go." |Then he went.',
        "He is 5 ft. 3 in. tall. |At 5 p.m. he left. |At 5 p.m. |Then she came.",
        "The U.S. dollar fell. |Look at No. 5. |The answer is no. |So 5.",
        "x = 5. |y = 6. |So option B. |Done.",
        "A line\n|and another\r\n|one.  ",
        "He has 5 apples.|Then 10 pens.",
        "Find:\n|---\nSo 5.\n***\n",  # A rule is no step of its own.
        r"We get $\frac{3.5}{2} = 1.75$. |Then $x^2 = 4.$ |So \(x = 2.\) |Done.",
        r"\[ x = 5. \] |Thus \boxed{5}.",
        r"\begin{align} x &= 1. \\ y &= 2. \end{align} |So 3.",
        "第一步：3.5+4=7.5。|第二步：7.5×2=15。|答案是15。",
        "まず3個。|次に5個です。|合計8個！",
        "3.5",
        "...",
        "  \n ",
    ],
)
def test_examples(text):
    assert split_steps(text.replace("|", "")) == tuple(text.split("|"))


def test_nothing_has_no_steps():
    assert split_steps("") == split_steps("", ".") == ()


@pytest.mark.parametrize("separator", ["", ".", "\n", "###"])
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_lossless_and_no_step_is_empty(separator, text):
    steps = split_steps(text, separator)
    assert "".join(steps) == text
    assert all(steps)
    if len(steps) > 1:
        assert all(step.strip() for step in steps)


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_never_cuts_a_number_or_an_annotation_and_always_after_a_line(text):
    steps = split_steps(text)
    cuts = set()
    place = 0
    for step in steps[:-1]:
        place += len(step)
        cuts.add(place)
    for match in re.finditer(r"[0-9]+\.[0-9]+|<<[^<>\n]*>>|\.{3}", text):
        assert cuts.isdisjoint(range(match.start() + 1, match.end()))
    for step in steps:
        # No step goes on with words after a line of words.
        assert not re.search(r"[A-Za-z]{2}[^\n]*\n[^A-Za-z]*[A-Za-z]{2}", step)


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_plain_separator_is_the_papers_split(text):
    plain = [piece.strip() for piece in text.split(".")]
    steps = split_steps(text, ".")
    contents = [re.sub(r"^[\s.]+|[\s.]+$", "", step) for step in steps]
    assert [c for c in contents if c] == [p for p in plain if p]


@pytest.mark.parametrize(
    "text", ["\n ", ". ", " ", ".", "<<", ".<<1", "a. ", "(-", "1. ", "e.g. ", "!?", "'”)"]
)
def test_hostile_repetition_is_linear(text):
    # Were it quadratic, this would take minutes.
    long = text * (200_000 // len(text))
    assert "".join(split_steps(long)) == long
    assert "".join(split_steps(long, ".")) == long
