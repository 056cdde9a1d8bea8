"""Mask learning: fits the answerer, trains the generator and computes a data set's weights.

Mask learning depends on the gap between the answer's loss with everything masked and with nothing
masked, on examples that the answerer was not fit on. If the answerer has memorized the answers, or
never learned to read, there is no gap, and keeping nothing minimizes Eq. 7. So the answerer is fit
first and separately: it reads whole rationales, then prefixes under random masks, of examples other
than those whose weights are learned. kpod_jax/weighting/objective.py has the generator's objective.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kpod_jax.config.defaults import Config
from kpod_jax.data.records import Ragged
from kpod_jax.models import layout
from kpod_jax.parallel import processes, sharding
from kpod_jax.training import divergence
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.weighting.answerer import Params
from kpod_jax.weighting.answerer_batch import AnswererBatch, batches, take
from kpod_jax.weighting.objective import MaskLearner

Log = Callable[[str, int, dict[str, float]], None]


class Recorder(NamedTuple):
    """Where a training run is recorded.

    Attributes:
      log: called with what is trained, the step and its values.
      checkpoints: to resume from, to the same bits, and to save to; None: nothing is saved.
    """

    log: Log
    checkpoints: Checkpoints | None = None


# Steps between checkpoints.
_SAVE_EVERY = 100
# Steps between metrics lines and progress updates.
_LOG_EVERY = 10


def answerer_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Returns Adam for fitting the answerer, with a warm-up and a cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(50, steps - 1), steps, learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def generator_optimizer(
    learning_rate: float, clip_norm: float, steps: int
) -> optax.GradientTransformation:
    """Returns Adam for training the generator, with a rate that decays to a tenth."""
    rate = optax.linear_schedule(learning_rate, learning_rate / 10, steps)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(rate))


def make_fit_step(
    learner: MaskLearner, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Params, Any, jax.Array]]:
    """Builds the answerer's step, which returns trained parameters, state and loss.

    It takes (trained, opt_state, frozen, batch, key, masked); the first two are donated. `masked`,
    a scalar bool, says whether to sample prefixes and masks, see `random_masks`.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def fit_step(trained, state, frozen, batch, key, masked):
        def loss(trained):
            keep, prefix = learner.random_masks(key, batch, masked)
            params = layout.combine(trained, frozen)
            return learner.answerer.losses(params, batch, keep, prefix).mean()

        value, gradient = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, value

    return fit_step


