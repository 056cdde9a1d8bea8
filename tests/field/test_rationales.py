"""Other people's rationales: how they call a question, and characters that T5 does not know."""

import json
from typing import Any

import pytest

from kpod_jax.data import matching, prepare, rationales, sources, tokens
from kpod_jax.data.characters import Characters
from kpod_jax.data.records import Loaded, Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models.student import load_student
from tests.conftest import TEMPLATES

STEM = "Where would you find magazines along side many other printed works?"
CHOICES = ["doctor", "bookstore", "market", "train station", "mortuary"]
BODY = "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack"
ASK = "How much do you have to pay to buy each pack?"


def listed(form, separator=" ", letters="ABCDE"):
    return separator.join(form.format(a, b) for a, b in zip(letters, CHOICES, strict=True))


RECORDS = {
    "choice": f"{STEM} {listed('({}) {}')}",
    "svamp": f"{BODY}. {ASK}",
    "marks": "Jim’s dog eats 2½ cups — and costs $1,200.50. How many?",
    "plus": "What is 1 + 1?",
    "minus": "What is 1 - 1?",
}
FORMS = {
    "choice": [
        RECORDS["choice"],
        STEM,
        STEM.rstrip("?").upper(),
        f"{STEM}\n{listed('{}. {}', chr(10))}",
        f"{STEM}\nOptions:\n{listed('({}) {}', chr(10))}",
        f"{STEM} Answer Choices: {listed('({}) {}', letters='abcde')}",
        f"{STEM}\n{listed('{}: {}', chr(10))}",
        f"{STEM}\n{listed('{}. {}', chr(10), '12345')}",
        f"{STEM}\n{listed('({}) {}', ', ', 'abcde').replace(', (e)', ', or (e)')}",
        f"{STEM} Choices: {', '.join(CHOICES)}",
        f"{STEM} Options: {' / '.join(CHOICES)}",
        f"{STEM} {CHOICES}",
        f"Q: {STEM} A:",
        f"Question: {STEM}\nChoices:\n{listed('{}) {}', chr(10))}\nAnswer:",
        f"Q: {STEM} {listed('({}) {}')} A: Let's think step by step.",
        f"{STEM}\n- " + "\n- ".join(CHOICES),
    ],
    "svamp": [f"{BODY}, {ASK}", f"{BODY} {ASK}", f"{BODY.lower()} . {ASK.lower()}", BODY + ASK],
    "marks": [
        "Jim's dog eats 2 1/2 cups - and costs $ 1200.50.\u00a0How many?",
        "Jim&#39;s dog eats 2½ cups &mdash; and costs $1,200.50. How many?",
    ],
    "plus": ["what is 1+1"],
    "minus": ["What is 1 − 1?", "What is 1–1?"],
}


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, forms in FORMS.items() for form in forms]
)
def test_a_question_is_found_in_any_layout(name, form):
    assert matching.Questions(RECORDS.items()).find(form) == [name]


@pytest.mark.parametrize(
    "form", ["What is 1 * 1?", "What is 11?", f"{BODY.replace('25', '2.5')}. {ASK}", "", "?"]
)
def test_another_question_is_not_found(form):
    assert matching.Questions(RECORDS.items()).find(form) == []


def taught(tmp_path, rows, split="train"):
    path = tmp_path / "teacher.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [Record(f"chal-{i}", q, (), "1") for i, q in enumerate(RECORDS.values())]
    records += [Record("twin-1", "Why so?", (), "1"), Record("twin-2", "why so", (), "1")]
    loaded = Loaded(records, other_split_ids={"chal-9"}, other_split_questions=["Who is it?"])
    return rationales.apply(loaded, str(path), split, kind="number", columns={}, separator="")


