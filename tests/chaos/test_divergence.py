"""What is not finite stops a training, is never saved, and is one line when evaluated."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax import distillation
from kpod_jax.config import defaults
from kpod_jax.data.records import Ragged, Record
from kpod_jax.evaluation import evaluate as evaluation
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.report import exported
from kpod_jax.schedule import difficulty
from kpod_jax.stages import STAGES
from kpod_jax.training import divergence, loop
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.training.train_step import cross_entropy
from kpod_jax.utils import stage_cache
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import learn, weigh
from tests.conftest import ROOT, TINY_STUDENT
from tests.tools import batch_source
from tests.weighting import tiny

DATA = tiny.random_set(20, seed=0)
STEPS_PER_EPOCH = 3
SAVED = "checkpoints/student"


@pytest.fixture(scope="module")
def student():
    """The tiny student with its real tokenizer."""
    config = defaults.get_config()
    files = ("student.model", "student.tokenizer")
    there = {
        key: str(ROOT / value) if key in files else value for key, value in TINY_STUDENT.items()
    }
    config.update_from_flattened_dict(there)
    return load_student(config.student, 0)


def record(number: int) -> Record:
    return Record(f"r{number}", f"How much is {number} + 1?", (f"{number} + 1 = 2.",), "2")


def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def bad_at(bad, value=np.nan, what="loss"):
    """A loss that is not finite in batches with one of the examples `bad`, or its gradient."""

    def loss(module, params, batch, key=None):
        total, nll = cross_entropy(module, params, batch, key)
        is_bad = jnp.zeros((), bool)
        for i in bad:
            ids = jnp.asarray(DATA.questions[i])
            same = (batch["input_ids"][:, : len(ids)] == ids).all(axis=1)
            is_bad |= (same & (batch["input_mask"].sum(axis=1) == len(ids))).any()
        if what == "gradient":  # The square root's derivative at 0 is infinite.
            zero = 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
            return total + jnp.sqrt(jnp.where(is_bad, zero, 1.0)), nll
        if what == "token loss":
            return total, jnp.where(is_bad, value, nll)
        return jnp.where(is_bad, value, total), nll

    return loss


def run(workdir, loss=cross_entropy, *, hooks=None, phase_steps=0, spoil=False, **changes):
    config = defaults.get_config().distill
    config.update(
        {"epochs": 3, "max_steps": 4, "batch_size": 8, "warmup_steps": 0, "checkpoint_every": 1}
    )
    config.update({"log_every": 2, "max_to_keep": 20} | changes)
    student, batches = tiny.student(), batch_source(DATA, 8, buckets=1)
    assert batches.steps_per_epoch == STEPS_PER_EPOCH
    params = student.load(mesh())
    return loop.train(
        config,
        student,
        jax.tree.map(lambda leaf: leaf * np.nan, params) if spoil else params,
        batches,
        loop.plan(config, STEPS_PER_EPOCH, phase_steps),
        objective=loop.Objective(loss),
        hooks=hooks or loop.Hooks(),
        recording=loop.Recording(pathlib.Path(workdir)),
    )


def saved(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / SAVED).iterdir() if p.name.isdecimal())


def steps_with(example: int) -> list[int]:
    batches = batch_source(DATA, 8, buckets=1)
    return [s + 1 for s in range(9) if example in batches[s]["index"]]


def example_from_step(step: int) -> int:
    """An example that comes up at this step first."""
    return next(i for i in range(len(DATA)) if steps_with(i)[0] == step)


def stored_params(workdir, step):
    student = tiny.student()
    with Checkpoints(workdir / SAVED, read_only=True) as checkpoints:
        return checkpoints.restore_params(student.abstract(mesh()), step).state


@pytest.mark.parametrize(
    ("step", "what", "value"),
    [
        (1, "loss", np.nan),
        (2, "loss", np.inf),
        (3, "loss", -np.inf),
        (2, "gradient", 0),
        (2, "token loss", np.inf),
    ],
)
def test_a_step_that_is_not_finite_stops_the_training(tmp_path, step, what, value):
    bad = example_from_step(step)
    with pytest.raises(UserError) as raised:
        run(tmp_path, bad_at([bad], value, what), learning_rate=2e-3)
    said = str(raised.value)
    assert f"diverged at step {step}: " in said and "learning rate 0.002" in said
    ids = said.split("records ")[1].split(". ")[0].split(", ")
    batch = batch_source(DATA, 8, buckets=1)[step - 1]["index"].tolist()
    assert bad in batch and ids == [str(i) for i in batch if i >= 0]
    assert "distill.skip_nonfinite" in said and "distill.learning_rate" in said
    assert saved(tmp_path) == list(range(1, step))
    assert ("Nothing was saved" in said) == (step == 1)
    for one in saved(tmp_path):
        assert divergence.nonfinite(stored_params(tmp_path, one)) == []


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"learning_rate": float("inf")}, 1),
        ({"learning_rate": float("nan")}, 1),
        ({"learning_rate": float("inf"), "warmup_steps": 5}, 1),  # 0 · ∞.
        ({"learning_rate": 3e38, "optimizer": "adafactor"}, 2),
        ({"learning_rate": 1e38, "clip_norm": 0.0}, 2),
    ],
)
def test_a_step_that_spoils_the_parameters_is_not_saved(tmp_path, changes, step):
    with pytest.raises(UserError, match=f"diverged at step {step}: "):
        run(tmp_path, **changes)
    for one in saved(tmp_path):
        assert divergence.nonfinite(stored_params(tmp_path, one)) == []
    assert saved(tmp_path) in ([], [1])


def test_spoilt_parameters_reach_neither_validation_nor_a_curriculum(tmp_path):
    seen = []
    with pytest.raises(UserError, match=r"NaN or infinity in params/.* after its update"):
        hooks = loop.Hooks(lambda params: seen.append(params) or {})
        run(tmp_path, hooks=hooks, max_steps=1, learning_rate=float("inf"))
    with pytest.raises(UserError, match="after its update") as raised:
        hooks = loop.Hooks(begin_phase=lambda phase, params: seen.append(phase))
        changes = {"learning_rate": float("inf"), "checkpoint_every": 99}
        run(tmp_path, hooks=hooks, phase_steps=1, **changes)
    assert seen == [0]
    assert "skip_nonfinite" not in str(raised.value)  # The gradient was finite: nothing to skip.


def test_parameters_that_are_spoilt_from_the_beginning(tmp_path):
    hooks = loop.Hooks(begin_phase=lambda phase, params: None)
    with pytest.raises(UserError, match=r"The initial parameters are not finite: .*student\.model"):
        run(tmp_path, hooks=hooks, phase_steps=1, spoil=True)


def test_bfloat16_that_overflows_stops_the_training(tmp_path):
    def loss(module, params, batch, key=None):
        total, nll = cross_entropy(module, params, batch, key)
        return (total.astype(jnp.bfloat16) * jnp.bfloat16(3e38)).astype(jnp.float32), nll

    with pytest.raises(UserError, match=r"step 1: loss inf.*student.dtype=float32"):
        run(tmp_path, loss)


def test_skipped_steps_change_nothing_and_are_counted(tmp_path, capsys):
    bad = example_from_step(2)
    run(tmp_path, bad_at([bad]), skip_nonfinite=1)
    skipped = [step for step in steps_with(bad) if step <= 4]
    for step in range(2, 5):
        before, after = stored_params(tmp_path, step - 1), stored_params(tmp_path, step)
        same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, after)))
        assert same == (step in skipped), step
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row["skipped_steps"]) for row in rows]
    assert found == [(s, sum(at <= s for at in skipped)) for s in (2, 4)]
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in out] == [f" skipped step {step}" for step in skipped]


def test_too_many_skipped_steps_in_a_row_stop_the_training(tmp_path):
    last = example_from_step(3)
    everything = [i for i in range(len(DATA)) if i != last]  # Steps 1 and 2 are bad.
    with pytest.raises(UserError, match="step 2 after 1 steps skipped in a row"):
        run(tmp_path, bad_at(everything), skip_nonfinite=1)
    assert saved(tmp_path) == [1]


@pytest.mark.slow  # Compiles several trainings.
def test_a_run_that_diverged_resumes_with_skipping_to_the_bits_of_one_that_skipped(tmp_path):
    bad = example_from_step(2)
    whole = run(tmp_path / "whole", bad_at([bad]), skip_nonfinite=2)
    with pytest.raises(UserError, match="diverged at step 2"):
        run(tmp_path / "cut", bad_at([bad]))
    resumed = run(tmp_path / "cut", bad_at([bad]), skip_nonfinite=2)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.slow  # Compiles several trainings.
def test_the_count_in_a_row_goes_on_after_a_restart(tmp_path):
    """Killed after one skipped step, by a validation before the second."""
    last = example_from_step(3)
    everything = [i for i in range(len(DATA)) if i != last]
    run(tmp_path, bad_at(everything), skip_nonfinite=1, max_steps=1)
    with pytest.raises(UserError, match="step 2 after 1 steps skipped in a row"):
        run(tmp_path, bad_at(everything), skip_nonfinite=1)


@pytest.mark.slow  # Compiles several trainings.
def test_skipping_that_never_happens_gives_the_same_bits(tmp_path):
    changes = {"clip_norm": 0.5, "checkpoint_every": 99, "max_steps": 3}
    plain = run(tmp_path / "plain", **changes)
    guarded = run(tmp_path / "guarded", skip_nonfinite=3, **changes)
    jax.tree.map(np.testing.assert_array_equal, plain, guarded)


def test_skipping_is_no_other_training():
    config = defaults.get_config()
    before = stage_cache.settings_of(STAGES["distill"], config)
    config.distill.skip_nonfinite = 3
    assert stage_cache.settings_of(STAGES["distill"], config) == before
    assert "distill.learning_rate" in before


def spoilt(params, value):
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [leaves[0].at[(0,) * leaves[0].ndim].set(value), *leaves[1:]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_evaluation_and_export_of_spoilt_parameters_is_one_line(student, tmp_path, value):
    params = spoilt(student.load(mesh()), value)
    config = defaults.get_config()
    for use in (
        lambda: evaluation.evaluate(config.eval, student, params, [], mesh()),
        lambda: exported.write(config, student, params, 1, tmp_path),
    ):
        with pytest.raises(
            UserError, match="parameters are not finite: NaN or infinity in "
        ) as bad:
            use()
        assert len(str(bad.value).splitlines()) == 1 and "eval.checkpoint=STEP" in str(bad.value)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_overflows_names_the_records(monkeypatch, student):
    records = [record(i) for i in range(3)]
    loss_of = evaluation.make_token_loss(defaults.get_config().eval, student, records, mesh())
    plain = evaluation.forward.target_losses_of_all

    def overflowing(*arguments, **options):
        for index, values, supervised in plain(*arguments, **options):
            bad = (index == 1)[:, None] & supervised
            yield index, np.where(bad, np.inf, values), supervised

    monkeypatch.setattr(evaluation.forward, "target_losses_of_all", overflowing)
    with pytest.raises(UserError, match=r"^The loss of r1 is inf under finite parameters: "):
        loss_of(student.load(mesh()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_token_weights_and_difficulties_that_are_not_finite_name_the_records(value):
    config = defaults.get_config()
    weights = Ragged.from_list([np.full(n, 0.5) for n in DATA.rationale_lengths], np.float32)
    weights.values[weights.offsets[4]] = weights.values[-1] = value
    with pytest.raises(UserError, match=r"^Token weights of 2 records are NaN or infinite: 4, 19."):
        distillation.loss_weights(config.distill, DATA, weights)
    with pytest.raises(
        UserError, match=r"^The difficulty of 2 of 20 records is not finite: 4, 19."
    ):
        difficulty.require_finite(difficulty.step_difficulty(weights, None, DATA), DATA)


def test_a_gap_and_weights_that_are_nan_say_so():
    config = defaults.get_config().weighting
    gap = {"none_masked": np.nan, "all_masked": 2.0, "gap": np.nan}
    assert "nan nats with nothing masked and 2 with" in weigh._no_gap(gap, config)
    part = {"mean_weight": 0.5, "objective": np.nan, "keep_all": 1.0, "keep_none": 2.0}
    with pytest.raises(UserError, match=r"not finite: mean_weight 0.5, objective nan, "):
        weigh._check_health(part, config)


def test_a_spoilt_generator_is_not_saved():
    with pytest.raises(UserError, match=r"generator's .* step 7 .*: NaN.* in params/w"):
        state = {"params": {"w": jnp.array([1.0, np.nan])}, "count": jnp.zeros((), jnp.int32)}
        learn._require_finite(state, "generator", 7, "learning_rate")
