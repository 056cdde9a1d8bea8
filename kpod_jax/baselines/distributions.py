"""Token distributions of a teacher for its rationales, aligned with the student's tokens.

Each line of the file is a rationale:

    {"question": …, "rationale": …, "tokens": ["Tom", " has", …], "top_logprobs": [{…}, {…}, …]}

`tokens` spell the rationale and may continue after it. `top_logprobs` has one object per token that
maps alternatives for it to their log probabilities, as APIs return them.

Letters: N examples, B rows, U target positions, K tokens of a distribution, M target tokens in
total.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kpod_jax.data import jsonl
from kpod_jax.data.batches import Batch
from kpod_jax.data.buckets import padded
from kpod_jax.data.overlap import normalize_question
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE = "▁"  # SentencePiece's marker for a space.


@dataclasses.dataclass(frozen=True)
class Distributions:
    """Distributions for the target tokens; one-hot where the teacher provides none.

    Attributes:
      tokens: N slices [*, K] int32, ids in the student's vocabulary.
      probabilities: N slices [*, K] float32 that sum to 1 over K.
      rationales: number of the N examples whose rationales are in the file.
      matched: number of rationale tokens with a distribution.
    """

    tokens: Ragged
    probabilities: Ragged
    rationales: int
    matched: int

    def arrays(self, rows_B: np.ndarray, size_U: int) -> Batch:
        """Returns "teacher_tokens" and "teacher_probabilities" of a batch, [B, U, K], 0-padded."""
        return {
            "teacher_tokens": padded(self.tokens, rows_B, size_U, 0)[0],
            "teacher_probabilities": padded(self.probabilities, rows_B, size_U, 0)[0],
        }


def read(path: str, tokenized: TokenizedSet, tokenizer: "PreTrainedTokenizerFast") -> Distributions:
    """Reads distributions from a file and aligns them with the student's tokens.

    Teacher and student may tokenize the same text differently. If a student token covers the same
    characters as a teacher token, leading whitespace aside, it gets that token's distribution,
    restricted to alternatives that are single tokens of the student and rescaled to sum to 1. All
    other tokens are one-hot.

    Args:
      path: a JSONL file in the format above.
      tokenized: the examples.
      tokenizer: the student's tokenizer.

    Raises:
      UserError: if the file cannot be read, a line is malformed, or no rationale or no token
        matches.
    """
    rows = _read_rows(path)
    vocabulary, texts = _vocabulary(tokenizer)
    targets = tokenized.targets
    matches: dict[int, list[tuple[int, float]]] = {}  # By position in `targets.values`.
    rationales = 0
    for i, record in enumerate(tokenized.records):
        row = rows.get((normalize_question(record.question), record.rationale.strip()))
        if not record.steps or row is None:
            continue
        rationales += 1
        lead = len(record.rationale) - len(record.rationale.lstrip())
        by_span = _by_span(*row, lead)
        for j, span in enumerate(map(tuple, tokenized.rationale_char_spans[i].tolist())):
            if span[0] < span[1] and span in by_span:
                target = int(targets[i][j])
                token, top = by_span[span]
                mapped = _map_to_student(token, top, texts.get(target, ""), vocabulary)
                if mapped:
                    matches[int(targets.offsets[i]) + j] = mapped
    if not rationales:
        raise UserError(
            f"{path} has no distributions for any training rationale. Expected rows with the "
            "question and rationale of a training record."
        )
    if not matches:
        raise UserError(
            f"The student's tokens have no token in common with those in {path}, so no "
            "distribution can be matched. Leave baseline.distributions empty."
        )
    size_K = max(len(top) for top in matches.values())
    tokens_MxK = np.zeros((len(targets.values), size_K), np.int32)
    p_MxK = np.zeros(tokens_MxK.shape, np.float32)
    tokens_MxK[:, 0], p_MxK[:, 0] = targets.values, 1
    for position, top in matches.items():
        tokens_MxK[position, : len(top)] = [token for token, _ in top]
        p_MxK[position, : len(top)] = [p for _, p in top]
    return Distributions(
        tokens=Ragged(tokens_MxK, targets.offsets),
        probabilities=Ragged(p_MxK, targets.offsets),
        rationales=rationales,
        matched=len(matches),
    )


def _read_rows(path: str) -> dict[tuple[str, str], tuple[list[str], list[dict[str, float]]]]:
    """Returns the tokens and distributions by question and rationale."""
    rows = {}
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            question, rationale = (jsonl.text_column(row, c) for c in ("question", "rationale"))
            tokens, tops = row.get("tokens", []), row.get("top_logprobs", [])
            if (
                not _is_list_of(tokens, str)
                or not _is_list_of(tops, dict)
                or len(tokens) != len(tops)
            ):
                raise ValueError("has no lists 'tokens' and 'top_logprobs' of the same length")
            if not all(_is_logprob(value) for top in tops for value in top.values()):
                raise ValueError("has a value in 'top_logprobs' that is not a log probability")
            if not "".join(tokens).lstrip().startswith(rationale):
                raise ValueError("has 'tokens' that do not spell its 'rationale'")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} {error}. Expected one rationale per line: "
                '{"question": …, "rationale": …, "tokens": […], "top_logprobs": [{token: log '
                "probability, …}, …]}."
            ) from error
        rows[normalize_question(question), rationale] = tokens, tops
    return rows


def _by_span(
    tokens: list[str], tops: list[dict[str, float]], lead: int
) -> dict[tuple[int, ...], tuple[str, dict[str, float]]]:
    """Maps character spans, without leading whitespace, to tokens and their distributions."""
    text = "".join(tokens)
    end = lead - (len(text) - len(text.lstrip()))
    by_span = {}
    for token, top in zip(tokens, tops, strict=True):
        start, end = end, end + len(token)
        by_span[start + len(token) - len(token.lstrip()), end] = token, top
    return by_span


def _map_to_student(
    token: str, top: dict[str, float], student_token: str, vocabulary: dict[str, int]
) -> list[tuple[int, float]]:
    """Returns the alternatives in the student's vocabulary, with probabilities that sum to 1."""
    # At the start of a text, one tokenizer may add a space that the other does not.
    teacher_has_space = token[:1].isspace()
    student_has_space = student_token[:1].isspace()
    probabilities: dict[int, float] = {}
    for text, logprob in top.items():
        if student_has_space and not teacher_has_space:
            text = " " + text
        elif teacher_has_space and not student_has_space:
            text = text.lstrip(" ")
        if (id_ := vocabulary.get(text)) is not None:
            probabilities[id_] = probabilities.get(id_, 0.0) + math.exp(logprob)
    total = sum(probabilities.values())
    return [(id_, p / total) for id_, p in probabilities.items()] if total > 0 else []


def _vocabulary(tokenizer: "PreTrainedTokenizerFast") -> tuple[dict[str, int], dict[int, str]]:
    """Returns the map from text, as it appears inside a sentence, to token id, and its inverse."""
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
            if "\ufffd" not in text:  # Otherwise part of a character.
                texts[id_] = text
    return {text: id_ for id_, text in texts.items()}, texts


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 1e-6
