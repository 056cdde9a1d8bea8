"""The student of the built-in task: its tokenizer, and its pre-training without chains of thought.

It learns what a real one has seen, in small: to calculate, in its own text as well as in what it
reads; word problems of one operation, answered with and without a rationale; to find the numbers of
a story in their order; and running text of the task with parts to fill in. It never sees a question
of several operations followed by its
rationale or by its answer, so it knows the words and the sums, not the reasoning.
"""

import collections
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from absl import logging
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from kpod_jax.config import defaults
from kpod_jax.data import arithmetic
from kpod_jax.data.arithmetic import Task
from kpod_jax.data.records import Record
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.pretrain import rows
from kpod_jax.pretrain.rows import Row, Shape

SENTINELS = 32
_SHAPES = {
    "equations": Shape(64, 8, 32),
    "steps": Shape(24, 16, 64),
    "results": Shape(24, 16, 64),
    "text": Shape(32, 56, 56),
    "word_problems": Shape(48, 40, 4),
    "one_step": Shape(24, 48, 56),
    "reading": Shape(48, 56, 16),
}
# Problems that rows are made of, to train on and to judge by.
_PROBLEMS, _HELD_OUT = 20000, 400
# It reads before it calculates: steps that do not need the source first teach to ignore it.
_READING_STEPS, _MIXED_STEPS, _LEARNING_RATE = 400, 4000, 2e-3
_MIXED = ("equations", "reading", "steps", "one_step")
_MIXED += ("equations", "reading", "text", "word_problems")
_ARCHITECTURE = {
    "d_model": 96,
    "d_kv": 32,
    "d_ff": 384,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_max_distance": 64,
    "dropout_rate": 0.0,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": False,
}
# Heads that look at near tokens before they are trained: a bias that Adam moves by a learning
# rate a step would take thousands of steps to get there.
_NEAR = 5.0
# Of one operation, problems may be seen whole.
_ONE_STEP = Task(operations=(1, 1))


def train_student(
    *, scale: float, seed: int
) -> tuple[T5Config, dict, transformers.PreTrainedTokenizerFast]:
    """Trains on reading, then on all kinds of rows.

    Args:
      scale: of the number of steps.
      seed: of everything random.

    Returns:
      Its configuration, parameters and tokenizer.
    """
    asked = defaults.get_config().student
    template = f"{asked.prompt} {{rationale}} {asked.answer_template}"
    tokenizer = train_tokenizer(
        template.format(question=r.question, rationale=r.rationale, answer=r.answer)
        for r in arithmetic.generate("fresh", 4000, seed)
    )
    config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
    module, ids = T5(config, scan_layers=False), jnp.ones((1, 8), jnp.int32)
    params = nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"])
    for stack in ("encoder", "decoder"):
        bias = params[stack]["relative_bias"]
        params[stack]["relative_bias"] = bias + _near_sighted(config, both_ways=stack == "encoder")
    mixture = Mixture(tokenizer, seed)
    first = max(1, round(_READING_STEPS * scale))
    kinds = ["reading"] * first
    kinds += [
        _MIXED[step % len(_MIXED)] for step in range(first, first + round(_MIXED_STEPS * scale))
    ]
    batch = lambda kind, step: mixture.batch(kind, seed, step)  # noqa: E731
    params = rows.train(module, params, kinds, batch, _LEARNING_RATE)
    found = held_out_losses(module, params, tokenizer)
    logging.info("held out, nats a token: %s", {k: round(v, 4) for k, v in found.items()})
    return config, params, tokenizer


def _near_sighted(config: T5Config, both_ways: bool) -> np.ndarray:
    """[buckets, heads] a bias by which the first heads look near; the last one looks everywhere.

    In the decoder at each of the last three tokens; in the encoder at the token before, the token
    after, and all before, the nearer the more.
    """
    bias = np.zeros((config.relative_attention_num_buckets, config.num_heads), np.float32)
    if not both_ways:
        for head in range(3):
            bias[head + 1, head] = _NEAR  # A bucket is a distance, where it is small.
        return bias
    half = len(bias) // 2  # Then come the buckets of tokens ahead.
    bias[1, 0] = bias[half + 1, 1] = _NEAR
    bias[:half, 2] = -_NEAR * np.arange(half) / half
    bias[half:, 2] = -_NEAR
    return bias


