"""The script that makes the small models: its tokenizer, and rows without chains of thought."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from kpod_jax.data import arithmetic
from kpod_jax.data.stories import LARGEST
from kpod_jax.models.student import load_student
from kpod_jax.models.t5 import T5
from kpod_jax.parallel import sharding
from kpod_jax.pretrain import answerer, student
from kpod_jax.weighting import answerer_model
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained("kpod_jax/assets/tiny_t5")


@pytest.fixture(scope="module")
def mixture(tokenizer) -> student.Mixture:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "_PROBLEMS", 300)
        return student.Mixture(tokenizer, 0)


def texts(tokenizer, batch: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """(source, target) of every row, sentinels left out."""
    decode = tokenizer.batch_decode
    sides = [decode(batch[side], skip_special_tokens=True) for side in ("source", "target")]
    return list(zip(*sides, strict=True))


def test_numbers_and_words_of_the_task_are_single_tokens(tokenizer):
    words = ["twice", "dozen", "pens", "Step", "Therefore"]
    for word in [*map(str, range(1, LARGEST + 1)), *words]:
        assert len(tokenizer.tokenize(word)) == 1, word


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "Zoë paid 1,234.5 € – naïve? 数学 + x²."
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("kind", student._SHAPES)
def test_a_batch_is_a_function_of_seed_and_step(mixture, kind):
    first, again, other = (mixture.batch(kind, 0, step) for step in (3, 3, 4))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert (first["source"] != other["source"]).any()


def test_inputs_are_the_target_moved_by_one(mixture):
    batch = mixture.batch("text", 0, 0)
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["target"][:, :-1])
    assert not batch["inputs"][:, 0].any()
    np.testing.assert_array_equal(batch["target_mask"], batch["target"] != 0)
    assert not mixture.batch("equations", 0, 0)["inputs"][:, 0].any()


def test_no_row_shows_a_chain_of_thought(mixture, tokenizer):
    """A question never meets its rationale; an answer follows only one operation."""
    one_step = {
        r.question: r.answer for r in arithmetic.generate("fresh", 150, 0, student._ONE_STEP)
    }
    several = {r.question: r for r in arithmetic.generate("fresh", 300)}
    seen = 0
    for step in range(5):
        for source, target in texts(tokenizer, mixture.batch("word_problems", 0, step)):
            assert target == one_step[source]
        for source, target in texts(tokenizer, mixture.batch("one_step", 0, step)):
            [question] = [q for q in one_step if f"Q: {q} A:" in source]
            assert target.endswith(f"Therefore, the answer is {one_step[question]}.")
        steps = texts(tokenizer, mixture.batch("results", 0, step))
        for row in [*texts(tokenizer, mixture.batch("text", 0, step)), *steps]:
            text = " ".join(row)
            assert "Therefore" not in text
            for question, record in several.items():
                if question in text:
                    assert not any(step.strip() in text for step in record.steps)
                    seen += 1
    assert seen


def test_a_step_is_cut_around_its_result():
    for record in arithmetic.generate("fresh", 50):
        for number, step in enumerate(record.steps):
            parts = student._around_a_result(record, number)
            if parts is None:
                assert record.hardness and record.hardness[number] == 0
                continue
            before, result, after = parts
            assert f"{before} {result}{after}" == step.rstrip()
            assert result.isdigit() and before.endswith("=")


def test_results_alone_are_supervised_in_the_decoders_equations(mixture, tokenizer):
    known = {f"{e.before} {e.result}" for e in arithmetic.equations()}
    for kind in ("equations", "results"):
        batch = mixture.batch(kind, 0, 0)
        for target, mask in zip(batch["target"], batch["target_mask"], strict=True):
            assert mask.any()
            for place in np.flatnonzero(mask):
                words = tokenizer.decode(target[max(0, place - 4) : place + 1])
                assert words.strip() in known


@pytest.mark.slow
def test_the_student_calculates_in_its_own_text(tokenizer):
    """Or else a third of all errors would be slips of arithmetic, whatever the method."""
    found = load_student("kpod_jax/assets/tiny_t5", scan_layers=False)
    assert isinstance(found.module, T5)
    params = found.load(sharding.make_mesh())
    assert student.held_out_losses(found.module, params, tokenizer)["results"] < 0.02


@pytest.mark.slow
def test_the_answerer_works_out_the_last_result_before_it_is_written(tokenizer):
    """Or else operands would be worth nothing to the masks, which would keep results alone."""
    found = load_student("kpod_jax/assets/tiny_answerer", scan_layers=False)
    params, reader = found.load(sharding.make_mesh()), answerer_model.make_answerer(found)
    rows = answerer._problems("validation", 64, tokenizer, seed=0)
    (equals,) = tokenizer("=", add_special_tokens=False).input_ids
    size, losses = rows.rationale.shape[1], jax.jit(reader.losses)
    prefix = np.max((1 + np.arange(size)) * (rows.rationale == equals), axis=1)

    def loss(*masked: int) -> float:
        """With tokens masked, by places before the last equals sign."""
        keep = np.ones((len(prefix), size), np.float32)
        for back in masked:
            keep[np.arange(len(prefix)), prefix - 1 - back] = 0
        return float(losses(params, rows, jnp.asarray(keep), jnp.asarray(prefix)).mean())

    assert loss() < 0.6
    assert min(loss(1), loss(2), loss(3)) > 2  # An operand or the operator.


@pytest.mark.slow
def test_the_command_makes_a_student_and_an_answerer_of_it(tmp_path):
    def make(*flags: str) -> str:
        command = [sys.executable, "-m", "kpod_jax.pretrain", "--scale=0.002", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    small, reader = tmp_path / "student", tmp_path / "answerer"
    make("--what=student", f"--output={small}")
    said = make("--what=answerer", f"--student={small}", f"--output={reader}")
    assert "held-out loss in nats: {'none_masked'" in said
    tokenizer = "tokenizer.json"
    assert (small / tokenizer).read_bytes() == (reader / tokenizer).read_bytes()
    # The committed student's tokenizer is the one that the script makes.
    committed = ROOT / "kpod_jax/assets/tiny_t5" / tokenizer
    assert (small / tokenizer).read_bytes() == committed.read_bytes()
    weights = "model.safetensors"
    assert (small / weights).read_bytes() != (reader / weights).read_bytes()
