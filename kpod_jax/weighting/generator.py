"""The mask generator: the probability that a rationale token is kept (Eq. 2-4).

Letters: B examples, R rationale tokens, D width of the student's embeddings, H heads, K head width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

# The attention does not distinguish distances beyond this many tokens.
_MAX_DISTANCE = 16
# Bound of the logits: a weight of exactly 0 or 1 would have no gradient to recover with.
_BOUND = 5.0


@jax.custom_vjp
def bounded(logits: jax.Array) -> jax.Array:
    """Clips logits, but at the bound blocks only gradients that push further outward.

    A clipped sigmoid, or a tanh, has no gradient where it is flat: a token that noise drives there
    in the first steps would stay there.
    """
    return jnp.clip(logits, -_BOUND, _BOUND)


def _bounded_forward(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bounded(logits), logits


def _bounded_backward(logits: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    outward = (jnp.abs(logits) >= _BOUND) & (jnp.sign(gradient) != jnp.sign(logits))
    return (jnp.where(outward, 0.0, gradient),)


bounded.defvjp(_bounded_forward, _bounded_backward)


def _init_relative_bias(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Makes each head attend to one neighbor: the token before, after, two before, and so on.

    Adam moves a bias by one learning rate per step, so heads that start with uniform attention need
    hundreds of steps to tell "12" in "= 12 pens" from "12" in "as line 12 says".
    """
    heads, distances = shape
    head = jnp.arange(heads)
    offset = jnp.minimum(head // 2 + 1, _MAX_DISTANCE) * jnp.where(head % 2, 1, -1)
    is_neighbor = jnp.arange(distances) - _MAX_DISTANCE == offset[:, None]
    return 4.0 * is_neighbor + 0.1 * jax.random.normal(key, shape)


class Generator(nn.Module):
    """w_j = σ(f_w(e_j)), e = Att(Emb(r)): one self-attention layer and a two-layer MLP (Eq. 2, 3).

    The attention has a residual connection, which preserves each token's identity, and a learned
    bias for each relative distance, since embeddings alone do not encode order.

    Attributes:
      hidden_size: width of the MLP.
      num_heads: number of attention heads.
      initial_weight: approximate w_j of every token before training.
    """

    hidden_size: int
    num_heads: int
    initial_weight: float = 0.88

    @nn.compact
    def __call__(self, embeddings_BxRxD: jax.Array, mask_BxR: jax.Array) -> jax.Array:
        """Computes the logit of w_j for every token.

        Args:
          embeddings_BxRxD: the student's input embeddings of the rationale; no gradient is needed.
          mask_BxR: bool, False for padding.

        Returns:
          [B, R] float32, between -5 and 5; w is its sigmoid. Values at padding are meaningless.
        """
        width = self.hidden_size // self.num_heads
        x = nn.LayerNorm(name="norm")(embeddings_BxRxD.astype(jnp.float32))
        query, key, value = (
            nn.DenseGeneral((self.num_heads, width), name=name)(x)
            for name in ("query", "key", "value")
        )
        place = jnp.arange(x.shape[1])
        distance = jnp.clip(place[None] - place[:, None], -_MAX_DISTANCE, _MAX_DISTANCE)
        bias = self.param(
            "relative_bias", _init_relative_bias, (self.num_heads, 2 * _MAX_DISTANCE + 1)
        )
        attended_BxRxHxK = jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=bias[:, distance + _MAX_DISTANCE][None],
            mask=mask_BxR[:, None, None, :],
        )
        x = x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out")(attended_BxRxHxK)
        x = nn.gelu(nn.Dense(self.hidden_size, name="mlp_in")(x))
        logits = nn.Dense(1, kernel_init=nn.initializers.normal(0.01), name="mlp_out")(x)
        start = math.log(self.initial_weight / (1 - self.initial_weight))
        return bounded(logits[..., 0] + start)


def gumbel_mask(
    key: jax.Array, logits: jax.Array, temperature: jax.Array | float, straight_through: bool
) -> jax.Array:
    """Samples m_j with P(kept) = σ(logit) by the Gumbel-Softmax over {kept, masked} (Eq. 4).

    The softmax over two classes with log probabilities log w and log(1 - w), plus a Gumbel variable
    each, is a sigmoid of the logit plus the difference of the two variables, which is logistic.

    Args:
      key: random key.
      logits: logits of w, any shape, float32.
      temperature: positive; soft masks approach hard ones as it approaches 0.
      straight_through: return 0/1 masks with the gradient of the soft masks, else the soft masks.

    Returns:
      m, with the shape of the logits, float32. P(m = 1) is exactly w only if straight_through.
    """
    soft = jax.nn.sigmoid((logits + jax.random.logistic(key, logits.shape)) / temperature)
    if not straight_through:
        return soft
    hard = (soft > 0.5).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)
