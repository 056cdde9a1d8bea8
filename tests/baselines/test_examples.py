"""What each method makes of records, word by word."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from examples.last_step import LastStep
from kpod_jax import baselines
from kpod_jax.baselines import scott
from kpod_jax.baselines.answer_only import AnswerOnly
from kpod_jax.baselines.distilling_step_by_step import DistillingStepByStep
from kpod_jax.baselines.mcc_kd import MccKd, diverse, jaccard
from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.baselines.scott import Scott
from kpod_jax.baselines.specialized_kd import SpecializedKd
from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.data import arithmetic
from kpod_jax.utils.errors import UserError
from tests.baselines.conftest import PROMPT, RECORDS, SENTENCE, make
from tests.conftest import ROOT
from tests.tools import batch_source

DIRECT = "Q: {question} A: Let's answer directly."


def texts(training, tokenizer):
    """(what is read, what is written, what of it is learned) of every example."""
    data, found = training.tokenized, []
    for i in range(len(data)):
        target = data.targets[i]
        learned = target[data.steps[i] >= training.start_steps[i]]
        parts = (data.questions[i], target, learned)
        assert all(part[-1] == tokenizer.eos_token_id for part in parts)
        found.append(tuple(tokenizer.decode(part[:-1]) for part in parts))
    return found


def test_answer_only_learns_the_answer_alone_once_a_question(build, byte_tokenizer):
    method = make(AnswerOnly)
    training = build(method)
    six, four = "Therefore, the answer is 6.", "Therefore, the answer is 4."
    assert texts(training, byte_tokenizer) == [
        ("Q: 3 + 4, then - 1? A: Let's answer directly.", six, six),
        ("Q: 2 + 2? A: Let's answer directly.", four, four),
    ]
    assert method.prompt == DIRECT
    assert training.weights is None and training.groups is None


def test_distilling_step_by_step_has_two_tasks_whose_means_count_as_1_to_lambda(
    build, byte_tokenizer
):
    method = make(DistillingStepByStep, rationale_weight=3.0)
    training = build(method)
    read = [(question, target) for question, target, _ in texts(training, byte_tokenizer)]
    thinking = "[rationale] Q: {} A: Let's think step by step."
    assert read == [
        (
            "[label] Q: 3 + 4, then - 1? A: Let's answer directly.",
            "Therefore, the answer is 6.",
        ),
        ("[label] Q: 2 + 2? A: Let's answer directly.", "Therefore, the answer is 4."),
        (thinking.format("3 + 4, then - 1?"), "3 + 4 = 7. 7 - 1 = 6."),
        (thinking.format("3 + 4, then - 1?"), "First 7. So 6."),
        (thinking.format("2 + 2?"), "2 + 2 = 4."),
    ]
    assert method.prompt == "[label] " + DIRECT
    lengths = training.tokenized.targets.lengths
    is_label = np.array([True, True, False, False, False])
    shares = [(training.weights * lengths)[mask].sum() for mask in (is_label, ~is_label)]
    np.testing.assert_allclose(shares, [lengths.sum() / 4, lengths.sum() * 3 / 4], rtol=1e-6)
    assert len(set(training.weights[is_label])) == 1


@pytest.mark.parametrize("buckets", [1, 4])
def test_shares_hold_over_an_epoch_however_examples_are_batched(build, buckets):
    """Whatever tokens a batch has, which are more where targets are long."""
    training = build(make(Scott, "arithmetic"), arithmetic.generate("train", 12))
    source = batch_source(
        training.tokenized,
        4,
        0,
        pad_id=0,
        decoder_start_id=0,
        buckets=buckets,
        start_steps=lambda stage: training.start_steps,
        example_weights=training.weights,
    )
    assert training.tasks["factual"] == 12
    total = {True: 0.0, False: 0.0}
    for step in range(source.steps_per_epoch):
        batch = source[step]
        divided = batch["loss_weights"] / batch["divisor"][:, None]
        for row, i in enumerate(batch["index"].tolist()):
            total[i < 12] += divided[row].sum() if i >= 0 else 0
    np.testing.assert_allclose(total[True], total[False], rtol=1e-5)
    np.testing.assert_allclose(total[True] + total[False], source.steps_per_epoch, rtol=1e-5)


def test_scotts_counterfactual_rationales_are_read_and_only_their_answers_learned(
    build, byte_tokenizer
):
    records = arithmetic.generate("train", 4)
    method = make(Scott, "arithmetic")
    found = texts(build(method, records), byte_tokenizer)
    others = [other for r in records if (other := arithmetic.counterfactual(r)) is not None]
    assert len(found) == len(records) + len(others) and others
    for record, (read, target, learned) in zip(records, found, strict=False):
        assert read == "[factual] " + PROMPT.replace("{question}", record.question)
        sentence = SENTENCE.replace("{answer}", record.answer)
        assert target == learned == f"{record.rationale} {sentence}"
    for other, (read, target, learned) in zip(others, found[len(records) :], strict=True):
        assert read == "[counterfactual] " + PROMPT.replace("{question}", other.question)
        sentence = SENTENCE.replace("{answer}", other.answer)
        assert target == f"{other.rationale} {sentence}"
        assert learned == f" {other.answer}."
    assert method.prompt == "[factual] " + PROMPT
    assert "contrastive decoding needs the teacher's logits" in method.notes[0]


def test_scott_supervises_the_answer_and_eos_of_a_counterfactual_by_token(build, tmp_path):
    """A token is a byte: 10 of the rationale, 25 up to the answer, then " 5.", then EOS."""
    path = tmp_path / "counterfactuals.jsonl"
    row = {"question": "2 + 2?", "rationale": "2 + 3 = 5.", "answer": 5}
    path.write_text(json.dumps(row) + "\n")
    training = build(make(Scott, counterfactuals=str(path)), RECORDS[2:])
    source = batch_source(
        training.tokenized,
        2,
        0,
        pad_id=0,
        decoder_start_id=0,
        start_steps=lambda stage: training.start_steps,
        example_weights=training.weights,
    )
    batch = source[0]
    factual, counterfactual = (batch["index"].tolist().index(i) for i in (0, 1))
    assert np.flatnonzero(batch["supervised"][factual]).tolist() == list(range(39))
    assert np.flatnonzero(batch["supervised"][counterfactual]).tolist() == [35, 36, 37, 38]
    # 39 tokens count as much as 4, and all 43 as 43.
    weights = batch["loss_weights"]
    np.testing.assert_allclose(weights[factual][:39], 43 / 2 / 39, rtol=1e-6)
    np.testing.assert_allclose(weights[counterfactual][35:39], 43 / 2 / 4, rtol=1e-6)
    assert not weights[counterfactual][:35].any()


def test_scott_reads_a_teachers_counterfactuals(tmp_path):
    path = tmp_path / "counterfactuals.jsonl"

    def read(*rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return scott.read_counterfactuals(str(path), RECORDS, "number")

    wrong = {"question": " 2 +  2?", "rationale": "2 + 3 = 5.", "answer": 5}
    (found,) = read(wrong, wrong | {"answer": "4.0"}, wrong | {"question": "1 + 1?"})
    assert (found.question, found.answer, found.steps) == ("2 + 2?", "5", ("2 + 3 = 5.",))
    with pytest.raises(UserError, match=r"counterfactuals.jsonl:2 has no 'answer'"):
        read(wrong, {k: v for k, v in wrong.items() if k != "answer"})
    with pytest.raises(UserError, match="has the answer 'many', which is not a number"):
        read(wrong | {"answer": "many"})
    with pytest.raises(UserError, match="no rationale for a non-gold answer"):
        read(wrong | {"answer": 4})
    method = make(Scott, counterfactuals=str(path))
    read(wrong)
    assert [example.task for example in method.examples(RECORDS)] == ["factual"] * 3 + [
        "counterfactual"
    ]


def test_similarity_and_diversity_of_rationales():
    # Bigrams: {ab, bc, cd} and {bc, cd, de} share two of four.
    assert jaccard("a b c d", "b c d e", 2) == 2 / 4
    assert jaccard("a b", "a b", 3) == 1.0
    assert jaccard("a b", "a c", 3) == 0.0
    # After the first, the one unlike it; then the copy is worse than the half-like one.
    several = ["a b c d", "a b c d", "a b c e", "x y z"]
    assert diverse(several, 2, 2) == [0, 3]
    assert diverse(several, 3, 2) == [0, 2, 3]
    assert diverse(several, 9, 2) == [0, 1, 2, 3]
    assert diverse(["alone"], 2, 3) == [0]


def test_mcc_kd_groups_the_kept_rationales_of_a_question(build):
    training = build(make(MccKd))
    assert [list(group) for group in (training.groups[i] for i in range(2))] == [[0, 1], [2, 2]]
    assert training.objective.pairs
    kept = make(MccKd, diverse_rationales=2).examples(
        [r for record in arithmetic.generate("train", 3) for r in (record, record)][:2]
        + arithmetic.rationales_per_question(arithmetic.generate("train", 1)[0], 5)[1:]
    )
    assert len(kept) == 2 and kept[0].record.rationale != kept[1].record.rationale


def test_specialized_kd_shows_four_formats(build, byte_tokenizer):
    method = make(SpecializedKd, demonstrations=1)
    training = build(method)
    found = texts(training, byte_tokenizer)
    # An answer is an example once, a rationale each time.
    assert list(training.tasks.values()) == [2, 3, 2, 3]
    assert list(training.tasks) == list(method.setting.options["formats"])
    read, target, _ = found[0]
    assert read == "Q: 3 + 4, then - 1? A: Let's answer directly."
    assert target == "Therefore, the answer is 6."
    read, target, _ = found[2]
    assert read == "Q: 3 + 4, then - 1? A: Let's think step by step."
    assert target == "3 + 4 = 7. 7 - 1 = 6. Therefore, the answer is 6."
    # In context the other question comes first, solved, and never the same one.
    read, target, _ = found[5]
    assert read == (
        "Q: 2 + 2? A: Let's answer directly. Therefore, the answer is 4.\n\n"
        "Q: 3 + 4, then - 1? A: Let's answer directly."
    )
    read, target, learned = found[7]
    assert read == (
        "Q: 2 + 2? A: Let's think step by step. 2 + 2 = 4. Therefore, the answer is 4.\n\n"
        "Q: 3 + 4, then - 1? A: Let's think step by step."
    )
    assert target == learned == "3 + 4 = 7. 7 - 1 = 6. Therefore, the answer is 6."
    assert method.prompt == PROMPT


def test_specialized_kds_formats_have_their_authors_shares(build):
    """Batches of 20, 8, 10 and 2 count alike: examples by 1/20, 1/8, 1/10, 1/2, as 2, 5, 4, 20."""
    training = build(make(SpecializedKd, demonstrations=1), RECORDS[1:])
    lengths = training.tokenized.targets.lengths
    shares = (training.weights * lengths).reshape(4, 2).sum(axis=1) / lengths.sum()
    np.testing.assert_allclose(shares, [2 / 31, 5 / 31, 4 / 31, 20 / 31], rtol=1e-6)
    # Of two formats alone their part of the whole.
    formats = ("zero_shot_answer_only", "zero_shot_chain_of_thought")
    training = build(make(SpecializedKd, formats=formats), RECORDS[1:])
    lengths = training.tokenized.targets.lengths
    shares = (training.weights * lengths).reshape(2, 2).sum(axis=1) / lengths.sum()
    np.testing.assert_allclose(shares, [2 / 7, 5 / 7], rtol=1e-6)


def test_specialized_kd_leaves_out_examples_that_do_not_fit_the_prompt(build):
    method = make(SpecializedKd)
    room = len(PROMPT) + 30
    object.__setattr__(method.setting, "max_question_tokens", room)
    training = build(method, max_question_tokens=room)
    assert set(training.tasks) == {"zero_shot_answer_only", "zero_shot_chain_of_thought"}
    assert training.left_out == ()
    lengths = training.tokenized.targets.lengths
    np.testing.assert_allclose((training.weights * lengths).sum(), lengths.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", baselines.METHODS)
def test_every_method_fits_decoder_only_students_and_is_deterministic(build, name):
    records = [
        r
        for record in arithmetic.generate("train", 3)
        for r in arithmetic.rationales_per_question(record, 2)
    ]
    method = make(baselines.METHODS[name], "arithmetic")
    one, other = (build(method, records, decoder_only=True) for _ in range(2))
    np.testing.assert_array_equal(one.tokenized.targets.values, other.tokenized.targets.values)
    np.testing.assert_array_equal(one.tokenized.questions.values, other.tokenized.questions.values)
    assert one.left_out == ()
    ids = [record.id for record in one.tokenized.records]
    assert len(set(ids)) == len(ids)


def test_methods_are_those_of_the_configuration_and_their_keys_exist():
    config = defaults.get_config()
    known = [name for name in defaults.METHODS if baselines.class_of(name) is not None]
    assert known == list(baselines.METHODS)
    for method in baselines.METHODS.values():
        assert set(method.file_keys) <= set(method.keys) <= set(config.baseline)
    read = {key for method in baselines.METHODS.values() for key in method.keys}
    assert read == set(config.baseline)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("scott", {"weighting.weights": "learned"}, "weighting.weights='learned': expected unif"),
        ("scott", {"data.name": "gsm8k"}, "baseline.counterfactuals='': expected a JSONL file"),
        (
            "mcc_kd",
            {"data.rationales_per_question": 1},
            "rationales_per_question=1: expected several rat",
        ),
        (
            "mcc_kd",
            {"data.name": "gsm8k"},
            "data.rationales='': expected a teacher's file with several",
        ),
        ("mcc_kd", {"distill.batch_size": 6, "distill.micro_batches": 2}, "a multiple of 2 times"),
        (
            "mcc_kd",
            {"distill.pack_length": 512},
            "distill.pack_length=512: expected 0 for mcc_kd, whose loss",
        ),
        ("mcc_kd", {"distill.input_steps": "encoder"}, "expected 'decoder' for mcc_kd"),
        (
            "specialized_kd",
            {"distill.pack_length": 512, "baseline.distributions": "d.npz"},
            "distill.pack_length=512: expected 0 for specialized_kd",
        ),
        ("mcc_kd", {"baseline.ngram": 0}, "baseline.ngram=0: expected at least 1"),
        ("mcc_kd", {"baseline.diverse_rationales": 1}, "diverse_rationales=1: expected at least 2"),
        ("specialized_kd", {"baseline.formats": ("few",)}, "expected distinct formats from"),
        (
            "specialized_kd",
            {"baseline.formats": ("zero_shot_answer_only",)},
            "expected zero_shot_chain_of_thought to be included",
        ),
        (
            "specialized_kd",
            {"baseline.format_weights": (1.0, 0.0, 1.0, 1.0)},
            "baseline.format_weights=(1.0, 0.0, 1.0, 1.0): expected positive numbers, one for each",
        ),
        ("answer_only", {"baseline.answer_prompt": "Q"}, "baseline.answer_prompt='Q': expected"),
        ("no.such.module:Method", {}, "method='no.such.module:Method' cannot be imported"),
        (
            "json:JSONDecoder",
            {},
            "is not a subclass of kpod_jax.baselines.protocol.Method",
        ),
    ],
)
def test_faults_of_configurations_are_named(method, changes, said):
    config = defaults.apply_method(defaults.get_config(), method)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(said)):
        checks.check(config)


def test_a_method_of_ones_own(build, byte_tokenizer):
    name = "examples.last_step:LastStep"
    config = defaults.apply_method(defaults.get_config(), name)
    checks.check(config)
    assert baselines.class_of(name) is LastStep
    assert [pathlib.Path(path) for path in baselines.files(config)] == [
        ROOT / "examples/last_step.py"
    ]
    assert baselines.settings(config)["method"] == name
    found = texts(build(make(LastStep)), byte_tokenizer)
    assert [target for _, target, _ in found] == [
        "7 - 1 = 6. Therefore, the answer is 6.",
        "So 6. Therefore, the answer is 6.",
        "2 + 2 = 4. Therefore, the answer is 4.",
    ]


class Own(Method):
    """Makes what it is told."""

    made: Sequence[Example] = ()
    given: Mapping[str, float] = MappingProxyType({})

    @property
    def loss_fractions(self):
        return self.given

    def examples(self, records):
        return list(self.made)


@pytest.mark.parametrize(
    ("made", "shares", "said"),
    [
        ([], {}, "Own has no example that fits the student: it creates none"),
        ([Example(RECORDS[0], PROMPT)] * 2, {}, "Own creates two examples with the id 'a'"),
        (
            [Example(RECORDS[0].__class__("x", "q", (), "1"), PROMPT, answer_sentence=False)],
            {},
            "'x' with neither a rationale nor an answer sentence",
        ),
        (
            [Example(RECORDS[0], PROMPT, task="t")],
            {"u": 1},
            "Own.loss_fractions lacks the task 't'",
        ),
        ([Example(RECORDS[0], "Q:")], {}, "must contain {question} exactly once"),
    ],
)
def test_examples_that_are_none_are_named(build, made, shares, said):
    method = make(Own)
    method.made, method.given = made, shares
    with pytest.raises(UserError, match=re.escape(said)):
        build(method)
