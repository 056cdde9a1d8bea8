"""Token losses: the weighted cross entropy that Eq. 1, Eq. 8 and Eq. 15 are forms of.

Which tokens count, and how much, is decided on the host and arrives as one array of weights, so
this file knows nothing of steps, phases or methods.

Letters: B examples, U target positions, C positions of a chunk, D width, V vocabulary.
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
# (logits [B, C, V] float32, targets [B, C] int32) -> [B, C] float32: each token's loss by itself.
TokenLoss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
CROSS_ENTROPY = "cross_entropy"

# A chunk has so many positions of a device's rows together, or more where there are many rows: its
# logits are what takes memory, and every chunk costs the devices a sum of the head's gradient.
_POSITIONS, _LEAST = 1024, 32


def negative_log_likelihood(logits_BxCxV: jax.Array, targets_BxC: jax.Array) -> jax.Array:
    """-log P of each target, [B, C] in nats: a `TokenLoss`."""
    place = jax.lax.broadcasted_iota(jnp.int32, logits_BxCxV.shape, 2)
    # Not a gather, whose gradient would be written into zeros as large as the logits.
    picked = jnp.sum(logits_BxCxV, -1, where=place == targets_BxC[..., None])
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
    logits: Head,
    chunk: int | None = None,
) -> jax.Array:
    """-log P of every supervised token, without ever holding the logits of all positions.

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

    Returns:
      [B, U] float32 in nats, 0 where not supervised.
    """
    layout = _Layout(supervised_BxU, chunk)
    order = layout.chunks

    # The branch is inside: what a branch leaves for the backward pass is kept for every chunk anew,
    # the head's matrix among it.
    @jax.checkpoint
    def one(hidden_BxCxD: jax.Array, targets_BxC: jax.Array, supervised_BxC: jax.Array):
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

    parts = (order(hidden_BxUxD), order(targets_BxU), order(supervised_BxU))
    _, nll = jax.lax.scan(lambda _, part: (None, one(*part)), None, parts)
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
    """Σ weight · nll of the supervised tokens (Eq. 15, before the division), and every token's nll.

    As `weighted_loss` of `token_losses` in less work: as the weights are known, a chunk's gradient
    is made with its loss, and logits are not made again in the backward pass.

    Args:
      hidden_BxUxD: see `token_losses`.
      targets_BxU: see there.
      supervised_BxU: see there.
      weights_BxU: float32; w_j for rationale tokens, 1 for the answer's.
      logits: see there.
      chunk: see there.
      token_loss: -log P, unless another is given.

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
    """Where supervised positions are moved to: the front of their rows, in chunks."""

    def __init__(self, supervised_BxU: jax.Array, chunk: int | None) -> None:
        rows, self._length = supervised_BxU.shape
        self._chunk = chunk or chunk_of(sharding.rows_of_a_device(rows), self._length)
        self._order = jnp.argsort(~supervised_BxU, axis=1, stable=True)

    def chunks(self, array: jax.Array) -> jax.Array:
        """[B, U, ...] -> [n, B, C, ...], where n C is U or more."""
        order = self._order.reshape(self._order.shape + (1,) * (array.ndim - 2))
        array = jnp.take_along_axis(array, order, 1)
        padding = [(0, 0), (0, -self._length % self._chunk)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, padding)
        split = array.reshape(array.shape[0], -1, self._chunk, *array.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    def rows(self, parts: jax.Array) -> jax.Array:
        """[n, B, C] -> [B, U], the inverse."""
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
    """Σ weight · nll, and nll [n, B, C], from chunks [n, B, C, ...]."""

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return token_loss(logits.astype(jnp.float32), targets)

    def one(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden, targets, supervised, weights = part
        nll = jax.lax.cond(
            supervised.any(),
            lambda: jnp.where(supervised, loss(head(hidden, *parameters), targets), 0.0),
            lambda: jnp.zeros(targets.shape, jnp.float32),
        )
        return total + jnp.sum(nll * weights, where=supervised), nll

    return jax.lax.scan(one, jnp.zeros(()), (hidden, targets, supervised, weights))


def _weighted_forward(
    head: Any,
    token_loss: TokenLoss,
    hidden: Any,
    parameters: Any,
    targets: Any,
    supervised: Any,
    weights: Any,
) -> Any:
    """As `_weighted`, with the gradient of the sum by `hidden` and by what is trained of a head."""
    trains = [parameter.perturbed for parameter in parameters]
    values = [parameter.value for parameter in parameters]
    trained = [value for value, wanted in zip(values, trains, strict=True) if wanted]

    def made(
        hidden: jax.Array, targets: jax.Array, supervised: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        def chosen(hidden: jax.Array, trained: list[jax.Array]) -> jax.Array:
            rest = iter(trained)
            pairs = zip(values, trains, strict=True)
            return head(hidden, *(next(rest) if wanted else value for value, wanted in pairs))

        result, pull = jax.vjp(chosen, hidden, trained)
        logits = result.astype(jnp.float32)
        nll, slope_of = jax.vjp(lambda logits: token_loss(logits, targets), logits)
        (slope,) = slope_of(jnp.where(supervised, weights, 0.0))
        slope = jnp.where(supervised[..., None], slope, 0.0)
        return jnp.where(supervised, nll, 0.0), *pull(slope.astype(result.dtype))

    def one(sums: list[jax.Array], part: tuple[jax.Array, ...]) -> tuple[list[jax.Array], Any]:
        def add() -> Any:
            nll, by_hidden, by_trained = made(*part)
            added = [a + b.astype(a.dtype) for a, b in zip(sums, by_trained, strict=True)]
            return added, (nll, by_hidden)

        def pass_over() -> Any:
            return sums, (jnp.zeros(part[1].shape, jnp.float32), jnp.zeros_like(part[0]))

        return jax.lax.cond(part[2].any(), add, pass_over)

    parts = (hidden.value, targets.value, supervised.value, weights.value)
    if len(parts[0]) == 1:  # It needs no sum, whose zeros are as large as the head.
        nll, by_hidden, sums = made(*(part[0] for part in parts))
        nll, by_hidden = nll[None], by_hidden[None]
    else:
        zeros = [jnp.zeros(value.shape, jnp.float32) for value in trained]
        sums, (nll, by_hidden) = jax.lax.scan(one, zeros, parts)
    total = jnp.sum(nll * parts[3], where=parts[2])
    sums = iter([a.astype(value.dtype) for a, value in zip(sums, trained, strict=True)])
    by_parameters = tuple(next(sums) if wanted else None for wanted in trains)
    return (total, nll), (by_hidden, by_parameters, nll)


def _weighted_backward(
    head: Any, token_loss: TokenLoss, gradients: Any, slopes: tuple[Any, Any]
) -> Any:
    """The sum's own gradient; nll has none."""
    del head, token_loss
    slope = jnp.zeros(()) if isinstance(slopes[0], SymbolicZero) else slopes[0]
    by_hidden, by_parameters, nll = jax.tree.map(lambda g: (g * slope).astype(g.dtype), gradients)
    return by_hidden, by_parameters, None, None, nll


_weighted.defvjp(_weighted_forward, _weighted_backward, symbolic_zeros=True)


def chunk_of(rows: int, length: int) -> int:
    """C for so many rows on a device, and not much longer than these."""
    return min(max(_LEAST, _POSITIONS // rows), -(-length // _LEAST) * _LEAST)


def weighted_loss(
    nll_BxU: jax.Array, weights_BxU: jax.Array, supervised_BxU: jax.Array
) -> jax.Array:
    """Σ weight · nll (Eq. 15, before the division); sums of parts of a batch can be added up.

    Args:
      nll_BxU: from `token_losses`.
      weights_BxU: float32; w_j for rationale tokens, 1 for the answer's.
      supervised_BxU: bool.

    Returns:
      A float32 scalar.
    """
    return jnp.sum(nll_BxU * weights_BxU, where=supervised_BxU)
