import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.utils.errors import UserError

REPLICATED = P()
OPTIMISER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-2, 0.0, 10))
)


def make_state(step: int = 0, spec: P = REPLICATED, axes: tuple[int, int] = (8, 1)):
    """A state whose values depend on the step, sharded over eight devices."""
    mesh = jax.make_mesh(axes, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
    params = {
        "embedding": jax.device_put(jax.random.normal(keys[0], (16, 8)), NamedSharding(mesh, spec)),
        "layers": [
            jax.device_put(jax.random.normal(keys[1], (8,), jnp.bfloat16), NamedSharding(mesh, P()))
        ],
    }
    opt_state = jax.jit(OPTIMISER.init)(params)
    return {"params": params, "opt_state": opt_state, "step": jnp.int32(step)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(directory, *steps, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), extra={"position": step})


def test_everything_comes_back_to_the_bit(tmp_path):
    state = make_state(3)
    extra = {"iterator": {"position": 7, "epochs": [1, 2]}, "seed": 2**40}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, extra=extra)
        restored = checkpoints.restore(abstract(state))
    assert_same(restored.state, state)
    assert (restored.extra, restored.step) == (extra, 3)
    with Checkpoints(tmp_path) as reopened:
        assert_same(reopened.restore(abstract(state)).state, state)


def test_saves_the_values_of_the_call_though_buffers_are_donated_after_it(tmp_path):
    train = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 1, s), donate_argnums=0)
    state = make_state(1)
    expected = jax.tree.map(lambda x: np.array(x), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state = train(state)
        assert_same(checkpoints.restore(abstract(state)).state, expected)


def test_restores_onto_another_mesh(tmp_path):
    save_steps(tmp_path, 5)
    wanted = abstract(make_state(0, P("tensor", "data"), (2, 4)))
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(wanted).state
    assert_same(state, make_state(5))
    assert state["params"]["embedding"].sharding == wanted["params"]["embedding"].sharding
    assert state["params"]["embedding"].addressable_shards[0].data.shape == (4, 4)


def test_restores_the_parameters_alone_beside_a_training(tmp_path):
    wanted = abstract(make_state(0, P("data"))["params"])
    with Checkpoints(tmp_path, max_to_keep=1, best_metric="accuracy") as training:
        training.save(1, make_state(1), extra={"seed": 3}, metrics={"accuracy": 0.5})
        training.wait()
        with Checkpoints(tmp_path, best_metric="accuracy", read_only=True) as reader:
            training.save(2, make_state(2), metrics={"accuracy": 0.9})
            training.wait()
            restored = reader.restore_params(wanted)
    assert_same(restored.state, make_state(2)["params"])
    assert restored.state["embedding"].sharding == wanted["embedding"].sharding
    assert restored.step == 2


def test_casts_parameters_to_the_dtype_asked_for(tmp_path):
    save_steps(tmp_path, 1)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        make_state()["params"],
    )
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        embedding = checkpoints.restore_params(wanted).state["embedding"]
    expected = make_state(1)["params"]["embedding"].astype(jnp.bfloat16)
    assert_same(embedding, expected)


def test_keeps_the_latest_and_the_best(tmp_path):
    values = {1: 0.5, 2: 0.7, 3: 0.1, 4: float("nan"), 5: 0.6, 6: None, 7: 0.65}
    params = abstract(make_state()["params"])
    with Checkpoints(tmp_path, max_to_keep=2, best_metric="accuracy") as checkpoints:
        for step, value in values.items():
            metrics = None if value is None else {"accuracy": value, "loss": 1.0}
            checkpoints.save(step, make_state(step), metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7]
    with Checkpoints(tmp_path, max_to_keep=2, best_metric="accuracy") as checkpoints:
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 7)
        assert checkpoints.restore(abstract(make_state())).step == 7
        assert checkpoints.restore_params(params, "best").step == 2
        assert checkpoints.restore_params(params, 6).step == 6


def test_without_metrics_the_best_is_the_latest(tmp_path):
    save_steps(tmp_path, 1, 2, 3, max_to_keep=2)
    with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.best_step() == 3


def test_a_step_that_is_there_keeps_its_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(1, make_state(2))
        assert_same(checkpoints.restore(abstract(make_state())).state, make_state(1))


def damage(path: pathlib.Path, how: str) -> pathlib.Path:
    """Damages the largest file of the checkpoint, which holds values of the arrays."""
    file = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: len(data) // 2] if how == "truncated" else data)
    return file


