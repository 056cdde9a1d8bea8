"""The answerer of the token weighting: a decoder that calculates and tolerates masked tokens.

Masks are learned from the answerer's loss after prefixes of any length. If it can only copy the
last result, then only results are worth keeping. If it can calculate the answer before it is
written, then operands and operators are worth keeping, too. So it trains on three losses at once,
with the student's tokenizer:

- text: every next token of a rationale, in which each result follows its operation;
- operations: the results of all equations that can occur in rationales, equally often;
- answers: after prefixes of rationales, half of them with masked tokens, all prefixes in one pass.

The answers follow questions of OTHER problems. With the right questions, the model soon calculates
the answer from them alone, and rationales become worthless to it (held-out loss: 1.8 nats with the
whole rationale masked, 1.9 after a prefix). The paper's answerer cannot do that, and this one must
not learn it.

About half of the prefixes have random lengths: a model trained only on whole rationales would be
overconfident where the answer cannot be known yet. The final phase trains the hardest case, which
makes operands most valuable: answering when the last result is the next token.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from absl import logging

from kpod_jax.config import defaults
from kpod_jax.data import arithmetic, tokens
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.training import losses
from kpod_jax.weighting import learn
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import AnswererBatch, batches, make_answerer_batch
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.objective import MaskLearner

_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
# Steps and learning rates of the three phases: all kinds of prefixes, uniformly drawn prefixes, and
# many prefixes that end right before the last result.
_STEPS, _LEARNING_RATE = 1680, 2e-3
_EVEN_STEPS, _EVEN_LEARNING_RATE = 490, 5e-4
_CUT_STEPS, _CUT_LEARNING_RATE = 600, 1e-3
_PROBLEMS, _ROWS, _PREFIXES = 40000, 16, 8
# Tokens of a question, a rationale, and an answer with EOS.
_QUESTION, _RATIONALE, _ANSWER = 72, 112, 2
_OF_QUESTION = ("question", "question_mask")
# Rows of equations, and equations per row.
_EQUATION_ROWS, _EQUATIONS = 8, 12
# Length of a rationale's end, in which a quarter of the prefixes stop.
_LAST = 24


def train_answerer(
    directory: str, *, scale: float, seed: int
) -> tuple[LlamaConfig, dict, transformers.PreTrainedTokenizerFast]:
    """Trains an answerer from scratch.

    Args:
      directory: directory of the student, whose tokenizer is used.
      scale: factor on the number of steps.
      seed: random seed.

    Returns:
      Configuration, parameters and tokenizer of the answerer.
    """
    tokenizer: Any = load_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        **_ARCHITECTURE,
    )
    module = Llama(config, scan_layers=False)
    ids = jnp.ones((1, 8), jnp.int32)
    params = nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"])
    mask_id = tokenizer.get_vocab()["<extra_id_0>"]
    (equals_id,) = tokenizer("=", add_special_tokens=False).input_ids
    answerer = Answerer(module, mask_id, config.eos_token_id, None, causal=True)
    learner = _Learner(module, answerer, equals_id)
    steps, even_steps, cut_steps = (
        max(2, round(count * scale)) for count in (_STEPS, _EVEN_STEPS, _CUT_STEPS)
    )
    begins = [
        optax.warmup_cosine_decay_schedule(
            0.0, _LEARNING_RATE, min(100, steps - 1), steps, _LEARNING_RATE / 10
        ),
        optax.cosine_decay_schedule(_EVEN_LEARNING_RATE, even_steps, 0.02),
    ]
    ends = optax.warmup_cosine_decay_schedule(
        0.0, _CUT_LEARNING_RATE, min(50, cut_steps - 1), cut_steps, 0.0
    )
    problems = _problems("fresh", _PROBLEMS, tokenizer, seed)
    equations = Equations(tokenizer)

    def train(params: Any, rate: optax.Schedule, phases: list[int]) -> Any:
        """Trains for one step per element of `phases`, which is the phase of that step."""
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def train_step(params, state, problems, equations, key, phase):
            (_, parts), gradient = jax.value_and_grad(learner.loss, has_aux=True)(
                params, problems, equations, key, phase
            )
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, parts

        state, root = optimizer.init(params), jax.random.key(seed)
        indices, sums = batches(len(problems.question), _ROWS, seed), None
        for step, phase in enumerate(phases):
            index = next(indices)
            batch = jax.tree.map(lambda array, index=index: array[index], problems)
            rows = equations.rows(np.random.default_rng([seed, step]))
            key = jax.random.fold_in(root, step)
            params, state, parts = train_step(params, state, batch, rows, key, phase)
            sums = parts if sums is None else jax.tree.map(jnp.add, sums, parts)
            if step % 100 == 99 or step == len(phases) - 1:
                means = {
                    name: round(float(total) / (step % 100 + 1), 3) for name, total in sums.items()
                }
                logging.info("step %d of %d, loss in nats: %s", step + 1, len(phases), means)
                sums = None
        return params

    params = train(params, optax.join_schedules(begins, [steps]), [0] * steps + [1] * even_steps)
    params = train(params, ends, [2] * cut_steps)
    held_out = _problems("validation", 256, tokenizer, seed)
    masks = MaskLearner(learner.answerer, Generator(8, 1), jnp.zeros((1, 1)), 0.0)
    gap = learn.measure_gap(masks, params, held_out, 64)
    means = {kind: round(float(gap[kind]), 2) for kind in ("none_masked", "all_masked")}
    tenths = [round(value, 2) for value in gap["by_prefix"]["none_masked"]]
    logging.info("held-out loss in nats: %s; by tenth of the prefix: %s", means, tenths)
    return config, params, tokenizer


def _problems(split: str, count: int, tokenizer: Any, seed: int) -> AnswererBatch:
    """Returns problems of one shape, without the few that exceed it."""
    student = defaults.get_config().student
    tokenized, _ = tokens.tokenize(
        arithmetic.generate(split, count, seed),
        tokenizer,
        prompt=student.prompt,
        answer_template=student.answer_template,
        max_question_tokens=128,
        max_target_tokens=192,
    )
    batch = make_answerer_batch(tokenized, tokenizer.pad_token_id)
    short = ~batch.question_mask[:, :-_QUESTION].any(axis=1)
    short &= ~batch.rationale_mask[:, _RATIONALE:].any(axis=1)
    batch = jax.tree.map(lambda array: array[np.asarray(short)], batch)
    return dataclasses.replace(
        batch.cut(_QUESTION, _RATIONALE),
        answer=batch.answer[:, :_ANSWER],
        answer_mask=batch.answer_mask[:, :_ANSWER],
    )


class Equations:
    """Rows of equations drawn uniformly."""

    def __init__(self, tokenizer: Any) -> None:
        """Tokenizes every equation that can occur in a rationale."""
        equations = arithmetic.equations()

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False).input_ids

        before, results = ([e[part] for e in equations] for part in (0, 1))
        before, results, stop = encode(before), encode(results), encode(["."])[0][-1]
        self._ids = [[*left, *right, stop] for left, right in zip(before, results, strict=True)]
        self._is_result = [
            [*([False] * len(left)), *([True] * len(right)), False]
            for left, right in zip(before, results, strict=True)
        ]

    def rows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows: tokens [B, L] int32, and whether each belongs to a result, bool."""
        size = _EQUATIONS * max(map(len, self._ids))
        ids = np.zeros((_EQUATION_ROWS, size), np.int32)
        is_result = np.zeros(ids.shape, bool)
        for row in range(_EQUATION_ROWS):
            chosen = rng.integers(len(self._ids), size=_EQUATIONS)
            line = [token for i in chosen for token in self._ids[i]]
            ids[row, : len(line)] = line
            is_result[row, : len(line)] = [flag for i in chosen for flag in self._is_result[i]]
        return ids, is_result


