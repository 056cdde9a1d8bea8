"""The generator of masks: how probable it is that a rationale token is kept (Eq. 2-4).

Letters: B examples, R rationale tokens, D width of the student's embeddings, H heads, K head width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

# Distances beyond this many tokens are one and the same to the attention.
_MAX_DISTANCE = 16
# Logits lie between -5 and 5: a weight of 0 or 1 would have no gradient to come back by.
_BOUND = 5.0


@jax.custom_vjp
def bounded(logits: jax.Array) -> jax.Array:
    """Logits cut to the bound, whose gradient descends along what leads back, and that alone.

    A sigmoid of them that is cut, or a tanh, has no gradient where it is flat: a token that noise
    drove there in the first steps stays there for good.
    """
    return jnp.clip(logits, -_BOUND, _BOUND)


def _bounded_forward(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bounded(logits), logits


def _bounded_backward(logits: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    leaves = (jnp.abs(logits) >= _BOUND) & (jnp.sign(gradient) != jnp.sign(logits))
    return (jnp.where(leaves, 0.0, gradient),)


bounded.defvjp(_bounded_forward, _bounded_backward)


def _near_sighted(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Each head begins at one neighbour: the token before, the one after, two before, and so on.

    Adam moves a bias by one learning rate a step, so heads that begin by looking everywhere take
    hundreds of steps before they tell "12" in "= 12 pens" from "12" in "as line 12 says".
    """
    heads, distances = shape
    head = jnp.arange(heads)
    offset = jnp.minimum(head // 2 + 1, _MAX_DISTANCE) * jnp.where(head % 2, 1, -1)
    begins = jnp.arange(distances) - _MAX_DISTANCE == offset[:, None]
    return 4.0 * begins + 0.1 * jax.random.normal(key, shape)


class Generator(nn.Module):
    """w_j = σ(f_w(e_j)), e = Att(Emb(r)): one self-attention layer and a two-layer MLP (Eq. 2, 3).

    The attention has a residual connection, so that a token's own identity is not lost, and a
    learned bias for each relative distance, since embeddings alone do not tell what stands beside
    what.

    Attributes:
      hidden_size: width of the MLP.
      num_heads: of the attention.
      initial_weight: w_j of every token before training, about.
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
          [B, R] float32, between -5 and 5; w is its sigmoid. Values at padding mean nothing.
        """
        width = self.hidden_size // self.num_heads
        x = nn.LayerNorm(name="norm")(embeddings_BxRxD.astype(jnp.float32))
        query, key, value = (
            nn.DenseGeneral((self.num_heads, width), name=name)(x)
            for name in ("query", "key", "value")
        )
        place = jnp.arange(x.shape[1])
        distance = jnp.clip(place[None] - place[:, None], -_MAX_DISTANCE, _MAX_DISTANCE)
        bias = self.param("relative_bias", _near_sighted, (self.num_heads, 2 * _MAX_DISTANCE + 1))
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
    """Samples m_j from P(kept) = σ(logit) by the Gumbel-Softmax over {kept, masked} (Eq. 4).

    The softmax over two classes with log probabilities log w and log(1 - w) and a Gumbel variable
    each is a sigmoid of the logit plus their difference, which is logistic.

    Args:
      key: of the noise.
      logits: of w, any shape, float32.
      temperature: above 0; towards 0 soft masks become hard ones.
      straight_through: 0/1 masks that pass back the soft mask's gradient; else the soft masks.

    Returns:
      m of the shape of the logits, float32. P(m = 1) is w exactly where straight_through.
    """
    soft = jax.nn.sigmoid((logits + jax.random.logistic(key, logits.shape)) / temperature)
    if not straight_through:
        return soft
    hard = (soft > 0.5).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)
