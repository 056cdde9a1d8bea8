"""Token losses: the weighted cross entropy that Eq. 1, Eq. 8 and Eq. 15 are forms of.

Which tokens count, and how much, is decided on the host and arrives as one array of weights, so
this file knows nothing of steps, stages or methods.

Letters: B examples, U target positions, C positions of a chunk, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kpod_jax import plugins, sharding
from kpod_jax.errors import UserError

# (logits [B, C, V] float32, targets [B, C] int32) -> [B, C] float32: each token's loss by itself.
TokenLoss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
CROSS_ENTROPY = "cross_entropy"

# A chunk has so many positions of a device's rows together, or more where there are many rows: its
# logits are what takes memory, and every chunk costs the devices a sum of the head's gradient.
_POSITIONS, _LEAST = 1024, 32


def negative_log_likelihood(logits_BxCxV: jax.Array, targets_BxC: jax.Array) -> jax.Array:
    """-log P of each target, [B, C] in nats: a `TokenLoss`."""
    picked = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits_BxCxV, -1) - picked


def token_loss_of(name: str) -> TokenLoss:
    """The token loss of `distill.loss`: cross entropy, or package.module:function, your own.

    Raises:
      UserError: it cannot be imported, or does not give one float32 number for each token.
    """
    if name == CROSS_ENTROPY:
        return negative_log_likelihood
    own: TokenLoss = plugins.load(name, "distill.loss")
    if not callable(own):
        raise UserError(f"distill.loss={name!r} is no function; see docs/extending.md.")
    rows, length = 2, 3
    logits = jax.ShapeDtypeStruct((rows, length, 8), jnp.float32)
    given = jax.eval_shape(own, logits, jax.ShapeDtypeStruct((rows, length), jnp.int32))
    if getattr(given, "shape", None) != (rows, length) or given.dtype != jnp.float32:
        raise UserError(
            f"distill.loss={name!r} gave {given} for logits of shape {logits.shape}; expected a "
            f"loss for each token: shape {(rows, length)}, float32."
        )
    return own


def token_losses(
    hidden_BxUxD: jax.Array,
    targets_BxU: jax.Array,
    supervised_BxU: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    chunk: int | None = None,
    token_loss: TokenLoss = negative_log_likelihood,
) -> jax.Array:
    """The loss of every supervised token, without ever holding the logits of all positions.

    Each row's supervised positions are moved to its front; the model's head then works through
    chunks of positions, passes over chunks that no row needs, and its logits are made again in the
    backward pass instead of being kept. So what is not supervised costs (almost) nothing, while
    every shape stays the same whatever is supervised.

    Args:
      hidden_BxUxD: the decoder's output; position u predicts `targets_BxU[:, u]`.
      targets_BxU: int32.
      supervised_BxU: bool.
      logits: the head, [B, C, D] -> [B, C, V] float32.
      chunk: C; None suits it to the rows of a device.
      token_loss: -log P, unless another is given.

    Returns:
      [B, U] float32 in nats, 0 where not supervised.
    """
    rows, length = targets_BxU.shape
    chunk = chunk or chunk_of(sharding.rows_of_a_device(rows), length)
    padding = [(0, 0), (0, -length % chunk)]
    order = jnp.argsort(~supervised_BxU, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)
    supervised = jnp.pad(jnp.take_along_axis(supervised_BxU, order, 1), padding)
    targets = jnp.pad(jnp.take_along_axis(targets_BxU, order, 1), padding)
    hidden = jnp.take_along_axis(hidden_BxUxD, order[..., None], 1)
    hidden = jnp.pad(hidden, [*padding, (0, 0)])

    def chunks(array: jax.Array) -> jax.Array:
        """[B, n * C, ...] -> [n, B, C, ...]."""
        split = array.reshape(array.shape[0], -1, chunk, *array.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    def losses(hidden_BxCxD: jax.Array, targets_BxC: jax.Array) -> jax.Array:
        return token_loss(logits(hidden_BxCxD).astype(jnp.float32), targets_BxC)

    # The branch is inside: what a branch leaves for the backward pass is kept for every chunk anew,
    # the head's matrix among it.
    @jax.checkpoint
    def one(hidden_BxCxD: jax.Array, targets_BxC: jax.Array, supervised_BxC: jax.Array):
        result = jax.lax.cond(
            supervised_BxC.any(),
            losses,
            lambda hidden, targets: jnp.zeros(targets.shape, jnp.float32),
            hidden_BxCxD,
            targets_BxC,
        )
        return jnp.where(supervised_BxC, result, 0.0)

    parts = (chunks(hidden), chunks(targets), chunks(supervised))
    _, nll = jax.lax.scan(lambda _, part: (None, one(*part)), None, parts)
    nll = jnp.moveaxis(nll, 0, 1).reshape(targets.shape)[:, :length]
    return jnp.take_along_axis(nll, place, 1)


def chunk_of(rows: int, length: int) -> int:
    """C for so many rows on a device, and not much longer than these."""
    return min(max(_LEAST, _POSITIONS // rows), -(-length // _LEAST) * _LEAST)


def weighted_loss(
    nll_BxU: jax.Array, weights_BxU: jax.Array, supervised_BxU: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · nll and the number of supervised tokens (Eq. 15, before the division).

    The loss of a batch is the first divided by the second, NOT by Σ weight, so that weighting does
    not change the answer's share. Both are sums, so parts of a batch can be added up.

    Args:
      nll_BxU: from `token_losses`.
      weights_BxU: float32; w_j for rationale tokens, 1 for the answer's.
      supervised_BxU: bool.

    Returns:
      Two float32 scalars.
    """
    total = jnp.sum(nll_BxU * weights_BxU, where=supervised_BxU)
    return total, jnp.sum(supervised_BxU).astype(jnp.float32)