def make_learn_step(
    learner: MaskLearner, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """Builds the generator's step (Eq. 7), which returns parameters, state and objective parts.

    It takes (params, opt_state, answerer_params, embeddings, batch, key, alpha, temperature); the
    first two are donated. Pass `learner.embeddings`: they are an argument because arrays that a
    jitted function closes over become constants of the compiled program.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def learn_step(params, state, answerer_params, embeddings, batch, key, alpha, temperature):
        objective = dataclasses.replace(learner, embeddings=embeddings).objective
        (_, parts), gradient = jax.value_and_grad(objective, has_aux=True)(
            params, answerer_params, batch, key, alpha, temperature
        )
        updates, state = optimizer.update(gradient, state, params)
        parts["gradient_norm"] = optax.global_norm(gradient)
        return optax.apply_updates(params, updates), state, parts

    return learn_step


def fit_answerer(
    learner: MaskLearner,
    params: Params,
    examples: AnswererBatch,
    config: Config,
    *,
    recorder: Recorder,
    seed: int,
    gap: Callable[[Params], float] | None = None,
) -> Params:
    """Fits θw, or its adapters: first on whole rationales, then on masked prefixes.

    With checkpoints, an interrupted fit resumes to the same bits, and a finished one is not
    repeated.

    Args:
      learner: the mask learner.
      params: the answerer's parameters.
      examples: examples to fit it on.
      config: `weighting` of the configuration.
      recorder: logs the loss and holds the checkpoints.
      seed: seed of everything random.
      gap: measures the held-out gap, see `measure_gap`. A gap of `fit_until_gap` ends the fit; it
        is measured every 100 steps on masked prefixes.

    Returns:
      New parameters; the given ones are not changed.
    """
    steps, (log, checkpoints) = config.fit_unmasked_steps + config.fit_masked_steps, recorder
    if not steps:
        return params
    optimizer = answerer_optimizer(config.fit_learning_rate, steps)
    fit_step = make_fit_step(learner, optimizer)
    trained, frozen = learner.answerer.split(params)
    trained, root = jax.tree.map(jnp.copy, trained), jax.random.key(seed)
    state = {"params": trained, "opt_state": optimizer.init(trained)}
    state, first, extra = _resume(checkpoints, state)
    trained, opt_state = state["params"], state["opt_state"]
    indices = batches(len(examples.question), config.batch_size, seed, start=first)
    with processes.defer_sigterm() as should_stop:
        for step in range(first, 0 if extra.get("done") else steps):
            batch = learner.take(examples, next(indices))
            masked = step >= config.fit_unmasked_steps
            key = jax.random.fold_in(root, step)
            trained, opt_state, loss = fit_step(
                trained, opt_state, frozen, batch, key, jnp.array(masked)
            )
            values = {"answer_loss": loss}
            is_last, is_hundredth = step == steps - 1, (step + 1) % _SAVE_EVERY == 0
            if gap is not None and config.fit_until_gap and masked and is_hundredth:
                values["gap"] = jnp.asarray(gap(layout.combine(trained, frozen)))
                is_last = is_last or float(values["gap"]) >= config.fit_until_gap
            if (step + 1) % _LOG_EVERY == 0 or is_last:
                log("answerer", step + 1, {name: float(value) for name, value in values.items()})
            stopping = should_stop()
            if checkpoints is not None and (is_hundredth or is_last or stopping):
                state = {"params": trained, "opt_state": opt_state}
                _require_finite(state, "answerer", step + 1, "fit_learning_rate")
                checkpoints.save(step + 1, state, extra={"done": is_last})
            if stopping:
                raise processes.Preempted(f"saved the answerer at step {step + 1}")
            if is_last:
                break
    return layout.combine(trained, frozen)


def measure_gap(
    learner: MaskLearner, params: Params, examples: AnswererBatch, batch_size: int
) -> dict[str, Any]:
    """Measures the gap of one answerer; see `gap_on`."""
    return gap_on(learner, examples, batch_size)(params)


def gap_on(
    learner: MaskLearner, examples: AnswererBatch, batch_size: int
) -> Callable[[Params], dict[str, Any]]:
    """Returns a function that measures the gap of an answerer's parameters; it compiles once.

    The gap is between the answer's loss with nothing and with everything masked, averaged over ten
    evenly spaced prefixes of each rationale, among those that `prefixes` allows. Pass held-out
    examples. The function returns "none_masked" and "all_masked" in nats, their difference "gap",
    and "by_prefix": both losses for each of the ten.
    """
    replicated = None if learner.mesh is None else sharding.replicated(learner.mesh)

    @functools.partial(jax.jit, out_shardings=replicated)
    def losses(params, batch, places, keep):
        places = jnp.broadcast_to(places, (len(batch.question), len(places)))
        prefix_BxP = learner.nth_prefix(batch, places)
        keep = jnp.full(batch.rationale_mask.shape, keep, jnp.float32)
        return learner.answerer.prefix_losses(params, batch, keep, prefix_BxP).sum(axis=0)

    def measure(params: Params) -> dict[str, Any]:
        count = len(examples.question)
        tenths = np.arange(10)
        # All at once if that needs no more memory than one.
        groups = [tenths] if learner.answerer.causal else np.split(tenths, 10)
        table = np.zeros((10, 2))
        for start in range(0, count, batch_size):
            batch = learner.take(examples, np.arange(start, min(start + batch_size, count)))
            for group in groups:
                places = (group + 0.999) / 10  # The last prefix in each tenth.
                for kept in (0, 1):
                    table[group, kept] += (
                        np.asarray(losses(params, batch, places, float(kept))) / count
                    )
        all_masked, none_masked = table.mean(axis=0)
        return {
            "none_masked": none_masked,
            "all_masked": all_masked,
            "gap": all_masked - none_masked,
            "by_prefix": {"all_masked": table[:, 0].tolist(), "none_masked": table[:, 1].tolist()},
        }

    return measure


def learn_masks(
    learner: MaskLearner,
    answerer_params: Params,
    examples: AnswererBatch,
    config: Config,
    *,
    joint_examples: AnswererBatch,
    judge: Callable[[Params, Params], float],
    recorder: Recorder,
    seed: int,
) -> tuple[Params, Params]:
    """Trains the generator (Eq. 7); the answerer is frozen, or trained jointly on `joint_examples`.

    Returns the generator with the lowest objective on held-out examples, and stops early when that
    no longer falls.

    Args:
      learner: the mask learner.
      answerer_params: parameters of the fitted answerer.
      examples: examples whose tokens are weighted.
      config: `weighting` of the configuration. The temperature decays geometrically. α rises from 0
        over the fraction `alpha_warmup` of the steps: its gradient is steady from the first step,
        the answer's is noisy, so if the gradient goes through the answerer, α may win before
        anything is learned. The score function needs the price from the start.
      joint_examples: examples to train the answerer on jointly, if `joint_learning_rate` > 0.
      judge: maps parameters of the generator and the answerer to the held-out objective; called
        every `eval_every` steps. `patience` calls in a row without a lower value end the training.
        With `eval_every` = 0 it is never called, and the last generator is returned.
      recorder: logs the parts of the objective and holds the checkpoints.
      seed: seed of everything random.

    Returns:
      The generator's parameters, and the answerer's at the end of training.
    """
    steps, batch_size, (log, checkpoints) = config.steps, config.batch_size, recorder
    joint_learning_rate = config.joint_learning_rate
    eval_every, patience = config.eval_every, config.patience
    if not eval_every:
        eval_every, patience = steps + 1, 1
    root = jax.random.key(seed)
    example = learner.take(examples, np.arange(1))
    params = jax.jit(learner.generator.init)(
        root, learner.embeddings[example.rationale], example.rationale_mask
    )["params"]
    optimizer = generator_optimizer(config.learning_rate, config.clip_norm, steps)
    learn_step = make_learn_step(learner, optimizer)
    joint_optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(joint_learning_rate or 0.0)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def joint_step(trained, state, frozen, params, embeddings, batch, key, temperature):
        def loss(trained):
            # The backward pass stores activations of every mask: use the score function's minimum.
            joint_learner = dataclasses.replace(learner, embeddings=embeddings, mask_samples=2)
            answerer_params = layout.combine(trained, frozen)
            return joint_learner.objective(params, answerer_params, batch, key, 0.0, temperature)[0]

        gradient = jax.grad(loss)(trained)
        updates, state = joint_optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state

    state = {"params": params, "opt_state": optimizer.init(params)}
    state["best"] = jax.tree.map(jnp.copy, params)
    frozen = {}
    if joint_learning_rate:
        trained, frozen = learner.answerer.split(answerer_params)
        state["answerer"] = trained = jax.tree.map(jnp.copy, trained)
        state["joint_state"] = joint_optimizer.init(trained)
    state, start, extra = _resume(checkpoints, state)
    if joint_learning_rate:
        answerer_params = layout.combine(state["answerer"], frozen)
    done = extra.get("done", False)
    # The lowest objective so far, and evaluations since then.
    best_value, num_worse = extra.get("best_value"), extra.get("since", 0)
    indices = batches(len(examples.question), batch_size, seed, start)
    joint_indices = batches(len(joint_examples.question), batch_size, seed + 1, start)
    first, last = config.temperature_start, config.temperature_end
    with processes.defer_sigterm() as should_stop:
        for step in range(start, 0 if done else steps):
            temperature = first * (last / first) ** (step / steps)
            alpha = learner.alpha * min(1.0, (step + 1) / max(1.0, config.alpha_warmup * steps))
            key = jax.random.fold_in(root, step)
            batch = learner.take(examples, next(indices))
            state["params"], state["opt_state"], parts = learn_step(
                state["params"],
                state["opt_state"],
                answerer_params,
                learner.embeddings,
                batch,
                key,
                alpha,
                temperature,
            )
            if joint_learning_rate:
                batch = learner.take(joint_examples, next(joint_indices))
                key = jax.random.fold_in(key, 1)
                state["answerer"], state["joint_state"] = joint_step(
                    state["answerer"],
                    state["joint_state"],
                    frozen,
                    state["params"],
                    learner.embeddings,
                    batch,
                    key,
                    temperature,
                )
                answerer_params = layout.combine(state["answerer"], frozen)
            evaluating = (step + 1) % eval_every == 0
            if evaluating:
                value = judge(state["params"], answerer_params)
                parts["held_out_objective"] = jnp.asarray(value)
                if best_value is None or value < best_value:
                    state["best"] = jax.tree.map(jnp.copy, state["params"])
                    best_value, num_worse = value, 0
                else:
                    num_worse += 1
            is_last = step == steps - 1 or num_worse == patience
            if evaluating or (step + 1) % _LOG_EVERY == 0 or is_last:
                log("generator", step + 1, {k: float(v) for k, v in parts.items()})
            stopping = should_stop()
            if checkpoints is not None and ((step + 1) % _SAVE_EVERY == 0 or is_last or stopping):
                _require_finite(state, "generator", step + 1, "learning_rate")
                extra = {"done": is_last, "best_value": best_value, "since": num_worse}
                checkpoints.save(step + 1, state, extra=extra)
            if stopping:
                raise processes.Preempted(f"saved the generator at step {step + 1}")
            if is_last:
                break
    params = state["params"] if best_value is None else state["best"]
    return params, answerer_params


def _require_finite(state: dict[str, Any], what: str, step: int, rate: str) -> None:
    advice = f"Nothing was saved since. Lower weighting.{rate}."
    divergence.require_finite(state, f"The {what}'s parameters after step {step}", advice)


def _resume(
    checkpoints: Checkpoints | None, state: dict[str, Any]
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Returns the latest checkpoint's state, step and extra data, or the given state at step 0."""
    if checkpoints is None or checkpoints.latest_step() is None:
        return state, 0, {}
    restored = checkpoints.restore_like(state)
    return restored.state, restored.step, restored.extra


def compute_weights(
    learner: MaskLearner, generator_params: Params, examples: AnswererBatch, batch_size: int
) -> Ragged:
    """Returns w_j of every rationale token without noise (Eq. 3): N float32 slices in (0, 1)."""
    replicated = None if learner.mesh is None else sharding.replicated(learner.mesh)

    @functools.partial(jax.jit, out_shardings=replicated)
    def weights(params, batch):
        return jax.nn.sigmoid(learner.logits(params, batch))

    result = []
    for start in range(0, len(examples.question), batch_size):
        index = np.arange(start, min(start + batch_size, len(examples.question)))
        rows = take(examples, index)
        values = np.asarray(weights(generator_params, learner.place(rows)))
        result += [values[i][rows.rationale_mask[i]] for i in range(len(index))]
    return Ragged.from_list(result, np.float32)
