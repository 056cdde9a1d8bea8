"""A teacher's distributions over the tokens of its rationales, aligned with the student's tokens.

A line of the file is a rationale:

    {"question": …, "rationale": …, "tokens": ["Tom", " has", …], "top_logprobs": [{…}, {…}, …]}

`tokens` spell the rationale, and may go on behind it; `top_logprobs` has an object for each of them
from some tokens that could have stood there to their log probabilities, as APIs return them.

Letters: N examples, B rows, U target positions, K tokens of a distribution, M target tokens of all
examples together.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kpod_jax.data import jsonl
from kpod_jax.data.batches import Batch
from kpod_jax.data.buckets import padded
from kpod_jax.data.overlap import normalised
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE = "▁"  # SentencePiece's.


@dataclasses.dataclass(frozen=True)
class Distributions:
    """Distributions of the targets' tokens; one-hot where the teacher gave none.

    Attributes:
      tokens: N slices [*, K] int32, of the student's vocabulary.
      probabilities: N slices [*, K] float32, which sum to 1 over K.
      rationales: of the N examples' rationales, how many the file has.
      matched: rationale tokens that have a distribution.
    """

    tokens: Ragged
    probabilities: Ragged
    rationales: int
    matched: int

    def arrays(self, rows_B: np.ndarray, size_U: int) -> Batch:
        """A batch's "teacher_tokens" and "teacher_probabilities", [B, U, K]; 0 in padding."""
        return {
            "teacher_tokens": padded(self.tokens, rows_B, size_U, 0)[0],
            "teacher_probabilities": padded(self.probabilities, rows_B, size_U, 0)[0],
        }


def read(path: str, tokenized: TokenizedSet, tokenizer: "PreTrainedTokenizerFast") -> Distributions:
    """Reads a file and aligns it.

    Teacher and student may cut the same text differently. A student's token that spells the very
    characters of a teacher's, white space before them aside, gets its distribution: those
    alternatives that are single tokens of the student, scaled to sum to 1. All other tokens are
    one-hot.

    Args:
      path: see above.
      tokenized: the examples.
      tokenizer: the student's.

    Raises:
      UserError: the file cannot be read, a line is no such row, or it has none of the rationales.
    """
    rows = _read(path)
    vocabulary, texts = _vocabulary(tokenizer)
    targets = tokenized.targets
    found: dict[int, list[tuple[int, float]]] = {}
    rationales = 0
    for i, record in enumerate(tokenized.records):
        row = rows.get((normalised(record.question), record.rationale.strip()))
        if not record.steps or row is None:
            continue
        rationales += 1
        lead = len(record.rationale) - len(record.rationale.lstrip())
        by_span = _by_span(*row, lead)
        for j, span in enumerate(map(tuple, tokenized.rationale_char_spans[i].tolist())):
            if span[0] < span[1] and span in by_span:
                own = int(targets[i][j])
                token, top = by_span[span]
                mapped = _mapped(token, top, texts.get(own, ""), vocabulary)
                if mapped:
                    found[int(targets.offsets[i]) + j] = mapped
    if not rationales:
        raise UserError(
            f"{path} has distributions for none of the rationales that are trained on. Expected "
            "rows whose question and rationale are those of the training records."
        )
    if not found:
        raise UserError(
            f"The student's tokens and those of {path} have no token in common, so that no "
            "distribution can be matched. Leave baseline.distributions empty."
        )
    size_K = max(len(top) for top in found.values())
    tokens_MxK = np.zeros((len(targets.values), size_K), np.int32)
    p_MxK = np.zeros(tokens_MxK.shape, np.float32)
    tokens_MxK[:, 0], p_MxK[:, 0] = targets.values, 1
    for place, top in found.items():
        tokens_MxK[place, : len(top)] = [token for token, _ in top]
        p_MxK[place, : len(top)] = [p for _, p in top]
    return Distributions(
        Ragged(tokens_MxK, targets.offsets), Ragged(p_MxK, targets.offsets), rationales, len(found)
    )


def _read(path: str) -> dict[tuple[str, str], tuple[list[str], list[dict[str, float]]]]:
    """Tokens and distributions by question and rationale."""
    rows = {}
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            question, rationale = (jsonl.text_column(row, c) for c in ("question", "rationale"))
            tokens, tops = row.get("tokens", []), row.get("top_logprobs", [])
            if not _all(tokens, str) or not _all(tops, dict) or len(tokens) != len(tops):
                raise ValueError("has no lists 'tokens' and 'top_logprobs' of the same length")
            if not all(_is_logprob(value) for top in tops for value in top.values()):
                raise ValueError("has a 'top_logprobs' with a value that is no log probability")
            if not "".join(tokens).lstrip().startswith(rationale):
                raise ValueError("has 'tokens' that do not spell its 'rationale'")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} {error}. Expected a rationale a line: "
                '{"question": …, "rationale": …, "tokens": […], "top_logprobs": [{token: log '
                "probability, …}, …]}."
            ) from error
        rows[normalised(question), rationale] = tokens, tops
    return rows


def _by_span(
    tokens: list[str], tops: list[dict[str, float]], lead: int
) -> dict[tuple[int, ...], tuple[str, dict[str, float]]]:
    """Each token and its distribution by its characters, without white space at its start."""
    text = "".join(tokens)
    end = lead - (len(text) - len(text.lstrip()))
    found = {}
    for token, top in zip(tokens, tops, strict=True):
        start, end = end, end + len(token)
        found[start + len(token) - len(token.lstrip()), end] = token, top
    return found


def _mapped(
    token: str, top: dict[str, float], own: str, vocabulary: dict[str, int]
) -> list[tuple[int, float]]:
    """The alternatives that the student has a token for, and probabilities that sum to 1."""
    # At a text's start one tokenizer may write a space that the other does not.
    lacks, has = not token[:1].isspace(), own[:1].isspace()
    probabilities: dict[int, float] = {}
    for text, logprob in top.items():
        if lacks and has:
            text = " " + text
        elif not lacks and not has:
            text = text.lstrip(" ")
        if (id_ := vocabulary.get(text)) is not None:
            probabilities[id_] = probabilities.get(id_, 0.0) + math.exp(logprob)
    total = sum(probabilities.values())
    return [(id_, p / total) for id_, p in probabilities.items()] if total > 0 else []


def _vocabulary(tokenizer: "PreTrainedTokenizerFast") -> tuple[dict[str, int], dict[int, str]]:
    """Ids by the text that a token stands for inside of a text, and the other way round."""
    pieces: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    is_sentencepiece = any(piece.startswith(_SPACE) for piece in pieces)
    texts: dict[int, str] = {}
    for piece, id_ in pieces.items():
        if id_ in special:
            continue
        if is_sentencepiece:
            texts[id_] = piece.replace(_SPACE, " ")
        else:
            text = tokenizer.convert_tokens_to_string([piece])
            if "\ufffd" not in text:  # Part of a character.
                texts[id_] = text
    return {text: id_ for id_, text in texts.items()}, texts


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 1e-6