@dataclasses.dataclass(frozen=True)
class _Learner:
    """The three losses, in nats per token or per answer."""

    module: Llama
    answerer: Answerer
    equals_id: int

    def loss(
        self,
        params: Any,
        problems: AnswererBatch,
        equations: tuple[jax.Array, jax.Array],
        key: jax.Array,
        phase: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the sum of the losses, and each of them."""
        parts = {
            "text": self._next_tokens(params, problems.rationale, problems.rationale_mask),
            "operations": self._next_tokens(params, *equations),
            "answers": self._answers(params, problems, key, phase),
        }
        return sum(parts.values(), jnp.zeros(())), parts

    def _next_tokens(self, params: Any, ids: jax.Array, counts: jax.Array) -> jax.Array:
        """Returns the language modeling loss over the tokens in `counts`, without a prompt."""
        apply = functools.partial(self.module.apply, {"params": params})
        head, empty = functools.partial(apply, method="logits"), ids[:, :0]
        hidden: Any = apply(empty, empty > 0, ids[:, :-1])
        counts = counts[:, 1:]
        nll = losses.token_losses(hidden, ids[:, 1:], counts, head)  # pyright: ignore
        return nll.sum() / counts.sum()

    def _answers(
        self, params: Any, problems: AnswererBatch, key: jax.Array, phase: jax.Array
    ) -> jax.Array:
        """Returns the loss of answers after prefixes, with the questions of other problems.

        In phase 0 a quarter of the prefixes are whole rationales, a quarter stop among the last
        tokens, and the others are uniform. In phase 1 all are uniform. Phase 2 is like phase 0, but
        one of the uniform quarters stops right before the last result.
        """
        questions = {name: jnp.roll(getattr(problems, name), 1, axis=0) for name in _OF_QUESTION}
        problems = problems.replace(**questions)  # pyright: ignore[reportAttributeAccessIssue]
        length_B = problems.rationale_mask.sum(axis=1)
        keys = jax.random.split(key, 6)
        shape = (len(length_B), _PREFIXES)
        place, kind = jax.random.uniform(keys[0], shape), jnp.arange(_PREFIXES) % 4
        kind = jnp.where(phase == 1, 2, kind)
        back = jnp.floor(place * jnp.minimum(_LAST, length_B)[:, None])
        prefix = jnp.where(
            kind == 1, length_B[:, None] - back, jnp.floor(place * length_B[:, None]) + 1
        )
        prefix = jnp.where(kind == 0, length_B[:, None], prefix).astype(jnp.int32)
        places = jnp.arange(1, 1 + problems.rationale.shape[1])
        equals_B = jnp.max(places * (problems.rationale == self.equals_id), axis=1)
        prefix = jnp.where((phase == 2) & (kind == 3), equals_B[:, None], prefix)
        clear = jax.random.bernoulli(keys[1], 0.5, length_B.shape)
        rate_B = jnp.where(clear, 1.0, jax.random.uniform(keys[2], length_B.shape))
        keep = jax.random.bernoulli(keys[3], rate_B[:, None], problems.rationale.shape)
        # A third of the rows mask all occurrences of a token id together.
        kept_BxV = jax.random.bernoulli(
            keys[4], rate_B[:, None], (len(length_B), self.module.config.vocab_size)
        )
        by_id = jnp.take_along_axis(kept_BxV, problems.rationale, axis=1)
        keep = jnp.where(jax.random.bernoulli(keys[5], 0.33, (len(length_B), 1)), by_id, keep)
        return self.answerer.prefix_losses(
            params, problems, keep.astype(jnp.float32), prefix
        ).mean()
