"""Specialized KD (Fu et al., ICML 2023): one narrow ability, learned in four formats of data.

Each rationale is a chain of thought, each question's answer an answer alone, both with and without
solved examples in the prompt. Where the teacher's distributions are given, the student matches them
token by token, KL(teacher ‖ student); where only its text is, this is cross entropy ("sample
matching").
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from kpod_jax.baselines import distributions
from kpod_jax.baselines.answer_only import one_each, without_steps
from kpod_jax.baselines.protocol import Example, Method, Objective, row_layout_errors
from kpod_jax.data.records import Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.training import losses
from kpod_jax.training.forward import hidden_states

FORMATS = (
    "zero_shot_answer_only",
    "zero_shot_chain_of_thought",
    "in_context_answer_only",
    "in_context_chain_of_thought",
)
_CHUNK = 32  # Positions whose logits are held at a time.


class SpecializedKd(Method):
    """Two examples a rationale, and two a question."""

    keys = ("answer_prompt", "formats", "format_weights", "demonstrations", "distributions")
    file_keys = ("distributions",)

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Formats have names, and the student is asked in one that it knows."""
        formats = tuple(config.baseline.formats)
        if not set(formats) <= set(FORMATS) or len(set(formats)) < len(formats):
            return [f"baseline.formats={formats!r}: expected different ones of {FORMATS}"]
        if FORMATS[1] not in formats:
            return [
                f"baseline.formats={formats!r}: expected {FORMATS[1]}, which students are asked in"
            ]
        shares = tuple(config.baseline.format_weights)
        if len(shares) != len(FORMATS) or not all(_is_positive(share) for share in shares):
            return [
                f"baseline.format_weights={shares!r}: expected numbers above 0, one for each of "
                f"{FORMATS}"
            ]
        return row_layout_errors(config) if config.baseline.distributions else []

    @property
    def notes(self) -> Sequence[str]:
        """What a black box does not give."""
        if self.setting.options["distributions"]:
            return ()
        return (
            "Specialized KD matches the teacher's token distributions, which a black-box teacher "
            "does not give (baseline.distributions=FILE takes them): the student matches its "
            "samples by cross entropy.",
        )

    @property
    def shares(self) -> Mapping[str, float]:
        """Those of the formats that there are, which `task_weights` scales to sum to 1."""
        return dict(zip(FORMATS, self.setting.options["format_weights"], strict=True))

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Each rationale, and each question's answer, alone and with as many others as fit."""
        options, found = self.setting.options, []
        for name in options["formats"]:
            answer_only = name.endswith("answer_only")
            prompt = options["answer_prompt"] if answer_only else self.setting.prompt
            mark = f"#{name}"
            if answer_only:
                own = [without_steps(record, mark) for record in one_each(records)]
            else:
                own = [_marked(record, mark) for record in records]
            before = self._demonstrations(own, prompt) if "in_context" in name else [""] * len(own)
            found += [
                Example(record, shown + prompt, task=name)
                for record, shown in zip(own, before, strict=True)
                if shown or "in_context" not in name
            ]
        return found

    def _demonstrations(self, records: Sequence[Record], prompt: str) -> list[str]:
        """Other records, solved, to stand before each one; "" where not even one fits."""
        setting, count = self.setting, self.setting.options["demonstrations"]
        asked = [prompt.replace("{question}", record.question) for record in records]
        solved = [f"{q} {_target(r, setting)}\n\n" for q, r in zip(asked, records, strict=True)]
        # Tokens of texts that are joined are about those of each; one more makes up for EOS.
        room_N = setting.max_question_tokens - 2 - setting.token_lengths(asked)
        cost_N = setting.token_lengths(solved) + 1
        questions = [record.question for record in records]
        result = []
        for i, room in enumerate(room_N.tolist()):
            rng = np.random.default_rng([setting.seed, i])
            shown: list[int] = []
            for j in rng.permutation(len(records))[: 4 * count + 4].tolist():
                fits = len(shown) < count and cost_N[j] <= room
                if fits and questions[j] not in {questions[k] for k in (i, *shown)}:
                    shown.append(j)
                    room -= int(cost_N[j])
            result.append("".join(solved[j] for j in shown))
        return result

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """Distribution matching where distributions are given, else cross entropy."""
        path = self.setting.options["distributions"]
        if not path:
            return Objective()
        given = distributions.read(path, tokenized, self.setting.tokenizer)
        thinking = [example.record for example in examples if example.record.steps]
        tokens = int(tokenized.rationale_lengths.sum())
        note = (
            f"distributions for {given.rationales} of {len(thinking)} rationales and "
            f"{given.matched / max(1, tokens):.0%} of their tokens"
        )
        return Objective(distribution_loss, given.arrays, note=note)


def distribution_loss(
    module: Any, params: Any, batch: Any, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · KL(teacher ‖ student) and Σ KL: cross entropy where the teacher is one-hot.

    Args:
      module: the student.
      params: its parameters.
      batch: with "teacher_tokens" [B, U, K] int32 and "teacher_probabilities" [B, U, K] float32,
        which sum to 1 over K.
      dropout_key: or None.
    """
    hidden, head = hidden_states(module, params, batch, dropout_key=dropout_key)
    divergence = divergences(hidden, batch["teacher_tokens"], batch["teacher_probabilities"], head)
    divergence = jnp.where(batch["supervised"], divergence, 0.0)
    total = losses.weighted_loss(divergence, batch["loss_weights"], batch["supervised"])
    return total, jnp.sum(divergence)


def divergences(
    hidden_BxUxD: jax.Array, tokens_BxUxK: jax.Array, p_BxUxK: jax.Array, head: Any
) -> jax.Array:
    """[B, U] KL(p ‖ P), where p is 0 outside of its K tokens and P is the student's; nats."""
    length = hidden_BxUxD.shape[1]

    def chunks(array: jax.Array) -> jax.Array:
        """[B, U, X] -> [U / chunk, B, chunk, X]."""
        array = jnp.pad(array, [(0, 0), (0, -length % _CHUNK), (0, 0)])
        return jnp.moveaxis(array.reshape(array.shape[0], -1, _CHUNK, array.shape[2]), 1, 0)

    @jax.checkpoint
    def one(hidden_BxCxD: jax.Array, tokens_BxCxK: jax.Array, p_BxCxK: jax.Array) -> jax.Array:
        logits_BxCxV = head(hidden_BxCxD).astype(jnp.float32)
        log_normaliser = jax.nn.logsumexp(logits_BxCxV, -1, keepdims=True)
        log_q_BxCxK = jnp.take_along_axis(logits_BxCxV, tokens_BxCxK, -1) - log_normaliser
        return jnp.sum(xlogy(p_BxCxK, p_BxCxK) - p_BxCxK * log_q_BxCxK, -1)

    parts = (chunks(hidden_BxUxD), chunks(tokens_BxUxK), chunks(p_BxUxK))
    _, result = jax.lax.scan(lambda _, part: (None, one(*part)), None, parts)
    return jnp.moveaxis(result, 0, 1).reshape(hidden_BxUxD.shape[0], -1)[:, :length]


def _marked(record: Record, mark: str) -> Record:
    return dataclasses.replace(record, id=record.id + mark)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _target(record: Record, setting: Any) -> str:
    sentence = setting.answer_template.replace("{answer}", record.answer)
    return f"{record.rationale.rstrip()} {sentence}".strip()
