"""Mask learning: fitting the answerer, training the generator, and the weights of a data set.

What mask learning lives on is the gap of the answer's loss between a rationale with nothing and
one with everything masked, on examples that the answerer was not fit on. Where the answerer has
memorised the answers, or never learned to read, there is no gap, and Eq. 7 is best served by
keeping nothing. So the answerer is fit first and apart: it reads whole rationales, then prefixes
under random masks, of examples other than those whose weights are learned.

Letters: B examples, P prefixes of each, R rationale tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kpod_jax import processes, sharding
from kpod_jax.checkpoint import Checkpoints
from kpod_jax.data.records import Ragged
from kpod_jax.weighting.answerer import Answerer, Params
from kpod_jax.weighting.generator import Generator, gumbel_mask
from kpod_jax.weighting.problems import Problems, batches, take

Log = Callable[[str, int, dict[str, float]], None]
# Steps between checkpoints.
_SAVE_EVERY = 100


@dataclasses.dataclass(frozen=True)
class MaskLearner:
    """The steps of mask learning, compiled once a shape.

    Attributes:
      answerer: θw's module.
      generator: of masks.
      embeddings: [V, D], the pre-trained student's input embeddings.
      alpha: of Eq. 7.
      prefixes: "all"; "sampled", P of them, uniformly; or "step_ends", likewise, but of those that
        end with a step. The last is no estimate of Eq. 5: it looks where answers are decided, and
        leaves out prefixes cut inside a step, of which most decide nothing.
      prefix_samples: P, where sampled.
      estimator: of the gradient of L_p: "straight_through" or "soft", see `gumbel_mask`, go through
        the answerer; "score_function" compares the losses of hard masks, and has no bias.
      mask_samples: masks of each example, for "score_function" alone; at least 2.
      clear_share: so many of the rows that the answerer is fit on have their whole rationale, and
        so many no mask, whatever is drawn.
      mesh: that rows are split over; None: all that is at hand.
    """

    answerer: Answerer
    generator: Generator
    embeddings: jax.Array
    alpha: float
    prefixes: str = "sampled"
    prefix_samples: int = 1
    estimator: str = "straight_through"
    mask_samples: int = 8
    clear_share: float = 0.5
    mesh: Mesh | None = None

    def take(self, problems: Problems, index: np.ndarray) -> Problems:
        """Some rows, on the devices."""
        return self.place(take(problems, index))

    def place(self, rows: Problems) -> Problems:
        """Rows of the host, on the devices."""
        return rows if self.mesh is None else sharding.place_whole(rows, self.mesh)

    def logits(self, generator_params: Params, problems: Problems) -> jax.Array:
        """[B, R] the logits of w_j."""
        embeddings = self.embeddings[problems.rationale]
        return self.generator.apply(
            {"params": generator_params}, embeddings, problems.rationale_mask
        )  # pyright: ignore[reportReturnType]

    def objective(
        self,
        generator_params: Params,
        answerer_params: Params,
        problems: Problems,
        key: jax.Array,
        alpha: jax.Array | float,
        temperature: jax.Array | float,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L_k / n, the mean over prefixes of the answer's loss + α · mean of m (Eq. 5-7).

        L_m's m_j is replaced by its expectation w_j, which has the same mean and no noise.

        Returns:
          The objective, averaged over examples, and its parts; "mask_entropy", in nats a token, is
          0 where masks are certain and 0.69 where they say nothing.
        """
        logits_BxR = self.logits(generator_params, problems)
        prefix_key, mask_key = jax.random.split(key)
        prefix_BxP, share_BxP = self._prefixes(prefix_key, problems)
        if self.estimator == "score_function":
            answer_loss = self._score_function(
                answerer_params, problems, mask_key, logits_BxR, prefix_BxP, share_BxP
            )
        else:
            answer_loss = self._pathwise(
                answerer_params, problems, mask_key, logits_BxR, prefix_BxP, share_BxP, temperature
            )
        weights = jax.nn.sigmoid(logits_BxR)
        kept = jnp.mean(jnp.mean(weights, axis=1, where=problems.rationale_mask))
        entropy = -jax.nn.log_sigmoid(logits_BxR) * weights
        entropy -= jax.nn.log_sigmoid(-logits_BxR) * (1 - weights)
        parts = {
            "answer_loss": answer_loss,
            "mean_weight": kept,
            "mask_entropy": jnp.mean(entropy, where=problems.rationale_mask),
        }
        return answer_loss + alpha * kept, parts

    def _pathwise(
        self,
        answerer_params: Params,
        problems: Problems,
        key: jax.Array,
        logits_BxR: jax.Array,
        prefix_BxP: jax.Array,
        share_BxP: jax.Array,
        temperature: jax.Array | float,
    ) -> jax.Array:
        """L_p / n, whose gradient goes through the answerer and the relaxed masks (Eq. 4, 5)."""
        hard = self.estimator == "straight_through"
        # Eq. 5 has one mask for all prefixes. Sampled prefixes have a mask each, which is less
        # noisy, unless it is one mask that makes them cheap.
        if self.prefixes == "all" or self.answerer.causal:
            keep = gumbel_mask(key, logits_BxR, temperature, hard)
            losses = self.answerer.prefix_losses(answerer_params, problems, keep, prefix_BxP)
        else:
            count = prefix_BxP.shape[1]
            logits = jnp.repeat(logits_BxR, count, axis=0)
            keep = gumbel_mask(key, logits, temperature, hard)
            rows = problems.repeat(count)
            losses = self.answerer.losses(answerer_params, rows, keep, prefix_BxP.ravel())
            losses = losses.reshape(share_BxP.shape)
        return jnp.mean(jnp.sum(losses * share_BxP, axis=1))

    def _score_function(
        self,
        answerer_params: Params,
        problems: Problems,
        key: jax.Array,
        logits_BxR: jax.Array,
        prefix_BxP: jax.Array,
        share_BxP: jax.Array,
    ) -> jax.Array:
        """L_p / n under M hard masks, with the score function's gradient, which has no bias.

        d E[L] / d logit_j = E[(L - b) (m_j - w_j)]. For b each mask has the mean loss of the
        example's other masks, prefix by prefix; and of the losses only those count whose prefix
        holds the token, since the others do not depend on it. No gradient goes through the
        answerer, so each mask costs a forward pass.
        """
        count, (rows, length) = self.mask_samples, logits_BxR.shape
        weights_BxR = jax.nn.sigmoid(logits_BxR)
        keep_MxBxR = jax.random.bernoulli(key, weights_BxR, (count, rows, length))
        repeated = jax.tree.map(lambda array: jnp.concatenate([array] * count), problems)
        losses = self.answerer.prefix_losses(
            jax.lax.stop_gradient(answerer_params),
            repeated,
            keep_MxBxR.reshape(-1, length).astype(jnp.float32),
            jnp.concatenate([prefix_BxP] * count),
        )
        losses_MxBxP = jax.lax.stop_gradient(losses.reshape(count, *prefix_BxP.shape)) * share_BxP
        above_MxBxP = (losses_MxBxP - losses_MxBxP.mean(axis=0)) * count / (count - 1)
        holds_BxPxR = jnp.arange(length) < prefix_BxP[..., None]
        above_MxBxR = jnp.einsum("mbp,bpr->mbr", above_MxBxP, holds_BxPxR.astype(jnp.float32))
        # Its value is 0; its gradient by the logits is the score function's.
        score_MxBxR = (keep_MxBxR - jax.lax.stop_gradient(weights_BxR)) * (
            logits_BxR - jax.lax.stop_gradient(logits_BxR)
        )
        surrogate_MxB = jnp.sum(above_MxBxR * score_MxBxR, axis=-1, where=problems.rationale_mask)
        return jnp.mean(losses_MxBxP.sum(axis=-1) + surrogate_MxB)

    def _prefixes(self, key: jax.Array, problems: Problems) -> tuple[jax.Array, jax.Array]:
        """[B, P] the prefixes' lengths, and each one's share of its example's mean."""
        rows, r = problems.rationale_mask.shape
        if self.prefixes == "all":
            n_B = problems.rationale_mask.sum(axis=1)
            prefix = jnp.broadcast_to(jnp.arange(1, r + 1), (rows, r))
            return prefix, (prefix <= n_B[:, None]) / n_B[:, None]
        shape = (rows, self.prefix_samples)
        # One of each of P equal parts, which is less noisy than any P, and as unbiased.
        place = (jnp.arange(self.prefix_samples) + jax.random.uniform(key, shape)) / shape[1]
        prefix = self.nth_prefix(problems, place)
        return prefix, jnp.full(shape, 1 / self.prefix_samples)

    def nth_prefix(self, problems: Problems, place_BxP: jax.Array) -> jax.Array:
        """[B, P] the length of the prefix at a place in [0, 1) of those that are looked at."""
        ends = problems.step_ends if self.prefixes == "step_ends" else problems.rationale_mask
        count_BxR = jnp.cumsum(ends, axis=1)
        wanted_BxP = jnp.minimum(jnp.floor(place_BxP * count_BxR[:, -1:]) + 1, count_BxR[:, -1:])
        return 1 + jnp.sum(count_BxR[:, None, :] < wanted_BxP[:, :, None], axis=-1)

    def random_masks(
        self, key: jax.Array, problems: Problems, masked: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Prefixes and masks for fitting the answerer: [B, R] m and [B] k.

        Where `masked`, prefixes are drawn and tokens are kept at a rate uniform in (0, 1), but for
        `clear_share` of the rows, lest reading be unlearned.
        """
        n_B = problems.rationale_mask.sum(axis=1)
        keys = jax.random.split(key, 5)
        whole = ~masked | jax.random.bernoulli(keys[0], self.clear_share, n_B.shape)
        drawn_B = self.nth_prefix(problems, jax.random.uniform(keys[1], (*n_B.shape, 1)))[:, 0]
        prefix_B = jnp.where(whole, n_B, drawn_B)
        clear = ~masked | jax.random.bernoulli(keys[2], self.clear_share, n_B.shape)
        rate_B = jnp.where(clear, 1.0, jax.random.uniform(keys[3], n_B.shape))
        keep = jax.random.bernoulli(keys[4], rate_B[:, None], problems.rationale_mask.shape)
        return keep.astype(jnp.float32), prefix_B


def answerer_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam for fitting the answerer in so many steps: a warm-up, then a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(50, steps - 1), steps, learning_rate / 20
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def generator_optimizer(
    learning_rate: float, clip_norm: float, steps: int
) -> optax.GradientTransformation:
    """Adam for training the generator in so many steps, at a rate that falls to a tenth."""
    rate = optax.linear_schedule(learning_rate, learning_rate / 10, steps)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(rate))


def make_fit_step(
    learner: MaskLearner, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Params, Any, jax.Array]]:
    """The answerer's step: (params, opt_state, problems, key, masked) -> (params, opt_state, loss).

    `masked`, a scalar bool, is whether prefixes and masks are drawn, see `random_masks`. Parameters
    and state are donated.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def fit_step(params, state, problems, key, masked):
        def loss(params):
            keep, prefix = learner.random_masks(key, problems, masked)
            return learner.answerer.losses(params, problems, keep, prefix).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return fit_step


def make_learn_step(
    learner: MaskLearner, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """The generator's step (Eq. 7), which gives new parameters, state, and the objective's parts.

    It takes (params, opt_state, answerer_params, embeddings, problems, key, alpha, temperature);
    the first two are donated. The embeddings are those of `learner`, whose own are not looked at:
    what a jitted function closes over becomes a constant of the compiled program.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def learn_step(params, state, answerer_params, embeddings, problems, key, alpha, temperature):
        objective = dataclasses.replace(learner, embeddings=embeddings).objective
        (_, parts), gradient = jax.value_and_grad(objective, has_aux=True)(
            params, answerer_params, problems, key, alpha, temperature
        )
        updates, state = optimizer.update(gradient, state, params)
        parts["gradient_norm"] = optax.global_norm(gradient)
        return optax.apply_updates(params, updates), state, parts

    return learn_step


def fit_answerer(
    learner: MaskLearner,
    params: Params,
    problems: Problems,
    *,
    reading_steps: int,
    masking_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    log: Log,
    checkpoints: Checkpoints | None = None,
) -> Params:
    """Fits θw: first on whole rationales, then on masked prefixes.

    With checkpoints, a fitting that was killed goes on to the same bits, and one that is done is
    not done again.

    Returns:
      New parameters; those given are not changed.
    """
    steps = reading_steps + masking_steps
    if not steps:
        return params
    optimizer = answerer_optimizer(learning_rate, steps)
    fit_step = make_fit_step(learner, optimizer)
    params, root = jax.tree.map(jnp.copy, params), jax.random.key(seed)
    state, first, _ = _go_on(checkpoints, {"params": params, "opt_state": optimizer.init(params)})
    params, state = state["params"], state["opt_state"]
    indices = batches(len(problems.question), batch_size, seed, start=first)
    with processes.listening() as is_told_to_end:
        for step in range(first, steps):
            batch = learner.take(problems, next(indices))
            masked = jnp.array(step >= reading_steps)
            params, state, loss = fit_step(
                params, state, batch, jax.random.fold_in(root, step), masked
            )
            if step % 50 == 49 or step == steps - 1:
                log("answerer", step + 1, {"answer_loss": float(loss)})
            ends, told = step == steps - 1, is_told_to_end()
            if checkpoints is not None and ((step + 1) % _SAVE_EVERY == 0 or ends or told):
                checkpoints.save(step + 1, {"params": params, "opt_state": state})
            if told and not ends:
                raise processes.Preempted(f"saved the answerer of step {step + 1}")
    return params


def measure_gap(
    learner: MaskLearner, params: Params, problems: Problems, batch_size: int
) -> dict[str, Any]:
    """The answer's loss with nothing and with everything masked, averaged over prefixes.

    Ten prefixes are taken of each rationale, evenly among those that are looked at. Give it
    held-out examples.

    Returns:
      "none_masked" and "all_masked" in nats, their difference "gap", and "by_prefix": both for
      each of the ten.
    """

    @jax.jit
    def losses(params, problems, share, keep):
        places = jnp.full((len(problems.question), 1), share)
        prefix_B = learner.nth_prefix(problems, places)[:, 0]
        keep = jnp.full(problems.rationale_mask.shape, keep, jnp.float32)
        return learner.answerer.losses(params, problems, keep, prefix_B).sum()

    count = len(problems.question)
    table = np.zeros((10, 2))
    for start in range(0, count, batch_size):
        batch = learner.take(problems, np.arange(start, min(start + batch_size, count)))
        for tenth in range(10):
            for kept in (0, 1):
                place = (tenth + 0.999) / 10  # The last one of each tenth.
                value = losses(params, batch, place, float(kept))
                table[tenth, kept] += float(value) / count
    all_masked, none_masked = table.mean(axis=0)
    return {
        "none_masked": none_masked,
        "all_masked": all_masked,
        "gap": all_masked - none_masked,
        "by_prefix": {"all_masked": table[:, 0].tolist(), "none_masked": table[:, 1].tolist()},
    }


def learn_masks(
    learner: MaskLearner,
    answerer_params: Params,
    problems: Problems,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    clip_norm: float,
    alpha_warmup: float,
    temperatures: tuple[float, float],
    joint_learning_rate: float,
    joint_problems: Problems,
    judge: Callable[[Params, Params], float],
    judge_every: int,
    patience: int,
    seed: int,
    log: Log,
    checkpoints: Checkpoints | None = None,
) -> Params:
    """Trains the generator (Eq. 7); the answerer is frozen, or follows on `joint_problems`.

    What counts is the objective on held-out examples: the generator that had the lowest is
    returned, and training stops when it has not fallen for long.

    Args:
      learner: the parts.
      answerer_params: of the fitted answerer.
      problems: examples whose tokens are to be weighted.
      steps: of training.
      batch_size: examples a step.
      learning_rate: of the generator.
      clip_norm: of its gradient.
      alpha_warmup: share of the steps over which α rises from 0. Its gradient is steady from the
        first step, the answer's is noisy: without the rise it can win before anything is learned.
      temperatures: at the first and the last step.
      joint_learning_rate: of the answerer; 0 freezes it.
      joint_problems: what a following answerer is fit on.
      judge: the held-out objective of parameters of the generator and the answerer.
      judge_every: steps between its calls; 0: never, and the last generator is returned.
      patience: so many calls in a row without a lower value end the training.
      seed: of everything random.
      log: is told the parts of the objective.
      checkpoints: to go on from, to the same bits, and to save to.

    Returns:
      The generator's parameters.
    """
    if not judge_every:
        judge_every, patience = steps + 1, 1
    root = jax.random.key(seed)
    example = learner.take(problems, np.arange(1))
    params = jax.jit(learner.generator.init)(
        root, learner.embeddings[example.rationale], example.rationale_mask
    )["params"]
    optimizer = generator_optimizer(learning_rate, clip_norm, steps)
    learn_step = make_learn_step(learner, optimizer)
    joint_optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(joint_learning_rate or 0.0)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def follow_step(answerer_params, state, params, problems, key, temperature):
        def loss(answerer_params):
            return learner.objective(params, answerer_params, problems, key, 0.0, temperature)[0]

        gradient = jax.grad(loss)(answerer_params)
        updates, state = joint_optimizer.update(gradient, state, answerer_params)
        return optax.apply_updates(answerer_params, updates), state

    state = {"params": params, "opt_state": optimizer.init(params)}
    state["best"] = jax.tree.map(jnp.copy, params)
    if joint_learning_rate:
        state["answerer"] = answerer_params = jax.tree.map(jnp.copy, answerer_params)
        state["joint_state"] = joint_optimizer.init(answerer_params)
    state, start, extra = _go_on(checkpoints, state)
    done = extra.get("done", False)
    # The lowest objective so far, and looks since then.
    best_value, since = extra.get("best_value"), extra.get("since", 0)
    indices = batches(len(problems.question), batch_size, seed, start)
    joint_indices = batches(len(joint_problems.question), batch_size, seed + 1, start)
    first, last = temperatures
    with processes.listening() as is_told_to_end:
        for step in range(start, 0 if done else steps):
            temperature = first * (last / first) ** (step / steps)
            alpha = learner.alpha * min(1.0, (step + 1) / max(1.0, alpha_warmup * steps))
            key = jax.random.fold_in(root, step)
            batch = learner.take(problems, next(indices))
            answerer_params = state.get("answerer", answerer_params)
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
                batch = learner.take(joint_problems, next(joint_indices))
                key = jax.random.fold_in(key, 1)
                answerer_params, state["joint_state"] = follow_step(
                    answerer_params, state["joint_state"], state["params"], batch, key, temperature
                )
                state["answerer"] = answerer_params
            judged = (step + 1) % judge_every == 0
            if judged:
                value = judge(state["params"], answerer_params)
                parts["held_out_objective"] = jnp.asarray(value)
                if best_value is None or value < best_value:
                    state["best"] = jax.tree.map(jnp.copy, state["params"])
                    best_value, since = value, 0
                else:
                    since += 1
            ends = step == steps - 1 or since == patience
            if judged or step % 25 == 24 or ends:
                log("generator", step + 1, {k: float(v) for k, v in parts.items()})
            told = is_told_to_end()
            if checkpoints is not None and ((step + 1) % _SAVE_EVERY == 0 or ends or told):
                extra = {"done": ends, "best_value": best_value, "since": since}
                checkpoints.save(step + 1, state, extra=extra)
            if ends:
                break
            if told:
                raise processes.Preempted(f"saved the generator of step {step + 1}")
    return state["params"] if best_value is None else state["best"]


def _go_on(
    checkpoints: Checkpoints | None, state: dict[str, Any]
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The state of the latest checkpoint, its step, and what was saved beside it."""
    if checkpoints is None or checkpoints.latest_step() is None:
        return state, 0, {}
    restored = checkpoints.restore_like(state)
    return restored.state, restored.step, restored.extra


def objective_on(
    learner: MaskLearner, problems: Problems, batch_size: int, temperature: float, seed: int
) -> Callable[[Params, Params], float]:
    """The objective on some examples, of parameters of the generator and of the answerer.

    It is Eq. 7 divided by n, in nats, with masks that are drawn alike at every call.
    """
    step = jax.jit(lambda *arguments: learner.objective(*arguments)[0])
    root, count = jax.random.key(seed), len(problems.question)

    def objective(generator_params: Params, answerer_params: Params) -> float:
        total = 0.0
        for start in range(0, count, batch_size):
            index = np.arange(start, min(start + batch_size, count))
            value = step(
                generator_params,
                answerer_params,
                learner.take(problems, index),
                jax.random.fold_in(root, start),
                learner.alpha,
                temperature,
            )
            total += float(value) * len(index)
        return total / count

    return objective


def compute_weights(
    learner: MaskLearner, generator_params: Params, problems: Problems, batch_size: int
) -> Ragged:
    """w_j of every rationale token, without noise (Eq. 3): N slices of float32 in (0, 1)."""
    where = None if learner.mesh is None else sharding.replicated(learner.mesh)

    @functools.partial(jax.jit, out_shardings=where)
    def weights(params, problems):
        return jax.nn.sigmoid(learner.logits(params, problems))

    result = []
    for start in range(0, len(problems.question), batch_size):
        index = np.arange(start, min(start + batch_size, len(problems.question)))
        rows = take(problems, index)
        values = np.asarray(weights(generator_params, learner.place(rows)))
        result += [values[i][rows.rationale_mask[i]] for i in range(len(index))]
    return Ragged.from_list(result, np.float32)
