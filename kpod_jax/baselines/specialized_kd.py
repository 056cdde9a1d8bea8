"""Specialized KD (Fu et al., ICML 2023): trains one narrow ability in four data formats.

The formats are chain of thought (one example per rationale) and answer only (one per question),
each with and without solved examples in the prompt. If the teacher's token distributions are
available, the student matches them, KL(teacher ‖ student); otherwise the loss is cross entropy on
the teacher's text ("sample matching").
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from kpod_jax.baselines import distributions
from kpod_jax.baselines.answer_only import first_per_question, without_steps
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
_CHUNK = 32  # Positions whose logits are in memory at a time.


class SpecializedKd(Method):
    """Two examples per rationale and two per question."""

    keys = ("answer_prompt", "formats", "format_weights", "demonstrations", "distributions")
    file_keys = ("distributions",)

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Checks the formats and their weights."""
        formats = tuple(config.baseline.formats)
        if not set(formats) <= set(FORMATS) or len(set(formats)) < len(formats):
            return [f"baseline.formats={formats!r}: expected distinct formats from {FORMATS}"]
        if FORMATS[1] not in formats:
            return [
                f"baseline.formats={formats!r}: expected {FORMATS[1]} to be included, because "
                "evaluation uses it"
            ]
        weights = tuple(config.baseline.format_weights)
        if len(weights) != len(FORMATS) or not all(_is_positive(weight) for weight in weights):
            return [
                f"baseline.format_weights={weights!r}: expected positive numbers, one for each of "
                f"{FORMATS}"
            ]
        return row_layout_errors(config) if config.baseline.distributions else []

    @property
    def notes(self) -> Sequence[str]:
        """A note on the missing token distributions; empty if they are given."""
        if self.setting.options["distributions"]:
            return ()
        return (
            "Specialized KD matches the teacher's token distributions, which a black-box teacher "
            "does not provide (to use a file of them, set baseline.distributions=FILE): the "
            "student is trained on the teacher's samples with cross entropy.",
        )

    @property
    def loss_fractions(self) -> Mapping[str, float]:
        """Weights of all formats; `task_weights` normalizes over those in use."""
        return dict(zip(FORMATS, self.setting.options["format_weights"], strict=True))

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns the examples of all formats; in-context ones have as many demos as fit."""
        options, examples = self.setting.options, []
        for name in options["formats"]:
            answer_only, in_context = name.endswith("answer_only"), "in_context" in name
            prompt = options["answer_prompt"] if answer_only else self.setting.prompt
            mark = f"#{name}"
            if answer_only:
                targets = [without_steps(record, mark) for record in first_per_question(records)]
            else:
                targets = [_marked(record, mark) for record in records]
            contexts = self._demonstrations(targets, prompt) if in_context else [""] * len(targets)
            examples += [
                Example(record, context + prompt, task=name)
                for record, context in zip(targets, contexts, strict=True)
                if context or not in_context
            ]
        return examples

    def _demonstrations(self, records: Sequence[Record], prompt: str) -> list[str]:
        """Returns solved examples to prepend to each record's prompt; "" if not even one fits."""
        setting, count = self.setting, self.setting.options["demonstrations"]
        prompts = [prompt.replace("{question}", record.question) for record in records]
        solved = [f"{p} {_target(r, setting)}\n\n" for p, r in zip(prompts, records, strict=True)]
        # Token counts of joined texts are about additive; the margins allow for EOS and merges.
        room_N = setting.max_question_tokens - 2 - setting.token_lengths(prompts)
        cost_N = setting.token_lengths(solved) + 1
        questions = [record.question for record in records]
        result = []
        for i, room in enumerate(room_N.tolist()):
            rng = np.random.default_rng([setting.seed, i])
            chosen: list[int] = []
            for j in rng.permutation(len(records))[: 4 * count + 4].tolist():
                fits = len(chosen) < count and cost_N[j] <= room
                if fits and questions[j] not in {questions[k] for k in (i, *chosen)}:
                    chosen.append(j)
                    room -= int(cost_N[j])
            result.append("".join(solved[j] for j in chosen))
        return result

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """Returns distribution matching if there are distributions, else cross entropy."""
        path = self.setting.options["distributions"]
        if not path:
            return Objective()
        teacher = distributions.read(path, tokenized, self.setting.tokenizer)
        rationales = sum(1 for example in examples if example.record.steps)
        tokens = int(tokenized.rationale_lengths.sum())
        note = (
            f"distributions for {teacher.rationales} of {rationales} rationales and "
            f"{teacher.matched / max(1, tokens):.0%} of their tokens"
        )
        return Objective(distribution_loss, teacher.arrays, note=note)


def distribution_loss(
    module: Any, params: Any, batch: Any, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes Σ weight · KL(teacher ‖ student) and Σ KL; with a one-hot teacher, cross entropy.

    Args:
      module: the student.
      params: its parameters.
      batch: includes "teacher_tokens" [B, U, K] int32 and "teacher_probabilities" [B, U, K]
        float32, which sum to 1 over K.
      dropout_key: key for dropout; None for no dropout.
    """
    hidden, head = hidden_states(module, params, batch, dropout_key=dropout_key)
    divergence = divergences(hidden, batch["teacher_tokens"], batch["teacher_probabilities"], head)
    divergence = jnp.where(batch["supervised"], divergence, 0.0)
    total = losses.weighted_loss(divergence, batch["loss_weights"], batch["supervised"])
    return total, jnp.sum(divergence)


def divergences(
    hidden_BxUxD: jax.Array, tokens_BxUxK: jax.Array, p_BxUxK: jax.Array, head: Any
) -> jax.Array:
    """Computes KL(p ‖ P) in nats, [B, U]; p is 0 outside its K tokens, P is the student's."""
    length = hidden_BxUxD.shape[1]

    def chunks(array: jax.Array) -> jax.Array:
        """Reshapes [B, U, X] to [U / chunk, B, chunk, X]."""
        array = jnp.pad(array, [(0, 0), (0, -length % _CHUNK), (0, 0)])
        return jnp.moveaxis(array.reshape(array.shape[0], -1, _CHUNK, array.shape[2]), 1, 0)

    @jax.checkpoint
    def chunk_divergence(
        hidden_BxCxD: jax.Array, tokens_BxCxK: jax.Array, p_BxCxK: jax.Array
    ) -> jax.Array:
        logits_BxCxV = head(hidden_BxCxD).astype(jnp.float32)
        log_normalizer = jax.nn.logsumexp(logits_BxCxV, -1, keepdims=True)
        log_q_BxCxK = jnp.take_along_axis(logits_BxCxV, tokens_BxCxK, -1) - log_normalizer
        return jnp.sum(xlogy(p_BxCxK, p_BxCxK) - p_BxCxK * log_q_BxCxK, -1)

    parts = (chunks(hidden_BxUxD), chunks(tokens_BxUxK), chunks(p_BxUxK))
    _, result = jax.lax.scan(lambda _, part: (None, chunk_divergence(*part)), None, parts)
    return jnp.moveaxis(result, 0, 1).reshape(hidden_BxUxD.shape[0], -1)[:, :length]


def _marked(record: Record, mark: str) -> Record:
    return dataclasses.replace(record, id=record.id + mark)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _target(record: Record, setting: Any) -> str:
    sentence = setting.answer_template.replace("{answer}", record.answer)
    return f"{record.rationale.rstrip()} {sentence}".strip()
