"""The objective of mask learning (Eq. 5-7): the answer's loss under masks, and the price of tokens.

Letters: B examples, P prefixes per example, R rationale tokens, M masks, V vocabulary, D embedding.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kpod_jax.parallel import sharding
from kpod_jax.weighting.answerer import Answerer, Params
from kpod_jax.weighting.answerer_batch import AnswererBatch, take
from kpod_jax.weighting.generator import Generator, gumbel_mask


@dataclasses.dataclass(frozen=True)
class MaskLearner:
    """The objective of mask learning, and the sampling of prefixes and masks.

    Attributes:
      answerer: θw's module.
      generator: the mask generator.
      embeddings: [V, D], the pre-trained student's input embeddings.
      alpha: α of Eq. 7.
      prefixes: "all"; "sampled", P of them, uniformly; "step_ends", P of those that end with a
        step, uniformly; or "late", P of all, with a probability that grows with their length. The
        last two do not estimate Eq. 5: they focus on where answers are decided, by leaving out
        prefixes cut inside a step, or sampling fewer short ones, most of which decide nothing.
      prefix_samples: P, where sampled.
      estimator: gradient estimator. "straight_through" and "soft", see `gumbel_mask`, go through
        the answerer; "score_function" compares the losses of hard masks, and is unbiased if
        `exploration` is 0.
      mask_samples: masks per example, for "score_function" only; at least 2.
      exploration: minimum probability with which "score_function" masks, and keeps, any token,
        whatever its weight; in [0, 0.5). Above 0 its gradient is that of the sampled masks, not of
        w.
      fit_unmasked_fraction: of the rows that the answerer is fit on, the fraction with the whole
        rationale instead of a prefix, and, independently, the fraction without a mask.
      mesh: mesh over which rows are split; None: the default device.
    """

    answerer: Answerer
    generator: Generator
    embeddings: jax.Array
    alpha: float
    prefixes: str = "sampled"
    prefix_samples: int = 1
    estimator: str = "score_function"
    mask_samples: int = 8
    exploration: float = 0.0
    fit_unmasked_fraction: float = 0.5
    mesh: Mesh | None = None

    def take(self, batch: AnswererBatch, index: np.ndarray) -> AnswererBatch:
        """Returns the rows at `index`, on the devices."""
        return self.place(take(batch, index))

    def place(self, rows: AnswererBatch) -> AnswererBatch:
        """Moves rows from the host to the devices."""
        return rows if self.mesh is None else sharding.place_global(rows, self.mesh)

    def logits(self, generator_params: Params, batch: AnswererBatch) -> jax.Array:
        """Returns the logits of w_j, [B, R]."""
        embeddings = self.embeddings[batch.rationale]
        return self.generator.apply({"params": generator_params}, embeddings, batch.rationale_mask)  # pyright: ignore[reportReturnType]

    def objective(
        self,
        generator_params: Params,
        answerer_params: Params,
        batch: AnswererBatch,
        key: jax.Array,
        alpha: jax.Array | float,
        temperature: jax.Array | float,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns L_k / n, the mean over prefixes of the answer's loss + α · mean of m (Eq. 5-7).

        Both terms use the same masks and the same gradient estimator, so α is the price of a kept
        token relative to the answer's loss under every estimator. With the score function, L_m has
        the expectation w_j instead of m_j: the same mean without noise.

        Returns:
          The objective, averaged over examples, and its parts; "mask_entropy", in nats per token,
          is 0 for masks that are certain and 0.69 for masks that carry no information.
        """
        logits_BxR = self.logits(generator_params, batch)
        prefix_key, mask_key = jax.random.split(key)
        prefix_BxP, fraction_BxP = self._sample_prefixes(prefix_key, batch)
        weights = jax.nn.sigmoid(logits_BxR)
        arguments = answerer_params, batch, mask_key, logits_BxR, prefix_BxP, fraction_BxP
        if self.estimator == "score_function":
            answer_loss, price = self._score_function(*arguments)
        else:
            answer_loss, price = self._pathwise(*arguments, temperature)
        entropy = -jax.nn.log_sigmoid(logits_BxR) * weights
        entropy -= jax.nn.log_sigmoid(-logits_BxR) * (1 - weights)
        parts = {
            "answer_loss": answer_loss,
            "mean_weight": _mean_kept(weights, batch),
            "mask_entropy": jnp.mean(entropy, where=batch.rationale_mask),
        }
        return answer_loss + alpha * price, parts

    def _pathwise(
        self,
        answerer_params: Params,
        batch: AnswererBatch,
        key: jax.Array,
        logits_BxR: jax.Array,
        prefix_BxP: jax.Array,
        fraction_BxP: jax.Array,
        temperature: jax.Array | float,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns L_p / n and L_m / n, with the gradient of the relaxed masks (Eq. 4-6)."""
        hard = self.estimator == "straight_through"
        # Eq. 5 has one mask for all prefixes. Sampled prefixes get one mask each, which is less
        # noisy, unless sharing a mask is what makes them cheap.
        if self.prefixes == "all" or self.answerer.causal:
            keep = gumbel_mask(key, logits_BxR, temperature, hard)
            rows = batch
            losses = self.answerer.prefix_losses(answerer_params, rows, keep, prefix_BxP)
        else:
            count = prefix_BxP.shape[1]
            logits = jnp.repeat(logits_BxR, count, axis=0)
            keep = gumbel_mask(key, logits, temperature, hard)
            rows = batch.repeat(count)
            losses = self.answerer.losses(answerer_params, rows, keep, prefix_BxP.ravel())
            losses = losses.reshape(fraction_BxP.shape)
        return jnp.mean(jnp.sum(losses * fraction_BxP, axis=1)), _mean_kept(keep, rows)

    def _score_function(
        self,
        answerer_params: Params,
        batch: AnswererBatch,
        key: jax.Array,
        logits_BxR: jax.Array,
        prefix_BxP: jax.Array,
        fraction_BxP: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns L_p / n under M hard masks, and L_m / n, with the score function's gradient.

        d E[L] / d logit_j = E[(L - b) (m_j - w_j)], unbiased without exploration. A mask's baseline
        b is the mean loss of the example's other masks, prefix by prefix; only losses whose prefix
        contains the token count, since the others do not depend on it. The generator's gradient
        does not go through the answerer, so each mask costs one forward pass; the answerer's
        gradient, in joint training, is that of the mean loss.
        """
        count, (rows, length) = self.mask_samples, logits_BxR.shape
        fixed_BxR = jax.lax.stop_gradient(logits_BxR)
        weights_BxR = self._keep_probability(fixed_BxR)
        keep_MxBxR = jax.random.bernoulli(key, weights_BxR, (count, rows, length))
        repeated = jax.tree.map(lambda array: jnp.concatenate([array] * count), batch)
        losses = self.answerer.prefix_losses(
            answerer_params,
            repeated,
            keep_MxBxR.reshape(-1, length).astype(jnp.float32),
            jnp.concatenate([prefix_BxP] * count),
        )
        losses_MxBxP = losses.reshape(count, *prefix_BxP.shape) * fraction_BxP
        fixed_MxBxP = jax.lax.stop_gradient(losses_MxBxP)
        advantage_MxBxP = (fixed_MxBxP - fixed_MxBxP.mean(axis=0)) * count / (count - 1)
        holds_BxPxR = jnp.arange(length) < prefix_BxP[..., None]
        advantage_MxBxR = jnp.einsum(
            "mbp,bpr->mbr", advantage_MxBxP, holds_BxPxR.astype(jnp.float32)
        )
        # Zero in value; its gradient by the logits is the score function's.
        score_MxBxR = (keep_MxBxR - weights_BxR) * (logits_BxR - fixed_BxR)
        surrogate_MxB = jnp.sum(advantage_MxBxR * score_MxBxR, axis=-1, where=batch.rationale_mask)
        answer_loss = jnp.mean(losses_MxBxP.sum(axis=-1) + surrogate_MxB)
        return answer_loss, self._price(logits_BxR, batch)

    def _keep_probability(self, logits_BxR: jax.Array) -> jax.Array:
        """Returns the probability of keeping a token in a mask of `_score_function`."""
        weights_BxR = jax.nn.sigmoid(logits_BxR)
        return jnp.clip(weights_BxR, self.exploration, 1 - self.exploration)

    def _price(self, logits_BxR: jax.Array, batch: AnswererBatch) -> jax.Array:
        """Returns the mean weight, L_m / n, with a gradient scaled like that of L_p.

        Both have the factor w (1 - w), the derivative of the weight by its logit. With exploration,
        the factor is that of the masks' probability instead, so loss and price stay in proportion
        and no logit is out of reach.
        """
        fixed_BxR = jax.lax.stop_gradient(logits_BxR)
        probability_BxR = self._keep_probability(fixed_BxR)
        shift_BxR = (logits_BxR - fixed_BxR) * probability_BxR * (1 - probability_BxR)
        return _mean_kept(jax.nn.sigmoid(fixed_BxR) + shift_BxR, batch)

    def _sample_prefixes(self, key: jax.Array, batch: AnswererBatch) -> tuple[jax.Array, jax.Array]:
        """Returns [B, P] lengths of prefixes, and each one's fraction of its example's mean."""
        rows, r = batch.rationale_mask.shape
        if self.prefixes == "all":
            n_B = batch.rationale_mask.sum(axis=1)
            prefix = jnp.broadcast_to(jnp.arange(1, r + 1), (rows, r))
            return prefix, (prefix <= n_B[:, None]) / n_B[:, None]
        shape = (rows, self.prefix_samples)
        # Stratified: one prefix from each of P equal parts, which is unbiased and less noisy.
        place = (jnp.arange(self.prefix_samples) + jax.random.uniform(key, shape)) / shape[1]
        prefix = self.nth_prefix(batch, place)
        return prefix, jnp.full(shape, 1 / self.prefix_samples)

    def nth_prefix(self, batch: AnswererBatch, place_BxP: jax.Array) -> jax.Array:
        """Returns the length, [B, P], of the prefix at a place in [0, 1) of the allowed ones."""
        if self.prefixes == "late":
            place_BxP = place_BxP**0.25  # P(prefix <= k) = (k / n)⁴.
        ends = batch.step_ends if self.prefixes == "step_ends" else batch.rationale_mask
        count_BxR = jnp.cumsum(ends, axis=1)
        rank_BxP = jnp.minimum(jnp.floor(place_BxP * count_BxR[:, -1:]) + 1, count_BxR[:, -1:])
        return 1 + jnp.sum(count_BxR[:, None, :] < rank_BxP[:, :, None], axis=-1)

    def random_masks(
        self, key: jax.Array, batch: AnswererBatch, masked: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Samples masks and prefixes for fitting the answerer: [B, R] m and [B] k.

        If `masked`, samples prefixes and keeps tokens at a rate uniform in (0, 1), except in
        `fit_unmasked_fraction` of the rows, so that the answerer does not forget how to read.
        """
        n_B = batch.rationale_mask.sum(axis=1)
        keys = jax.random.split(key, 5)
        whole = ~masked | jax.random.bernoulli(keys[0], self.fit_unmasked_fraction, n_B.shape)
        sampled_B = self.nth_prefix(batch, jax.random.uniform(keys[1], (*n_B.shape, 1)))[:, 0]
        prefix_B = jnp.where(whole, n_B, sampled_B)
        unmasked = ~masked | jax.random.bernoulli(keys[2], self.fit_unmasked_fraction, n_B.shape)
        rate_B = jnp.where(unmasked, 1.0, jax.random.uniform(keys[3], n_B.shape))
        keep = jax.random.bernoulli(keys[4], rate_B[:, None], batch.rationale_mask.shape)
        return keep.astype(jnp.float32), prefix_B


def _mean_kept(keep_BxR: jax.Array, batch: AnswererBatch) -> jax.Array:
    """Returns L_m / n, the mean over an example's tokens, averaged over examples (Eq. 6)."""
    return jnp.mean(jnp.mean(keep_BxR, axis=1, where=batch.rationale_mask))


def objective_on(
    learner: MaskLearner, examples: AnswererBatch, batch_size: int, seed: int
) -> Callable[[Params, Params], float]:
    """Returns a function from parameters of generator and answerer to the objective on `examples`.

    The objective is Eq. 7 divided by n, in nats, with hard masks sampled with the same keys in
    every call, by the weights as they are: nothing is relaxed or explored, so values are comparable
    between estimators.
    """
    learner = dataclasses.replace(learner, estimator="score_function", exploration=0.0)

    @jax.jit
    def step(
        generator_params: Params, answerer_params: Params, batch: AnswererBatch, key: jax.Array
    ) -> jax.Array:
        arguments = generator_params, answerer_params, batch, key, learner.alpha, 1.0
        return learner.objective(*arguments)[0]

    def objective(generator_params: Params, answerer_params: Params) -> float:
        values = _batch_means(
            learner, examples, batch_size, seed, step, generator_params, answerer_params
        )
        return float(values)

    return objective


def constant_objectives(
    learner: MaskLearner,
    answerer_params: Params,
    examples: AnswererBatch,
    batch_size: int,
    seed: int,
) -> tuple[float, float]:
    """Returns the objective of keeping every token and none, at `objective_on`'s prefixes."""
    replicated = None if learner.mesh is None else sharding.replicated(learner.mesh)

    @functools.partial(jax.jit, out_shardings=replicated)
    def step(answerer_params: Params, batch: AnswererBatch, key: jax.Array) -> jax.Array:
        prefix_BxP, fraction_BxP = learner._sample_prefixes(jax.random.split(key)[0], batch)

        def answer_loss(keep: float) -> jax.Array:
            keep_BxR = jnp.full(batch.rationale_mask.shape, keep, jnp.float32)
            losses = learner.answerer.prefix_losses(answerer_params, batch, keep_BxR, prefix_BxP)
            return jnp.mean(jnp.sum(losses * fraction_BxP, axis=1))

        return jnp.stack([answer_loss(1.0) + learner.alpha, answer_loss(0.0)])

    keep_all, keep_none = _batch_means(learner, examples, batch_size, seed, step, answerer_params)
    return float(keep_all), float(keep_none)


def _batch_means(
    learner: MaskLearner,
    examples: AnswererBatch,
    batch_size: int,
    seed: int,
    step: Callable[..., jax.Array],
    *params: Params,
) -> np.ndarray:
    """Returns the mean over examples of a step that takes parameters, a batch and its key."""
    root, count = jax.random.key(seed), len(examples.question)
    total = np.zeros(())
    for start in range(0, count, batch_size):
        index = np.arange(start, min(start + batch_size, count))
        batch = learner.take(examples, index)
        values = step(*params, batch, jax.random.fold_in(root, start))
        total = total + np.asarray(values, np.float64) * len(index)
    return total / count
