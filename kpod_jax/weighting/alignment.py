"""Rationales in the answerer's own tokens, aligned by characters with the student's tokens.

Weights, masks and prefixes are the student's: w_j belongs to a token of the student (Eq. 2-4). An
answerer of another family splits the same text differently. It sees a token of its own if all of
the student's tokens that share a character with it are kept (Eq. 5).

Letters: B rows, P prefixes per row, R student tokens, T answerer tokens, W student tokens that
share characters with one answerer token; M student and N answerer tokens of all records together.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.data.records import Ragged


@flax.struct.dataclass
class Reading:
    """Rationales as an answerer with another tokenizer reads them, padded on the right.

    Attributes:
      tokens: [B, T] int32, the answerer's tokens.
      mask: [B, T] bool.
      starts: [B, T] int32, the first student token that shares a character with the token.
      ends: [B, T] int32, one past the last such token, or `starts` if there is none. It is also the
        length of the shortest prefix in which the token ends.
      width: W, the maximum of `ends - starts`.
    """

    tokens: jax.Array
    mask: jax.Array
    starts: jax.Array
    ends: jax.Array
    width: int = flax.struct.field(pytree_node=False)

    def keep(self, keep_BxR: jax.Array) -> jax.Array:
        """Returns the masks of the answerer's tokens, [B, T], for those of the student's tokens.

        The product over the student's tokens is 1 if all are kept, and differentiable for soft
        masks.
        """
        place_BxTxW = self.starts[..., None] + jnp.arange(self.width)
        rows, last = len(keep_BxR), keep_BxR.shape[1] - 1
        flat = jnp.minimum(place_BxTxW, last).reshape(rows, -1)
        keep_BxTxW = jnp.take_along_axis(keep_BxR, flat, axis=1).reshape(place_BxTxW.shape)
        return jnp.prod(jnp.where(place_BxTxW < self.ends[..., None], keep_BxTxW, 1), axis=-1)

    def lengths(self, prefix_BxP: jax.Array) -> jax.Array:
        """Returns how many answerer tokens end within the first k student tokens, [B, P] int32."""
        within_BxPxT = self.ends[:, None] <= prefix_BxP[..., None]
        return jnp.sum(within_BxPxT & self.mask[:, None], axis=-1)


def align(student_spans: Ragged, answerer_spans: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Finds the student tokens that share a character with each answerer token.

    Characters between two student tokens, such as spaces, belong to the first, so every answerer
    token has a student token, unless it is whitespace before all of them.

    Args:
      student_spans: int32 [*, 2], `TokenizedSet.rationale_char_spans` of the student; M spans.
      answerer_spans: the same for the answerer and the same rationales; N spans.

    Returns:
      The first student token within the rationale, [N] int32, and one past the last, [N] int32.
    """
    # All rationales together: record i begins at character i * stride.
    stride = int(max(s.values.max(initial=0) for s in (student_spans, answerer_spans))) + 1
    record_M = np.repeat(np.arange(len(student_spans)), student_spans.lengths)
    record_N = np.repeat(np.arange(len(answerer_spans)), answerer_spans.lengths)
    starts_M, ends_M = _characters(student_spans, record_M * stride)
    from_N, to_N = _characters(answerer_spans, record_N * stride)
    # The byte tokens of one character share their start; the next start is another token's.
    next_start_M = np.append(starts_M, np.iinfo(np.int64).max)[
        np.searchsorted(starts_M, starts_M, side="right")
    ]
    ends_M = np.maximum(ends_M, np.minimum(next_start_M, (record_M + 1) * stride))
    offset_N = student_spans.offsets[record_N]
    first_N = np.searchsorted(ends_M, from_N, side="right") - offset_N
    end_N = np.searchsorted(starts_M, to_N, side="left") - offset_N
    return first_N.astype(np.int32), np.maximum(first_N, end_N).astype(np.int32)


def _characters(spans: Ragged, base_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns first and one past the last character of each token, both [M] int64.

    A whitespace token, whose span is empty, gets the character before its end.
    """
    start_M, end_M = spans.values.reshape(-1, 2).astype(np.int64).T
    return np.maximum(start_M - (start_M == end_M), 0) + base_M, end_M + base_M
