"""Token losses: the weighted cross entropy behind Eq. 1, Eq. 8 and Eq. 15.

Which tokens count, and how much, is decided on the host and passed in as one array of weights, so
this module does not depend on steps, phases or methods.

Letters: B examples, U target positions, C positions per chunk, D width, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from kpod_jax.parallel import sharding
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

Head: TypeAlias = Callable[[jax.Array], jax.Array]
# (logits [B, C, V] float32, targets [B, C] int32) -> [B, C] float32: each token's independent loss.
TokenLoss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
CROSS_ENTROPY = "cross_entropy"

# Positions per chunk, over all rows of a device, and the minimum per row. Memory is dominated by a
# chunk's logits, and every chunk costs a sum of the head's gradient over devices.
_CHUNK_POSITIONS, _MIN_CHUNK = 1024, 32


def negative_log_likelihood(logits_BxCxV: jax.Array, targets_BxC: jax.Array) -> jax.Array:
    """Returns -log P of each target, [B, C] in nats: a `TokenLoss`."""
    token_ids = jax.lax.broadcasted_iota(jnp.int32, logits_BxCxV.shape, 2)
    # Not a gather, whose gradient would be written into zeros as large as the logits.
    picked = jnp.sum(logits_BxCxV, -1, where=token_ids == targets_BxC[..., None])
    return jax.nn.logsumexp(logits_BxCxV, -1) - picked


def token_loss_of(name: str) -> TokenLoss:
    """Returns the token loss of `distill.loss`: cross entropy, or a custom package.module:function.

    Raises:
      UserError: it cannot be imported, or does not return one float32 number per token.
    """
    if name == CROSS_ENTROPY:
        return negative_log_likelihood
    custom: TokenLoss = plugins.load(name, "distill.loss")
    if not callable(custom):
        raise UserError(f"distill.loss={name!r} is not a function; see docs/extending.md.")
    rows, length = 2, 3
    logits = jax.ShapeDtypeStruct((rows, length, 8), jnp.float32)
    result = jax.eval_shape(custom, logits, jax.ShapeDtypeStruct((rows, length), jnp.int32))
    if getattr(result, "shape", None) != (rows, length) or result.dtype != jnp.float32:
        raise UserError(
            f"distill.loss={name!r} returned {result} for logits of shape {logits.shape}; expected "
            f"one loss per token: shape {(rows, length)}, float32."
        )
    return custom


def token_losses(
    hidden_BxUxD: jax.Array,
    targets_BxU: jax.Array,
    supervised_BxU: jax.Array,
    logits: Head,
    chunk: int | None = None,
) -> jax.Array:
    """Returns -log P of every supervised token, without storing the logits of all positions.

    Each row's supervised positions are moved to its front. The head then runs on chunks of
    positions, skips chunks that no row needs, and recomputes its logits in the backward pass
    instead of storing them. So unsupervised positions cost (almost) nothing, while shapes do not
    depend on what is supervised.

    Args:
      hidden_BxUxD: the decoder's output; position u predicts `targets_BxU[:, u]`.
      targets_BxU: int32.
      supervised_BxU: bool.
      logits: the head, [B, C, D] -> [B, C, V] float32.
      chunk: C; None: chosen from the number of rows per device.

    Returns:
      [B, U] float32 in nats, 0 where not supervised.
    """
    layout = _Layout(supervised_BxU, chunk)
    to_chunks = layout.chunks

    # The checkpoint encloses the branch: residuals of the branch, including the head's matrix,
    # would be stored once per chunk.
    @jax.checkpoint
    def chunk_losses(hidden_BxCxD: jax.Array, targets_BxC: jax.Array, supervised_BxC: jax.Array):
        result = jax.lax.cond(
            supervised_BxC.any(),
            lambda hidden, targets: negative_log_likelihood(
                logits(hidden).astype(jnp.float32), targets
            ),
            lambda hidden, targets: jnp.zeros(targets.shape, jnp.float32),
            hidden_BxCxD,
            targets_BxC,
        )
        return jnp.where(supervised_BxC, result, 0.0)

    parts = (to_chunks(hidden_BxUxD), to_chunks(targets_BxU), to_chunks(supervised_BxU))
    _, nll = jax.lax.scan(lambda _, part: (None, chunk_losses(*part)), None, parts)
    return layout.rows(nll)


def weighted_token_losses(
    hidden_BxUxD: jax.Array,
    targets_BxU: jax.Array,
    supervised_BxU: jax.Array,
    weights_BxU: jax.Array,
    logits: Head,
    chunk: int | None = None,
    token_loss: TokenLoss = negative_log_likelihood,
) -> tuple[jax.Array, jax.Array]:
    """Returns Σ weight · nll of the supervised tokens (Eq. 15, before the division), and each nll.

    Does what `weighted_loss` of `token_losses` does, with less work: the weights are known, so each
    chunk's gradient is computed with its loss, and the backward pass recomputes no logits.

    Args:
      hidden_BxUxD: see `token_losses`.
      targets_BxU: see `token_losses`.
      supervised_BxU: see `token_losses`.
      weights_BxU: float32; w_j for rationale tokens, 1 for answer tokens.
      logits: see `token_losses`.
      chunk: see `token_losses`.
      token_loss: -log P by default.

    Returns:
      A float32 scalar, and [B, U] float32 in nats, which has no gradient.
    """
    layout = _Layout(supervised_BxU, chunk)
    arrays = (hidden_BxUxD, targets_BxU, supervised_BxU, weights_BxU)
    hidden, *others = map(layout.chunks, arrays)
    head, parameters = jax.closure_convert(logits, hidden[0])
    total, nll = _weighted(head, token_loss, hidden, tuple(parameters), *others)  # pyright: ignore
    return total, layout.rows(jax.lax.stop_gradient(nll))


class _Layout:
    """Moves supervised positions to the front of their rows and splits rows into chunks."""

    def __init__(self, supervised_BxU: jax.Array, chunk: int | None) -> None:
        rows, self._length = supervised_BxU.shape
        self._chunk = chunk or chunk_of(sharding.rows_per_device(rows), self._length)
        self._order = jnp.argsort(~supervised_BxU, axis=1, stable=True)

    def chunks(self, array: jax.Array) -> jax.Array:
        """Maps [B, U, ...] to [n, B, C, ...], where n C >= U."""
        order = self._order.reshape(self._order.shape + (1,) * (array.ndim - 2))
        array = jnp.take_along_axis(array, order, 1)
        padding = [(0, 0), (0, -self._length % self._chunk)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, padding)
        split = array.reshape(array.shape[0], -1, self._chunk, *array.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    def rows(self, parts: jax.Array) -> jax.Array:
        """Maps [n, B, C] back to [B, U]."""
        array = jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)[:, : self._length]
        return jnp.take_along_axis(array, jnp.argsort(self._order, axis=1), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted(
    head: Any,
    token_loss: TokenLoss,
    hidden: jax.Array,
    parameters: Sequence[jax.Array],
    targets: jax.Array,
    supervised: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns Σ weight · nll, and nll [n, B, C], from chunks [n, B, C, ...]."""

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return token_loss(logits.astype(jnp.float32), targets)

    def add_chunk(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden, targets, supervised, weights = part
        nll = jax.lax.cond(
            supervised.any(),
            lambda: jnp.where(supervised, loss(head(hidden, *parameters), targets), 0.0),
            lambda: jnp.zeros(targets.shape, jnp.float32),
        )
        return total + jnp.sum(nll * weights, where=supervised), nll

    return jax.lax.scan(add_chunk, jnp.zeros(()), (hidden, targets, supervised, weights))


def _weighted_forward(
    head: Any,
    token_loss: TokenLoss,
    hidden: Any,
    parameters: Any,
    targets: Any,
    supervised: Any,
    weights: Any,
) -> Any:
    """Runs `_weighted`, with the sum's gradient by `hidden` and the head's trained parameters."""
    is_trained = [parameter.perturbed for parameter in parameters]
    values = [parameter.value for parameter in parameters]
    trained = [value for value, train in zip(values, is_trained, strict=True) if train]

    def chunk_gradients(
        hidden: jax.Array, targets: jax.Array, supervised: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        def apply_head(hidden: jax.Array, trained: list[jax.Array]) -> jax.Array:
            remaining = iter(trained)
            pairs = zip(values, is_trained, strict=True)
            return head(hidden, *(next(remaining) if train else value for value, train in pairs))

        result, head_vjp = jax.vjp(apply_head, hidden, trained)
        logits = result.astype(jnp.float32)
        nll, loss_vjp = jax.vjp(lambda logits: token_loss(logits, targets), logits)
        (slope,) = loss_vjp(jnp.where(supervised, weights, 0.0))
        slope = jnp.where(supervised[..., None], slope, 0.0)
        return jnp.where(supervised, nll, 0.0), *head_vjp(slope.astype(result.dtype))

    def add_chunk(
        sums: list[jax.Array], part: tuple[jax.Array, ...]
    ) -> tuple[list[jax.Array], Any]:
        def add() -> Any:
            nll, by_hidden, by_trained = chunk_gradients(*part)
            added = [a + b.astype(a.dtype) for a, b in zip(sums, by_trained, strict=True)]
            return added, (nll, by_hidden)

        def skip() -> Any:
            return sums, (jnp.zeros(part[1].shape, jnp.float32), jnp.zeros_like(part[0]))

        return jax.lax.cond(part[2].any(), add, skip)

    parts = (hidden.value, targets.value, supervised.value, weights.value)
    if len(parts[0]) == 1:  # No accumulator needed: its zeros are as large as the head.
        nll, by_hidden, sums = chunk_gradients(*(part[0] for part in parts))
        nll, by_hidden = nll[None], by_hidden[None]
    else:
        zeros = [jnp.zeros(value.shape, jnp.float32) for value in trained]
        sums, (nll, by_hidden) = jax.lax.scan(add_chunk, zeros, parts)
    total = jnp.sum(nll * parts[3], where=parts[2])
    sums = iter([a.astype(value.dtype) for a, value in zip(sums, trained, strict=True)])
    by_parameters = tuple(next(sums) if train else None for train in is_trained)
    return (total, nll), (by_hidden, by_parameters, nll)


def _weighted_backward(
    head: Any, token_loss: TokenLoss, gradients: Any, slopes: tuple[Any, Any]
) -> Any:
    """Scales the sum's gradient; nll has none."""
    del head, token_loss
    slope = jnp.zeros(()) if isinstance(slopes[0], SymbolicZero) else slopes[0]
    by_hidden, by_parameters, nll = jax.tree.map(lambda g: (g * slope).astype(g.dtype), gradients)
    return by_hidden, by_parameters, None, None, nll


_weighted.defvjp(_weighted_forward, _weighted_backward, symbolic_zeros=True)


def chunk_of(rows: int, length: int) -> int:
    """Returns C for `rows` rows on a device, not much longer than the rows."""
    return min(max(_MIN_CHUNK, _CHUNK_POSITIONS // rows), -(-length // _MIN_CHUNK) * _MIN_CHUNK)


def weighted_loss(
    nll_BxU: jax.Array, weights_BxU: jax.Array, supervised_BxU: jax.Array
) -> jax.Array:
    """Returns Σ weight · nll (Eq. 15, before the division); sums over parts of a batch add up.

    Args:
      nll_BxU: from `token_losses`.
      weights_BxU: float32; w_j for rationale tokens, 1 for answer tokens.
      supervised_BxU: bool.

    Returns:
      A float32 scalar.
    """
    return jnp.sum(nll_BxU * weights_BxU, where=supervised_BxU)