@pytest.mark.parametrize("how", ["truncated", "bit flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, caplog, how):
    save_steps(tmp_path, 1, 2)
    file = damage(tmp_path / "2", how)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(make_state()))
        assert_same(restored.state, make_state(1))
        assert (restored.step, restored.extra) == (1, {"position": 1})
        assert file.relative_to(tmp_path / "2").as_posix() in caplog.text
        assert f"It was moved to {tmp_path / 'damaged-2'}. Using step 1." in caplog.text
        # The run goes on and saves that step again.
        checkpoints.save(2, make_state(2), extra={"position": 2})
        assert checkpoints.restore(abstract(make_state())).step == 2
    assert (tmp_path / "damaged-2").is_dir()


@pytest.mark.parametrize("which", ["best", "latest", 2])
@pytest.mark.parametrize("others", [True, False])
def test_a_reader_never_takes_another_checkpoint(tmp_path, which, others):
    save_steps(tmp_path, *([1] if others else []), 2)
    damage(tmp_path / "2", "truncated")
    names = sorted(tmp_path.rglob("*"))
    params = abstract(make_state()["params"])
    with Checkpoints(tmp_path, read_only=True) as reader, pytest.raises(UserError) as error:
        reader.restore_params(params, which)
    said = str(error.value)
    assert said.startswith(f"Checkpoint {tmp_path / '2'} is damaged: state/")
    assert "or delete it, then run the training stage again" in said
    assert ("eval.checkpoint=1." in said) == others
    assert sorted(tmp_path.rglob("*")) == names


@pytest.mark.parametrize("steps", [(2,), (1, 2)])
def test_a_training_without_an_intact_checkpoint_never_starts_over(tmp_path, steps):
    save_steps(tmp_path, *steps)
    for step in steps:
        damage(tmp_path / str(step), "bit flipped")
    for _ in range(2):  # The second attempt, too.
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.latest_step() == 2
            with pytest.raises(UserError) as error:
                checkpoints.restore(abstract(make_state()))
        said = str(error.value)
        assert all(f"{tmp_path / str(step)}: state/" in said for step in steps)
        assert f"Restore {tmp_path} from a copy, or delete it to train from scratch." in said
    # As earlier versions left it.
    for step in steps:
        (tmp_path / str(step)).rename(tmp_path / f"damaged-{step}")
    with pytest.raises(UserError, match=r"no checkpoint except damaged ones: damaged-"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"accuracy": "x"}', '{"accuracy": 0.9}'])
@pytest.mark.parametrize("step", [1, 2])
def test_a_damaged_metric_is_named(tmp_path, step, text):
    """It decides which checkpoint is the best."""
    with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
        checkpoints.save(1, make_state(1), metrics={"accuracy": 0.5})
        checkpoints.save(2, make_state(2), metrics={"accuracy": 0.4})
    path = tmp_path / str(step) / "metrics/metrics"
    path.unlink() if text is None else path.write_text(text)
    for read_only in (True, False):
        with pytest.raises(UserError) as error:
            Checkpoints(tmp_path, best_metric="accuracy", read_only=read_only)
        said = str(error.value)
        assert f"{tmp_path / str(step)} is damaged: metrics/metrics is missing or corrupt" in said
        later = " and those after it (2)" if step == 1 else ""
        assert f"or delete it{later}, then run the training stage again" in said
    shutil.rmtree(tmp_path / str(step))
    with Checkpoints(tmp_path, best_metric="accuracy") as checkpoints:
        assert checkpoints.steps() == [3 - step]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{"])
def test_damaged_checksums_are_damage(tmp_path, text, caplog):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2/checksums.json").write_text(text)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 1
    assert "checksums.json is missing or damaged" in caplog.text


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path):
    save_steps(tmp_path, 1, 2)
    # Killed while it wrote: a temporary name and some of the files.
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    damage(tmp_path / "2.orbax-checkpoint-tmp", "missing")
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1]
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(make_state())).state, make_state(1))
        checkpoints.save(2, make_state(2))
        assert_same(checkpoints.restore(abstract(make_state())).state, make_state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_copy_that_was_cut_short_is_not_taken_for_a_checkpoint(tmp_path):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2" / "state")
    (tmp_path / "2" / "checksums.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 1


def test_another_model_is_refused_by_name_and_shapes(tmp_path):
    save_steps(tmp_path, 1)
    wanted = abstract(make_state())
    embedding = wanted["params"]["embedding"]
    wanted["params"]["embedding"] = jax.ShapeDtypeStruct(
        (32, 8), jnp.float32, sharding=embedding.sharding
    )
    wanted["params"]["lora"] = embedding
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(wanted)
        assert (
            "params/embedding is float32[16, 8], expected float32[32, 8]; "
            "params/lora is missing" in str(error.value)
        )
        with pytest.raises(UserError, match="opt_state/1/0/count is unexpected"):
            checkpoints.restore({"params": abstract(make_state()["params"])})
        with pytest.raises(UserError, match="params/lora is missing"):
            checkpoints.restore_params(wanted["params"])


def test_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
    save_steps(tmp_path / "here")
    with Checkpoints(tmp_path / "here") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match=r"has no checkpoint. Run the training stage"):
            checkpoints.restore(abstract(make_state()))
        checkpoints.save(1, make_state())
        with pytest.raises(UserError, match=r"no checkpoint for step 4; it has \[1\]"):
            checkpoints.restore_params(abstract(make_state()["params"]), 4)


def test_a_disk_that_refuses_is_an_error_for_the_user(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write checkpoints to .*[Nn]ot a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (100_000,))}}
    checkpoints = Checkpoints(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(UserError, match=r"Cannot write checkpoints to .*: File too large.*"):
            checkpoints.save(2, state)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 1