GOOD = {"rationale": "So 1.", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"id": "chal-1"}, "chal-1"),
        ({"id": "chal-1", "question": f"{BODY} {ASK}"}, "chal-1"),
        ({"question": f"{BODY} {ASK}"}, "chal-1"),
        ({"id": None, "question": STEM}, "chal-0"),
        ({"id": "", "question": STEM}, "chal-0"),
        ({"id": "their-17", "question": STEM}, "chal-0"),
        ({"id": "chal-1", "Body": BODY, "Question": ASK}, "chal-1"),
        ({"Body": BODY, "Question": ASK}, "chal-1"),
        ({"question": {"stem": STEM, "choices": []}}, "chal-0"),
        ({"id": "twin-2", "question": "Why so?"}, "twin-2"),
    ],
)
def test_a_row_needs_an_id_or_a_question(tmp_path, row, found):
    result = taught(tmp_path, [row | GOOD])
    assert [record.id for record in result.records] == [found]
    assert result.broken == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Why so?"}, "has the question of several records: twin-1, twin-2"),
        ({"id": "chal-1", "question": STEM}, "has the id of chal-1, but another question"),
        ({"id": "other"}, "has the id 'other', which no record has"),
        ({"question": "What?"}, "has the question 'What?', which no record has"),
    ],
)
def test_a_row_of_no_record_or_several_is_broken(tmp_path, row, reason):
    result = taught(tmp_path, [row | GOOD])
    assert (result.records, [bad.reason for bad in result.broken]) == (
        [],
        [f"{tmp_path / 'teacher.jsonl'}:1 {reason}"],
    )


def test_one_line_counts_the_matches(tmp_path):
    rows = [
        {"id": "chal-1", "question": BODY + ASK},
        {"id": "chal-2"},
        {"question": "What is 1+1"},
        {"question": "who is it"},  # Of another split.
        {"id": "chal-9"},
        {"id": "nobody"},
        {"id": "chal-3", "question": "what is 1 + 1", "rationale": ""},
    ]
    result = taught(tmp_path, [GOOD | row for row in rows])
    assert result.notes == [
        f"7 rationales in {tmp_path / 'teacher.jsonl'}: matched to questions 2 by id and text, "
        "1 by id alone, 1 by text alone; 2 of other splits; 1 not matched"
    ]


def test_every_svamp_rationale_finds_its_question(shared_data, tmp_path):
    notes = []
    records, rejected = sources.load_records(
        "svamp",
        "train",
        path=str(shared_data / "svamp"),
        cache_dir=str(tmp_path),
        rationales=str(shared_data / "svamp/rationales.jsonl"),
        rationales_per_question=0,
        notes=notes,
    )
    assert len(records) == 1280
    assert {bad.reason.split(" has ")[1] for bad in rejected} == {"no usable rationale for it"}
    assert "1280 by id and text" in notes[0] and "0 not matched" in notes[0]


@pytest.fixture(scope="module")
def t5(shared_data):
    return load_tokenizer(str(shared_data / "tokenizers/t5_spiece.model"))


REWRITTEN = [
    ("6 ÷ 2 × 3 − 1 = 8", "6 / 2 * 3 - 1 = 8"),
    ("½ of 2½ cups", "1/2 of 2 1/2 cups"),
    ("10/3 ≈ 3.33 and ~5 min", "10/3 = about 3.33 and about 5 min"),
    ("√16 = 4, 5² = 25, x^2", "sqrt 16 = 4, 5**2 = 25, x**2"),
    ("{1, 2}", "(1, 2)"),
    ("3 < 4, 20<30, 5 <= 6 ≤ 7, 2 < x", None),
    (r"\(\frac{1}{2} \times 48 = \boxed{24}\)", "1/2 * 48 = 24"),
    (r"\frac{\text{all}}{2} \div 3, \$5, 5\%", "all/2 / 3, $5, 5%"),
    ("Nguye\u0302\u0303n, Nguyễn, ñandú, ā", "Nguyen, Nguyen, nandu, a"),
    ("`x`, 50¢, a → b", "'x', 50 cents, a -> b"),
    ("“Tom’s” …\u00a0it—is é", "“Tom’s” …\u00a0it—is é"),
    ("plain 1 + 2\n= 3", "plain 1 + 2\n= 3"),
]


