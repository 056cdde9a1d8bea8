import dataclasses
import functools
import json
import shutil
import threading
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import memory
from kpod_jax.config import defaults
from kpod_jax.data.records import Ragged
from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.schedule import curricula
from kpod_jax.schedule.online import OnlineSchedule
from kpod_jax.schedule.protocol import Feedback
from kpod_jax.training import loop, monitoring, train_step
from tests.tools import batch_source
from tests.weighting import tiny

DATA = tiny.random_set(20, seed=0)
KEY = jax.random.key(0)
# One value a step of every example; their sizes alone matter here.
LOSSES = Ragged.from_list([np.ones(n) for n in DATA.num_steps], np.float64)


def settings(**changes):
    config = defaults.get_config().distill
    config.update({"epochs": 3, "batch_size": 8, "warmup_steps": 2, "log_every": 1} | changes)
    return config


def start_steps(stage):
    """All but the answer is input at first, then ever less."""
    return np.maximum(0, DATA.num_steps - stage)


def source(buckets=1, weights=None, start_steps=start_steps):
    return batch_source(
        DATA,
        8,
        0,
        pad_id=tiny.PAD,
        decoder_start_id=tiny.PAD,
        buckets=buckets,
        weights=weights,
        start_steps=start_steps,
    )


def weights():
    rng = np.random.default_rng(0)
    return Ragged.from_list([rng.random(n) for n in DATA.rationale_lengths], np.float32)


def updates(mesh, batches, micro_batches=1):
    """Parameters, each step's metrics, and how often the step was compiled."""
    module, config, compiled = tiny.t5(), settings(), []
    optimizer = train_step.make_optimizer(config, 10)
    step = train_step.make_train_step(
        module, optimizer, train_step.learning_rate(config, 10), micro_batches=micro_batches
    )

    def listen(event, duration_secs, **details):
        if "backend_compile" in event and "train_step" in details.get("fun_name", ""):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    params, metrics = tiny.student().load(mesh), []
    with sharding.use(mesh):
        state = train_step.start_state(params, optimizer)
        for batch in batches:
            batch = {key: value for key, value in batch.items() if key != "index"}
            state, values = step(state, {}, sharding.place_batch(batch, mesh), KEY)
            metrics.append(jax.device_get(values))
    jax.monitoring.unregister_event_duration_listener(listen)
    return jax.tree.map(np.asarray, state["params"]), metrics, len(compiled)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def stage_batches():
    """The first batch of each of three stages: start steps move, shapes do not."""
    batches = source(weights=weights())
    assert len(batches.shapes) == 1
    found = [batches[stage * batches.steps_per_epoch] for stage in range(3)]
    counts = [int(batch["supervised"].sum()) for batch in found]
    assert counts[0] < counts[1] < counts[2]
    return found


@pytest.fixture(scope="module")
def expected():
    return updates(one_device(), stage_batches())


