"""The objective of mask learning (Eq. 5-7): the answer's loss under masks, the price of tokens.

Letters: B examples, P prefixes of each, R rationale tokens, M masks, V vocabulary, D embedding.
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
    """The objective of mask learning, and the prefixes and masks that are drawn.

    Attributes:
      answerer: θw's module.
      generator: of masks.
      embeddings: [V, D], the pre-trained student's input embeddings.
      alpha: of Eq. 7.
      prefixes: "all"; "sampled", P of them, uniformly; "step_ends", likewise, but of those that
        end with a step; or "late", P of all, with a probability that grows with their length. The
        last two are no estimate of Eq. 5: they look where answers are decided, and leave out
        prefixes cut inside a step, or take fewer short ones, of which most decide nothing.
      prefix_samples: P, where sampled.
      estimator: of the gradient: "straight_through" or "soft", see `gumbel_mask`, go through the
        answerer; "score_function" compares the losses of hard masks, and has no bias where
        `exploration` is 0.
      mask_samples: masks of each example, for "score_function" alone; at least 2.
      exploration: least probability with which "score_function" masks and keeps any token, whatever
        its weight; in [0, 0.5). Above 0 its gradient is that of the masks drawn, not of w.
      fit_unmasked_fraction: of the rows that the answerer is fit on, the fraction that shows the
        whole rationale instead of a prefix, and the fraction without a mask.
      mesh: that rows are split over; None: all that is at hand.
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
        """Some rows, on the devices."""
        return self.place(take(batch, index))

    def place(self, rows: AnswererBatch) -> AnswererBatch:
        """Rows of the host, on the devices."""
        return rows if self.mesh is None else sharding.place_whole(rows, self.mesh)

    def logits(self, generator_params: Params, batch: AnswererBatch) -> jax.Array:
        """[B, R] the logits of w_j."""
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
        """L_k / n, the mean over prefixes of the answer's loss + α · mean of m (Eq. 5-7).

        Both terms are of the same masks and get their gradient in the same way, so that α is the
        price of a kept token beside the answer's loss under every estimator. The score function
        has the expectation w_j for L_m's m_j, which has the same mean and no noise.

        Returns:
          The objective, averaged over examples, and its parts; "mask_entropy", in nats a token, is
          0 where masks are certain and 0.69 where they say nothing.
        """
        logits_BxR = self.logits(generator_params, batch)
        prefix_key, mask_key = jax.random.split(key)
        prefix_BxP, share_BxP = self._prefixes(prefix_key, batch)
        weights = jax.nn.sigmoid(logits_BxR)
        arguments = answerer_params, batch, mask_key, logits_BxR, prefix_BxP, share_BxP
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
        share_BxP: jax.Array,
        temperature: jax.Array | float,
    ) -> tuple[jax.Array, jax.Array]:
        """L_p / n and L_m / n, with the gradient of the relaxed masks (Eq. 4-6)."""
        hard = self.estimator == "straight_through"
        # Eq. 5 has one mask for all prefixes. Sampled prefixes have a mask each, which is less
        # noisy, unless it is one mask that makes them cheap.
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
            losses = losses.reshape(share_BxP.shape)
        return jnp.mean(jnp.sum(losses * share_BxP, axis=1)), _mean_kept(keep, rows)

    def _score_function(
        self,
        answerer_params: Params,
        batch: AnswererBatch,
        key: jax.Array,
        logits_BxR: jax.Array,
        prefix_BxP: jax.Array,
        share_BxP: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """L_p / n under M hard masks, and L_m / n, with the score function's gradient.

        d E[L] / d logit_j = E[(L - b) (m_j - w_j)], without bias where nothing is explored. For b
        each mask has the mean loss of the example's other masks, prefix by prefix; and of the
        losses only those count whose prefix holds the token, since the others do not depend on it.
        The generator's gradient does not go through the answerer, so each mask costs a forward
        pass; the answerer's own, in joint training, is that of the mean loss.
        """
        count, (rows, length) = self.mask_samples, logits_BxR.shape
        fixed_BxR = jax.lax.stop_gradient(logits_BxR)
        weights_BxR = self._explored(fixed_BxR)
        keep_MxBxR = jax.random.bernoulli(key, weights_BxR, (count, rows, length))
        repeated = jax.tree.map(lambda array: jnp.concatenate([array] * count), batch)
        losses = self.answerer.prefix_losses(
            answerer_params,
            repeated,
            keep_MxBxR.reshape(-1, length).astype(jnp.float32),
            jnp.concatenate([prefix_BxP] * count),
        )
        losses_MxBxP = losses.reshape(count, *prefix_BxP.shape) * share_BxP
        fixed_MxBxP = jax.lax.stop_gradient(losses_MxBxP)
        above_MxBxP = (fixed_MxBxP - fixed_MxBxP.mean(axis=0)) * count / (count - 1)
        holds_BxPxR = jnp.arange(length) < prefix_BxP[..., None]
        above_MxBxR = jnp.einsum("mbp,bpr->mbr", above_MxBxP, holds_BxPxR.astype(jnp.float32))
        # Its value is 0; its gradient by the logits is the score function's.
        score_MxBxR = (keep_MxBxR - weights_BxR) * (logits_BxR - fixed_BxR)
        surrogate_MxB = jnp.sum(above_MxBxR * score_MxBxR, axis=-1, where=batch.rationale_mask)
        answer_loss = jnp.mean(losses_MxBxP.sum(axis=-1) + surrogate_MxB)
        return answer_loss, self._price(logits_BxR, batch)

    def _explored(self, logits_BxR: jax.Array) -> jax.Array:
        """The probability with which a token is kept in a mask of `_score_function`."""
        weights_BxR = jax.nn.sigmoid(logits_BxR)
        return jnp.clip(weights_BxR, self.exploration, 1 - self.exploration)

    def _price(self, logits_BxR: jax.Array, batch: AnswererBatch) -> jax.Array:
        """The mean weight, L_m / n, with a gradient that is scaled as that of L_p is.

        Either has the factor w (1 - w), that of the weight by its logit. Where tokens are masked
        more or less often than their weights say, the factor is that of the masks' probability, so
        that loss and price stay in proportion and no logit is out of reach.
        """
        fixed_BxR = jax.lax.stop_gradient(logits_BxR)
        probability_BxR = self._explored(fixed_BxR)
        moved_BxR = (logits_BxR - fixed_BxR) * probability_BxR * (1 - probability_BxR)
        return _mean_kept(jax.nn.sigmoid(fixed_BxR) + moved_BxR, batch)

    def _prefixes(self, key: jax.Array, batch: AnswererBatch) -> tuple[jax.Array, jax.Array]:
        """[B, P] the prefixes' lengths, and each one's share of its example's mean."""
        rows, r = batch.rationale_mask.shape
        if self.prefixes == "all":
            n_B = batch.rationale_mask.sum(axis=1)
            prefix = jnp.broadcast_to(jnp.arange(1, r + 1), (rows, r))
            return prefix, (prefix <= n_B[:, None]) / n_B[:, None]
        shape = (rows, self.prefix_samples)
        # One of each of P equal parts, which is less noisy than any P, and as unbiased.
        place = (jnp.arange(self.prefix_samples) + jax.random.uniform(key, shape)) / shape[1]
        prefix = self.nth_prefix(batch, place)
        return prefix, jnp.full(shape, 1 / self.prefix_samples)

    def nth_prefix(self, batch: AnswererBatch, place_BxP: jax.Array) -> jax.Array:
        """[B, P] the length of the prefix at a place in [0, 1) of those that are looked at."""
        if self.prefixes == "late":
            place_BxP = place_BxP**0.25  # P(prefix <= k) = (k / n)⁴.
        ends = batch.step_ends if self.prefixes == "step_ends" else batch.rationale_mask
        count_BxR = jnp.cumsum(ends, axis=1)
        wanted_BxP = jnp.minimum(jnp.floor(place_BxP * count_BxR[:, -1:]) + 1, count_BxR[:, -1:])
        return 1 + jnp.sum(count_BxR[:, None, :] < wanted_BxP[:, :, None], axis=-1)

    def random_masks(
        self, key: jax.Array, batch: AnswererBatch, masked: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Prefixes and masks for fitting the answerer: [B, R] m and [B] k.

        Where `masked`, prefixes are drawn and tokens are kept at a rate uniform in (0, 1), but for
        `fit_unmasked_fraction` of the rows, lest reading be unlearned.
        """
        n_B = batch.rationale_mask.sum(axis=1)
        keys = jax.random.split(key, 5)
        whole = ~masked | jax.random.bernoulli(keys[0], self.fit_unmasked_fraction, n_B.shape)
        drawn_B = self.nth_prefix(batch, jax.random.uniform(keys[1], (*n_B.shape, 1)))[:, 0]
        prefix_B = jnp.where(whole, n_B, drawn_B)
        clear = ~masked | jax.random.bernoulli(keys[2], self.fit_unmasked_fraction, n_B.shape)
        rate_B = jnp.where(clear, 1.0, jax.random.uniform(keys[3], n_B.shape))
        keep = jax.random.bernoulli(keys[4], rate_B[:, None], batch.rationale_mask.shape)
        return keep.astype(jnp.float32), prefix_B


def _mean_kept(keep_BxR: jax.Array, batch: AnswererBatch) -> jax.Array:
    """L_m / n, the mean over an example's tokens, averaged over examples (Eq. 6)."""
    return jnp.mean(jnp.mean(keep_BxR, axis=1, where=batch.rationale_mask))


def objective_on(
    learner: MaskLearner, examples: AnswererBatch, batch_size: int, seed: int
) -> Callable[[Params, Params], float]:
    """The objective on some examples, of parameters of the generator and of the answerer.

    It is Eq. 7 divided by n, in nats, with hard masks that are drawn alike at every call, by the
    weights as they are: nothing is relaxed or explored, so that values of all estimators compare.
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
    """The objective at the prefixes of `objective_on` with every token kept, and with none."""
    where = None if learner.mesh is None else sharding.replicated(learner.mesh)

    @functools.partial(jax.jit, out_shardings=where)
    def step(answerer_params: Params, batch: AnswererBatch, key: jax.Array) -> jax.Array:
        prefix_BxP, share_BxP = learner._prefixes(jax.random.split(key)[0], batch)

        def answer_loss(keep: float) -> jax.Array:
            keep_BxR = jnp.full(batch.rationale_mask.shape, keep, jnp.float32)
            losses = learner.answerer.prefix_losses(answerer_params, batch, keep_BxR, prefix_BxP)
            return jnp.mean(jnp.sum(losses * share_BxP, axis=1))

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
    """The mean over examples of a step that takes parameters, a batch and its key."""
    root, count = jax.random.key(seed), len(examples.question)
    total = np.zeros(())
    for start in range(0, count, batch_size):
        index = np.arange(start, min(start + batch_size, count))
        batch = learner.take(examples, index)
        values = step(*params, batch, jax.random.fold_in(root, start))
        total = total + np.asarray(values, np.float64) * len(index)
    return total / count