def held_out_losses(
    module: T5, params: dict, tokenizer: transformers.PreTrainedTokenizerFast
) -> dict[str, float]:
    """Mean loss of each kind of row, made of validation problems; nats a supervised token.

    That of "results" is the loss of a result in the decoder's own text.
    """
    mixture = Mixture(tokenizer, 0, "validation")
    loss = jax.jit(functools.partial(rows.loss_of, module))
    return {
        kind: float(np.mean([loss(params, mixture.batch(kind, 0, step)) for step in range(8)]))
        for kind in _SHAPES
    }


def train_tokenizer(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """A BPE tokenizer in T5's manner, whose pieces are whole words of the task.

    Numbers below 100 are single tokens. What it does not know falls apart into bytes, so every text
    has tokens.
    """
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = tokenizers.Regex(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=2,
        show_progress=False,
        special_tokens=special + sentinels,
        initial_alphabet=[chr(c) for c in range(33, 127)],
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer knows no byte fallback; the model does, once the bytes are in its vocabulary.
    model = json.loads(tokenizer.to_str())["model"]
    for byte in range(256):
        model["vocab"].setdefault(f"<0x{byte:02X}>", len(model["vocab"]))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True)  # pyright: ignore
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.ByteFallback(), decoders.Metaspace()]
    )
    # As T5's, it ends a text with EOS unless it is told not to.
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_max_length=512,
    )