@pytest.mark.parametrize(("sizes", "micro_batches"), [(None, 4), ((2, 2, 2), 2)])
def test_micro_batches_and_meshes_give_the_same_update(expected, sizes, micro_batches):
    mesh = sharding.make_mesh(*sizes) if sizes else one_device()
    params, metrics, compiled = updates(mesh, stage_batches(), micro_batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, expected[0])
    for found, wanted in zip(metrics, expected[1], strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    assert compiled == 1


def test_nothing_is_compiled_anew_when_start_steps_move(expected):
    assert expected[2] == 1


def test_the_optimizers_state_is_split_like_the_parameters():
    mesh = sharding.make_mesh(2, 2, 2)
    optimizer = train_step.make_optimizer(settings(), 10)
    params = tiny.student().load(mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    state = train_step.start_state(params, optimizer)
    moments = state["opt_state"][1][0]
    for tree in (moments.mu, moments.nu, state["params"]):
        jax.tree.map(lambda leaf, there: leaf.sharding == there or pytest.fail(), tree, where)
    assert any(not there.is_fully_replicated for there in jax.tree.leaves(where))


def test_the_loss_is_by_hand_the_weighted_sum_over_the_count(expected):
    batch, metrics = stage_batches()[0], expected[1][0]
    module, start = tiny.t5(), tiny.student().load(one_device())

    @jax.jit
    def log_probs(ids, mask, decoder_ids):
        hidden = module.apply({"params": start}, ids, mask, decoder_ids)
        logits = module.apply({"params": start}, hidden, method="logits")
        return jax.nn.log_softmax(jnp.asarray(logits))

    found = log_probs(batch["input_ids"], batch["input_mask"], batch["decoder_input_ids"])
    nll = -np.take_along_axis(np.asarray(found), batch["targets"][..., None], -1)[..., 0]
    on = batch["supervised"]
    loss = (nll * batch["loss_weights"]).sum() / on.sum()
    assert metrics["supervised_tokens"] == on.sum()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["token_loss"], nll[on].mean(), rtol=1e-4)


def test_the_gradient_is_that_of_the_sum_over_the_divisor(expected):
    batch = stage_batches()[0]
    _, (metrics,), _ = updates(one_device(), [batch | {"divisor": 4 * batch["divisor"]}])
    wanted = expected[1][0]
    np.testing.assert_allclose(metrics["gradient_norm"], wanted["gradient_norm"] / 4, rtol=1e-5)
    assert metrics["loss"] == wanted["loss"]  # A mean over the batch's own tokens.


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16", "int8"])
def test_adapters_alone_are_trained_beside_frozen_weights(base_dtype):
    mesh, batches = one_device(), stage_batches()
    lora = LoRAConfig(rank=2, targets=("q", "wo"), base_dtype=base_dtype)
    student = tiny.student()
    param_dtype = jnp.float32 if base_dtype == "float32" else jnp.bfloat16
    module = student.module.clone(lora=lora, param_dtype=param_dtype)
    student = dataclasses.replace(student, module=module)
    trained, frozen = student.split(Student.load(student, mesh))
    assert all(map(layout.is_adapter, layout.flatten(trained)))
    optimizer = train_step.make_optimizer(settings(warmup_steps=0, learning_rate=0.05), 10)
    step = train_step.make_train_step(module, optimizer, lambda step: 0.0)
    before = jax.tree.map(np.asarray, frozen)
    with sharding.use(mesh):
        state = train_step.start_state(trained, optimizer)
        sizes = {leaf.size for leaf in jax.tree.leaves(state)}
        assert max(sizes) == max(x.size for x in jax.tree.leaves(state["params"]))
        losses = []
        for _ in range(8):
            batch = {key: value for key, value in batches[0].items() if key != "index"}
            state, values = step(state, frozen, sharding.place_batch(batch, mesh), KEY)
            losses.append(float(values["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(frozen)}
    expected = {"float32"} if base_dtype == "float32" else {"bfloat16"}
    assert kinds == (expected if base_dtype != "int8" else {"int8", "bfloat16", "float32"})
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state["params"])} == {"float32"}


def test_the_flops_of_a_step_are_those_of_its_products():
    """By hand; three times the forward pass, whatever is computed anew to save memory."""
    batch: Any = {k: v for k, v in stage_batches()[0].items() if k != "index"}
    rows, question = batch["input_ids"].shape
    target = batch["targets"].shape[1]
    c = tiny.CONFIG
    inner, mlp = c.d_model * c.num_heads * c.d_kv, 2 * c.d_model * c.d_ff
    products = question * (4 * inner + mlp) + target * (6 * inner + mlp) + question * 2 * inner
    pairs = question**2 + target**2 + question * target
    products += 2 * pairs * c.num_heads * c.d_kv + target * c.d_model * c.vocab_size
    for remat in ("none", "full"):
        module = tiny.t5().clone(remat=remat)
        params = tiny.params(module)
        assert train_step.model_flops(module, params, {})(batch) == 3 * 2 * rows * products
    # Of frozen weights there is no gradient; what is left is at least two thirds.
    student = tiny.student()
    adapted = dataclasses.replace(student, module=tiny.t5().clone(lora=LoRAConfig(rank=1)))
    trained, frozen = adapted.split(adapted.load(one_device()))
    found = train_step.model_flops(adapted.module, trained, frozen)(batch)
    assert 1 < found / (2 * rows * products) < 2.2


def test_a_training_that_hangs_is_ended(tmp_path, monkeypatch):
    """A validation that does not come back; what would end the process lets it go on here."""
    codes, ended = [], threading.Event()

    def end(code):
        codes.append(code)
        ended.set()

    watchdog = functools.partial(monitoring.Watchdog, end=end)
    monkeypatch.setattr(loop.monitoring, "Watchdog", watchdog)
    run(tmp_path, lambda params: {"accuracy": float(ended.wait(60))}, hang_seconds=0.5)
    assert codes == [monitoring.EXIT_HUNG]


@pytest.mark.parametrize(
    ("decay", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_learning_rates(decay, middle, end):
    config = settings(learning_rate=1.0, warmup_steps=4, decay=decay)
    schedule = train_step.learning_rate(config, 24)

    def rate(step):
        return float(jnp.asarray(schedule(step)))

    np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 3, 4)], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose([rate(14), rate(24)], [middle, end], atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adafactor"])
def test_every_optimizer_lowers_a_loss(optimizer):
    config = settings(optimizer=optimizer, learning_rate=0.1, warmup_steps=0, weight_decay=1e-3)
    update = train_step.make_optimizer(config, 20)
    params = {"a": jnp.full((4, 4), 2.0)}
    state = update.init(params)
    for _ in range(20):
        gradient = jax.grad(lambda p: jnp.sum(p["a"] ** 2))(params)
        change, state = update.update(gradient, state, params)
        params = optax.apply_updates(params, change)
    assert (jnp.abs(params["a"]) < 2).all()  # pyright: ignore


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, float("nan")])
def test_gradients_are_clipped_as_optax_does(scale):
    rng = np.random.default_rng(0)
    gradient: Any = {"a": scale * rng.normal(size=(3, 4)), "b": scale * rng.normal(size=5)}
    gradient = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), gradient)
    results: list[Any] = [
        transform.update(gradient, transform.init(gradient))[0]
        for transform in (train_step.clip(2.0), optax.clip_by_global_norm(2.0))
    ]
    found, expected = results
    assert jnp.isnan(found["a"]).all() == (scale != scale)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_plan():
    assert loop.plan(settings(epochs=3), 5) == loop.Plan(5, 5, 15)
    assert loop.plan(settings(epochs=3, max_steps=7), 5) == loop.Plan(5, 5, 7)
    assert loop.plan(settings(epochs=3, max_steps=7), 5).phases == 2
    assert loop.plan(settings(epochs=3), 5, phase_steps=4) == loop.Plan(5, 4, 15)
    assert loop.plan(settings(epochs=3), 5, phase_steps=4).phases == 4
    assert loop.plan(settings(epochs=1, max_steps=70), 5).total_steps == 5


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def run(workdir, validate, start_steps=start_steps, begin_phase=None, hang_seconds=0.0):
    student, batches = tiny.student(), source(start_steps=start_steps)
    config = settings(checkpoint_every=2, validate_every=1)
    loop.train(
        config,
        student,
        student.load(one_device()),
        batches,
        loop.plan(config, batches.steps_per_epoch),
        objective=loop.Objective(),
        hooks=loop.Hooks(validate, begin_phase),
        recording=loop.Recording(workdir, hang_seconds),
    )