@pytest.mark.parametrize(("text", "expected"), REWRITTEN)
def test_characters_that_t5_lacks_become_equal_ones(t5, text, expected):
    characters = Characters(t5)
    found = characters.rewrite(text)
    if expected is not None:
        assert found == expected
    assert characters.unknown(found) == set()
    assert t5.unk_token_id not in t5(found).input_ids
    assert characters.rewrite(found) == found


@pytest.mark.parametrize("text", ["<<48/2=24>>", "a <b> c", "漢字 😀", r"\foo"])
def test_characters_without_an_equal_stay_and_are_counted(t5, text):
    characters = Characters(t5)
    assert characters.rewrite(text) == text
    assert characters.unknown(text) == {c for c in text if c in "<漢字😀\\"}


def test_a_tokenizer_that_knows_all_changes_nothing(shared_data):
    characters = Characters(load_tokenizer(str(shared_data / "tokenizers/llama_tokenizer.model")))
    for text, _ in REWRITTEN:
        assert characters.rewrite(text) is text
        assert characters.unknown(text) == set()


def test_records_and_prompts_are_rewritten_alike(t5):
    record = Record("a", "Is 6 ÷ 2 = 3?", ("6 ÷ 2 ≈ 3. ", "So ½."), "½", ((2, 3),), (1.0, 2.0))
    limits: Any = {"max_question_tokens": 99, "max_target_tokens": 99}
    tokenized, rejected = tokens.tokenize([record], t5, **TEMPLATES, **limits)
    assert rejected == []
    assert tokenized.records == (
        Record("a", "Is 6 / 2 = 3?", ("6 / 2 = about 3. ", "So 1/2."), "1/2", None, (1.0, 2.0)),
    )
    prompts = tokens.tokenize_questions([record], t5, prompt=TEMPLATES["prompt"])
    assert prompts[0].tolist() == tokenized.questions[0].tolist()
    spans = tokenized.rationale_char_spans[0]
    text = "".join(tokenized.records[0].rationale[a:b] for a, b in spans)
    assert text == "6/2=about3.So1/2."


@pytest.mark.parametrize("reject", [False, True])
def test_unknown_characters_are_told_and_rejected(shared_data, tmp_path, reject):
    from kpod_jax.config.defaults import get_config

    rows = [
        {"question": "Why ÷?", "rationale": "It is 漢 5.", "answer": "5", "id": "a"},
        {"question": "Why 1?", "rationale": "It is × 5.", "answer": "5", "id": "b"},
        {"question": "Why 2?", "rationale": "It is 5.", "answer": "5", "id": "c"},
    ]
    for split, part in (("train", rows), ("validation", rows[1:2]), ("test", rows[2:])):
        lines = [json.dumps(row | {"question": f"{split} {row['question']}"}) for row in part]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = get_config().data
    data.name, data.path, data.reject_unknown_characters = "jsonl", str(tmp_path), reject
    student = load_student(
        "kpod_jax/assets/tiny_t5",
        init="random",
        tokenizer=str(shared_data / "tokenizers/t5_spiece.model"),
        with_tokenizer=False,
    )
    object.__setattr__(student, "tokenizer", load_tokenizer(student.settings.tokenizer))
    prepared = prepare.prepare_data(data, student)
    assert [r.id for r in prepared.records("train")] == (["b", "c"] if reject else ["a", "b", "c"])
    assert prepared.records("validation")[0].rationale == "It is * 5."
    assert [bad["reason"] for bad in prepared.rejected] == (
        ["the tokenizer does not know its characters '漢'"] if reject else []
    )
    (note,) = prepared.notes
    assert note.startswith("1 of 5 rationales and 0 of 5 questions hold characters that the ")
    assert "('漢' in 1)" in note
    assert "in 2 rationales and 1 questions all such characters were rewritten" in note
