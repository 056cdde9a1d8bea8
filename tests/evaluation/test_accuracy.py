import types

import numpy as np
import pytest

from kpod_jax.data.records import Ragged, Record
from kpod_jax.evaluation import accuracy
from kpod_jax.evaluation.generation import Sampling
from kpod_jax.parallel import sharding

RECORDS = [Record(f"r{i}", f"question {i}", ("a step.",), str(i)) for i in range(5)]


class Echo:
    """Generates the question's first token, but a wrong one for question 3."""

    def __init__(self, student, mesh, start_id, *, max_new_tokens, **options):
        self.size = max_new_tokens

    def __call__(self, params, prompts, *, samples, progress):
        progress(len(prompts) * samples)
        first = np.array([77 if prompt[0] == 3 else prompt[0] for prompt in prompts])
        # Of several samples the first is wrong.
        found = first[:, None] + np.where(np.arange(samples) < samples - 2, 50, 0)
        return np.broadcast_to(found[:, :, None], (*found.shape, self.size))


@pytest.fixture
def make_evaluator(monkeypatch):
    # Questions of different lengths, so that batches take them out of their order.
    lengths = [20, 3, 12, 30, 5]
    questions = Ragged.from_list([[i] * n for i, n in enumerate(lengths)], np.int32)
    monkeypatch.setattr(accuracy, "Generator", Echo)
    monkeypatch.setattr(accuracy.tokens, "tokenize_questions", lambda *a, **k: questions)
    tokenizer = types.SimpleNamespace(
        pad_token_id=99,
        batch_decode=lambda rows, skip_special_tokens: [
            f" Step 1. Therefore, the answer is {row[0]}." for row in rows
        ],
    )
    student = types.SimpleNamespace(
        tokenizer=tokenizer, decoder_only=False, decoder_start=lambda prompt: 0
    )

    def make(**options):
        return accuracy.Evaluator(
            student,  # pyright: ignore[reportArgumentType]
            RECORDS,
            sharding.make_mesh(8),
            prompt="Q: {question}",
            answer_kind="number",
            batch_size=8,
            max_new_tokens=4,
            **options,
        )

    return make


def test_predictions_are_in_the_order_of_the_records(make_evaluator):
    evaluator, done = make_evaluator(), []
    rows = evaluator.predictions(None, done.append)
    assert [row["id"] for row in rows] == [record.id for record in RECORDS]
    assert [row["extracted"] for row in rows] == ["0", "1", "2", "77", "4"]
    assert [row["gold"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["correct"] for row in rows] == [True, True, True, False, True]
    assert rows[1]["prediction"] == "Step 1. Therefore, the answer is 1."
    assert sum(done) == 5
    assert evaluator.accuracy(None) == 0.8


def test_the_answer_of_most_samples_counts(make_evaluator):
    rows = make_evaluator(sampling=Sampling(samples=3)).predictions(None)
    assert [row["extracted"] for row in rows] == ["0", "1", "2", "77", "4"]
    assert rows[1]["prediction"] == "Step 1. Therefore, the answer is 1."
    assert [sample["extracted"] for sample in rows[1]["samples"]] == ["51", "1", "1"]


def test_samples_vote_by_value(make_evaluator):
    row = make_evaluator()._row(
        Record("r", "How much?", (), "0.5"),
        ["The answer is 3.", "The answer is 3.", "The answer is 1/2.", "0.5", "It is 50/100"],
    )
    assert (row["extracted"], row["correct"]) == ("1/2", True)
    assert [sample["extracted"] for sample in row["samples"]] == ["3", "3", "1/2", "1/2", "1/2"]
    assert accuracy.summary([row])["agreement"] == pytest.approx(3 / 5)


def test_wrong_answers_have_the_class_of_their_error(make_evaluator):
    # The echoed generations hold no equations, and neither do the teacher's rationales.
    rows = make_evaluator().predictions(None)
    assert [row["error"] for row in rows] == [None, None, None, "other", None]
    assert accuracy.summary(rows)["errors"] == {"other": 1}


def test_agreement_and_oracle_by_hand(make_evaluator):
    rows = make_evaluator(sampling=Sampling(samples=3)).predictions(None)
    assert [sample["correct"] for sample in rows[1]["samples"]] == [False, True, True]
    found = accuracy.summary(rows)
    assert found["samples"] == 3
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["oracle"] == 0.8


def sampled(extracted, *answers):
    """A row whose gold answer is 1."""
    samples = [{"extracted": answer, "correct": answer == "1"} for answer in answers]
    return {"extracted": extracted, "correct": extracted == "1", "samples": samples}


def test_agreement_and_oracle_of_mixed_rows():
    rows = [
        sampled("1", "1", "1", "1", "1"),
        sampled("2", "2", None, "2", "1"),  # The majority is wrong, one sample is right.
        sampled(None, None, None, None, None),
    ]
    found = accuracy.summary(rows)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["agreement"] == pytest.approx((1 + 2 / 4 + 0) / 3)
    assert found["oracle"] == pytest.approx(2 / 3)
    assert "oracle" not in accuracy.summary([{"correct": True}])


def test_summary():
    rows = [{"correct": i < 3} for i in range(4)]
    found = accuracy.summary(rows)
    assert (found["accuracy"], found["correct"], found["total"]) == (0.75, 3, 4)
    low, high = found["interval"]
    assert low == pytest.approx(0.30064, abs=1e-4)
    assert high == pytest.approx(0.95441, abs=1e-4)
    assert accuracy.summary([])["accuracy"] == 0