def followed(workdir, seen, stop_at=None):
    """A run whose every stage is chosen by its first parameters, perhaps killed before a stage."""
    spl = curricula.EasyFirst(LOSSES, mixing=1.0, initial_fraction=0.3, ramp_phases=2)
    following = OnlineSchedule(spl, LOSSES.lengths, workdir / "start_steps.npz", "spl")

    def begin(stage, params):
        if stage == stop_at:
            raise KeyboardInterrupt
        # A number that every parameter goes into, so that other parameters choose otherwise.
        noise = np.random.default_rng(abs(hash(float(sum(map(jnp.sum, jax.tree.leaves(params)))))))
        shaken = Ragged(noise.random(len(LOSSES.values)), LOSSES.offsets)
        following.begin(stage, Feedback(shaken))

    def validate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"accuracy": 0.5}

    run(workdir, validate, following, begin)
    return np.load(workdir / "start_steps.npz")["start_steps"]


def test_stages_that_follow_the_student_are_the_same_after_a_kill(tmp_path):
    whole, again = [], []
    expected = followed(tmp_path / "whole", whole)
    assert expected.shape == (3, len(DATA)) and not expected[2].any()
    assert (expected[1] != expected[0]).any()
    with pytest.raises(KeyboardInterrupt):  # After step 3; the checkpoint of step 3 is there.
        followed(tmp_path / "killed", again, stop_at=1)
    for step in (3, 2):  # One goes on at the stage's beginning, one in the middle of stage 0.
        workdir = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "killed", workdir)
        if step == 2:
            shutil.rmtree(workdir / "checkpoints/student/3")
        resumed = []
        np.testing.assert_array_equal(followed(workdir, resumed), expected)
        count = len(resumed)
        jax.tree.map(np.testing.assert_array_equal, whole[-count:], resumed)


