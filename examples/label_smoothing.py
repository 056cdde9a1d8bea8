"""A custom loss: cross entropy with label smoothing."""

import jax
import jax.numpy as jnp

SMOOTHING = 0.1  # Probability mass spread evenly over the vocabulary.


def label_smoothing(logits, targets):
    """Returns the loss per token: [B, C, V] float32, [B, C] int32 -> [B, C] float32, in nats."""
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -(1 - SMOOTHING) * picked - SMOOTHING * log_p.mean(axis=-1)