class Mixture:
    """Batches of rows (source and target) of each kind, as functions of (seed, step).

    Texts are questions and single steps, each torn from its rationale: a question never meets its
    steps, and its answer only where one operation gives it.
    """

    def __init__(
        self, tokenizer: transformers.PreTrainedTokenizerFast, seed: int, split: str = "fresh"
    ) -> None:
        self._sentinels: Any = tokenizer.convert_tokens_to_ids(
            [f"<extra_id_{i}>" for i in range(SENTINELS)]
        )
        self._eos: Any = tokenizer.eos_token_id

        def encode(texts: Iterable[str]) -> Any:
            return tokenizer(list(texts), add_special_tokens=False).input_ids

        def encode_parts(texts: Iterable[tuple[str, ...]]) -> list[tuple[list[int], ...]]:
            """Each text of each row as ids of its own."""
            columns = zip(*texts, strict=True)
            return list(zip(*map(encode, columns), strict=True))

        problems = _PROBLEMS if split == "fresh" else _HELD_OUT
        equations = arithmetic.equations()
        self._equations = encode_parts(equations)
        # Signs of few cases (*, /) more often than these would have it.
        kinds = [re.sub(r"[\d ]", "", e.before) for e in equations]
        counts = collections.Counter(kinds)
        self._odds = np.cumsum([counts[kind] ** -0.5 for kind in kinds])
        (self._stop,) = encode(["."])[0][-1:]
        records = arithmetic.generate(split, problems, seed)
        self._questions = encode(record.question for record in records)
        # Numbers, each with the word that follows it.
        self._numbers = [
            encode_parts(re.findall(r"(\d+) (\w+)", record.question)) for record in records
        ]
        # Single steps, around the result of each.
        self._steps = encode_parts(
            piece for i, record in enumerate(records) if (piece := _around_a_result(record, i))
        )
        self._filler = encode(
            step.rstrip()
            for record in records
            for step, hardness in zip(record.steps, record.hardness or (), strict=True)
            if not hardness
        )
        self._step_numbers = encode(map(str, range(1, 10)))
        simple = arithmetic.generate(split, problems // 2, seed, _ONE_STEP)
        asked = defaults.get_config().student
        self._word_problems = encode_parts((r.question, r.answer) for r in simple)
        self._one_step = encode_parts(
            (
                asked.prompt.format(question=r.question),
                f"{r.rationale} {asked.answer_template.format(answer=r.answer)}",
            )
            for r in simple
        )

    def batch(self, kind: str, seed: int, step: int) -> dict[str, np.ndarray]:
        """Rows of a kind of `_SHAPES`: source, inputs and target int32, their masks bool."""
        rng = np.random.default_rng([seed, step])
        make: Callable[[np.random.Generator], Row] = {
            "equations": self._bare_equations,
            "steps": self._steps_of_others,
            "results": lambda rng: self._steps_of_others(rng, results_alone=True),
            "text": self._text,
            "word_problems": lambda rng: Row(*_pick(rng, self._word_problems)),
            "reading": self._reading,
            "one_step": lambda rng: Row(*_pick(rng, self._one_step)),
        }[kind]
        shape = _SHAPES[kind]
        return rows.batch_of([make(rng) for _ in range(shape.rows)], shape, self._eos)

    def _equation(self, rng: np.random.Generator) -> tuple[list[int], ...]:
        """What is before a result, and the result: kinds of equations are about as frequent."""
        return self._equations[int(np.searchsorted(self._odds, rng.random() * self._odds[-1]))]

    def _bare_equations(self, rng: np.random.Generator) -> Row:
        """Equations in the decoder, whose results alone are supervised, behind another text.

        Rows of one equation and of many: that an equation's result is decided by what stands right
        before it is learned last, so the first of a row teaches to calculate meanwhile.
        """
        target, supervised = [], []
        while not target or (len(target) < _SHAPES["equations"].target and rng.random() > 0.25):
            before, result = self._equation(rng)
            target += [*before, *result, self._stop]
            supervised += [False] * len(before) + [True] * len(result) + [False]
        return Row(_pick(rng, self._questions), target, supervised)

    def _steps_of_others(self, rng: np.random.Generator, results_alone: bool = False) -> Row:
        """Numbered steps of as many different rationales, behind an unrelated question.

        What only their own questions could tell, the operands, the sign and the unit, is not
        supervised; or nothing is but the results.
        """
        target, supervised, number = [], [], 0
        while len(target) < _SHAPES["steps"].target:
            number += 1
            if rng.random() < 0.2:
                tokens = _pick(rng, self._filler)
                flags = [not results_alone] * len(tokens)
            else:
                before, result, after = _pick(rng, self._steps)
                tokens = [*before, *result, *after]
                told = not results_alone
                flags = [told] * len(before[:-4]) + [False] * 3 + [told]
                flags += [True] * len(result) + [False] + [told] * len(after[1:])
            # "Step", its number, a colon.
            target += [tokens[0], *self._step_numbers[number - 1], *tokens[2:]]
            supervised += flags
        return Row(_pick(rng, self._questions), target, supervised)

    def _reading(self, rng: np.random.Generator) -> Row:
        """A question, and its numbers: in order, each with the word that follows it, or asked for.

        In the latter case the words come first, in any order, and numbers alone are supervised.
        """
        place = int(rng.integers(len(self._questions)))
        question, pairs = self._questions[place], self._numbers[place]
        if rng.random() < 0.5:
            return Row(question, [token for pair in pairs for part in pair for token in part])
        target, supervised = [], []
        for i in rng.permutation(len(pairs)).tolist():
            number, word = pairs[i]
            target += [*word, *number]
            supervised += [False] * len(word) + [True] * len(number)
        return Row(question, target, supervised)

    def _text(self, rng: np.random.Generator) -> Row:
        """A text with parts missing: a fifth of a question, or the result of a step.

        The target holds what is missing (T5's way) or the whole text (BART's, which teaches to
        copy), as often one as the other.
        """
        whole = rng.random() < 0.5
        if rng.random() < 0.5:
            before, result, after = _pick(rng, self._steps)
            source = [*before, self._sentinels[0], *after]
            missing = [self._sentinels[0], *result]
            return Row(source, [*before, *result, *after] if whole else missing)
        text = _pick(rng, self._questions)
        source, missing, place, span = [], [], 0, 0
        while place < len(text):
            if rng.random() < 0.1 and span < SENTINELS:
                length = int(rng.integers(1, 4))
                source.append(self._sentinels[span])
                missing += [self._sentinels[span], *text[place : place + length]]
                place, span = place + length, span + 1
            else:
                source.append(text[place])
                place += 1
        return Row(source, text if whole else missing)


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _around_a_result(record: Record, number: int) -> tuple[str, str, str] | None:
    """One of a record's steps: what is before its result, the result, and what is after it.

    The last keypoint of a step is its result. None for a step without keypoints.
    """
    number %= len(record.steps)
    start = sum(map(len, record.steps[:number]))
    step = record.steps[number].rstrip()
    inside = [key for key in record.keypoints or () if start <= key[0] < start + len(step)]
    if not inside:
        return None
    left, right = inside[-1][0] - start, inside[-1][1] - start
    return step[:left].rstrip(), step[left:right], step[right:]