def test_the_next_stages_batches_are_made_while_the_last_step_of_a_stage_waits():
    """Otherwise the device would wait for them between two stages."""
    asked, there = [], threading.Event()

    def training_schedule(stage):
        asked.append(stage)
        if stage == 1:
            there.set()
        return start_steps(stage)

    batches = source(start_steps=training_schedule)
    iterator = batches.iterate(0, 9)
    next(iterator)
    assert there.wait(60)  # Nobody has asked for more than the first batch of stage 0.
    assert 2 not in asked or asked.count(0) == batches.steps_per_epoch


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    seen, resumed = [], []

    def validate(params, into):
        into.append(jax.tree.map(np.array, params))
        return {"accuracy": 0.25 * len(into), "token_loss": 2.0}

    run(tmp_path / "whole", lambda params: validate(params, seen))
    assert len(seen) == 3

    class Killed(Exception):
        pass

    def killed(params):
        raise Killed

    with pytest.raises(Killed):  # In step 3; the checkpoint of step 2 stays.
        run(tmp_path / "killed", killed)
    assert (tmp_path / "killed/checkpoints/student/2").is_dir()
    run(tmp_path / "killed", lambda params: validate(params, resumed))
    jax.tree.map(np.testing.assert_array_equal, seen, resumed)

    whole, again = rows(tmp_path / "whole"), rows(tmp_path / "killed")
    for row in whole + again:
        if "loss" in row:
            shown = ("tokens_per_second", "flops_per_second", "data_wait_share")
            assert all(row[name] >= 0 for name in (*shown, "step_seconds_p50", "step_seconds_p95"))
        for name in list(row):
            if name.endswith(("_per_second", "_share", "_p50", "_p95")):
                del row[name]
    order = lambda row: (row["step"], "loss" in row)  # noqa: E731
    assert sorted(whole, key=order) == sorted(again, key=order)
    training = [row for row in whole if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 10))
    for row in training:
        stage = (row["step"] - 1) // 3
        assert row["stage"] == "distill"
        assert row["phase"] == stage
        assert row["mean_start_step"] == pytest.approx(start_steps(stage).mean())
    accuracies = {r["step"]: r["validation_accuracy"] for r in whole if "loss" not in r}
    assert accuracies == {3: 0.25, 6: 0.5, 9: 0.75}
    assert [r["validation_token_loss"] for r in whole if "loss" not in r] == [2.0] * 3

    # A run that is done does nothing.
    run(tmp_path / "killed", killed)


@pytest.mark.slow
@pytest.mark.parametrize("base_dtype", ["bfloat16", "int8"])
def test_a_step_of_llama_7b_with_lora_fits_a_gpu_of_80_gb(base_dtype):
    """4 rows of 640 tokens; by shapes alone, as the CPU's compiler counts."""
    found = memory.of_train_step(memory.llama_7b(base_dtype), 4, 256, 384)
    weights = 6.6e9 * (2 if base_dtype == "bfloat16" else 1)
    assert weights < found.arguments < weights + 1.5e9  # Adapters and their state are the rest.
    assert found.total < 80e9
