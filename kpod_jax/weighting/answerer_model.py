"""The answerer as a model: loads it, and tokenizes records for it.

It may be of any family. If its tokenizer is not the student's, it reads the same texts in its own
tokens (kpod_jax/weighting/alignment.py).
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from kpod_jax.config.defaults import Config
from kpod_jax.config.loading import section
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel.processes import log
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import AnswererBatch, make_answerer_batch

# Which records are long enough to leave out is the student's choice.
_ANY_LENGTH = {"max_question_tokens": 1 << 30, "max_target_tokens": 1 << 30}


def load_answerer(student: Student, config: Config, **changes: Any) -> Student:
    """Returns the answerer before it is fit: all its weights are fit, or adapters of its own.

    Args:
      student: provides the settings.
      config: `weighting` of a configuration.
      **changes: see `load_student`.
    """
    if not config.answerer and not student.settings.lora.rank and not config.lora.rank:
        return student
    settings: dict[str, Any] = {"lora": config.lora.to_dict()}
    if config.answerer:
        settings |= {"model": config.answerer, "tokenizer": config.tokenizer}
    answerer = load_student(section("student", student.settings, settings), student.seed, **changes)
    answerer = dataclasses.replace(answerer, date=student.date)
    if answerer.settings.chat and not getattr(answerer.tokenizer, "chat_template", None):
        settings = section("student", answerer.settings, {"chat": False})
        return dataclasses.replace(answerer, settings=settings)
    return answerer


def make_answerer(model: Student, encoding: str = "bidirectional") -> Answerer:
    """Returns the answerer for a model; masked tokens become T5's first sentinel, else padding.

    Args:
      model: provides the module, configuration and tokenizer.
      encoding: "bidirectional", as T5 is pre-trained, or "causal": all prefixes of a rationale are
        encoded at once. A decoder-only model is always causal.
    """
    tokenizer, config = model.tokenizer, model.config
    mask_id = tokenizer.get_vocab().get("<extra_id_0>", tokenizer.pad_token_id)
    if model.decoder_only:
        # Prefix and answer are one sequence, separated by the end token.
        return Answerer(model.module, mask_id, config.eos_token_id, None, causal=True)
    causal = encoding == "causal"
    eos_id = None if causal else config.eos_token_id
    start_id = config.decoder_start_token_id  # pyright: ignore[reportAttributeAccessIssue]
    return Answerer(model.module, mask_id, start_id, eos_id, causal)


class ReadRecords(NamedTuple):
    """Records that an answerer can read.

    Attributes:
      tokenized: the records in the student's tokens.
      batch: the same records as the answerer reads them.
    """

    tokenized: TokenizedSet
    batch: AnswererBatch


def read_records(tokenized: TokenizedSet, student: Student, answerer: Student) -> ReadRecords:
    """Tokenizes records for the answerer; without those that its tokenizer cannot represent.

    Raises:
      UserError: it can read none, or a record is too long for it.
    """
    pad_id, read, read_pad_id = student.tokenizer.pad_token_id, None, 0
    if student.tokenizer.get_vocab() != answerer.tokenizer.get_vocab():
        read_pad_id = answerer.tokenizer.pad_token_id
        settings = section("student", answerer.settings, _ANY_LENGTH)
        reader = dataclasses.replace(answerer, settings=settings)
        read, unread = reader.tokenize(tokenized.records)
        if not read.records:
            raise UserError(
                f"The answerer {answerer.model!r} cannot read the records: {unread[0].id}: "
                f"{unread[0].reason}. Choose another weighting.answerer."
            )
        if unread:
            log(
                f"weigh: {answerer.model} cannot read {len(unread)} of {len(tokenized)} records, "
                f"which get the mean weight; {unread[0].id}: {unread[0].reason}"
            )
            names = {bad.id for bad in unread}
            readable = [record for record in tokenized.records if record.id not in names]
            tokenized, _ = student.tokenize(readable)
    _check_lengths(tokenized if read is None else read, answerer)
    return ReadRecords(tokenized, make_answerer_batch(tokenized, pad_id, read, read_pad_id))


def scatter(weights: Ragged, weighed: TokenizedSet, everything: TokenizedSet) -> Ragged:
    """Returns the weights of all records; those that were not weighed get the mean weight."""
    if len(weighed) == len(everything):
        return weights
    values = {record.id: weights[i] for i, record in enumerate(weighed.records)}
    mean = weights.values.mean()
    return Ragged.from_list(
        [
            values.get(record.id, np.full(length, mean))
            for record, length in zip(everything.records, everything.rationale_lengths, strict=True)
        ],
        np.float32,
    )


def _check_lengths(tokenized: TokenizedSet, answerer: Student) -> None:
    limit = getattr(answerer.config, "max_position_embeddings", None)  # T5 has no limit.
    lengths = tokenized.questions.lengths + tokenized.rationale_lengths + tokenized.answers.lengths
    if limit is None or not len(lengths) or lengths.max() <= limit:
        return
    longest = int(lengths.argmax())
    raise UserError(
        f"Record {tokenized.records[longest].id}: question, rationale and answer have "
        f"{lengths[longest]} tokens together, but the answerer {answerer.model!r} was trained on "
        f"{limit} at most (max_position_embeddings in its config.json). Lower "
        "student.max_question_tokens and student.max_target_tokens, so that such records are "
        "rejected, or choose another weighting.answerer."
    )
