"""The student of the built-in task: its tokenizer, and its pre-training without chains of thought.

It learns what a real one has seen, in small: single operations, word problems of one operation with
their answers, and running text of the task with parts to fill in. It never sees a question of
several operations followed by its rationale or by its answer, so it knows the words, not the
reasoning.
"""

import collections
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from kpod_jax import configuration
from kpod_jax.data import arithmetic
from kpod_jax.data.records import Record
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.pretrain import rows
from kpod_jax.pretrain.rows import Row, Shape

SENTINELS = 32
_SHAPES = {
    "operations": Shape(128, 8, 8),
    "text": Shape(48, 48, 48),
    "word_problems": Shape(96, 32, 4),
}
_PROBLEMS = 20000
_OPERATION_STEPS, _MIXED_STEPS, _LEARNING_RATE = 1000, 4000, 2e-3
_ARCHITECTURE = {
    "d_model": 128,
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


def train_student(
    *, scale: float, seed: int
) -> tuple[T5Config, dict, transformers.PreTrainedTokenizerFast]:
    """Trains on single operations, then on all kinds of rows, half of them text.

    Args:
      scale: of the number of steps.
      seed: of everything random.

    Returns:
      Its configuration, parameters and tokenizer.
    """
    asked = configuration.default().student
    template = f"{asked.prompt} {{rationale}} {asked.answer_template}"
    tokenizer = train_tokenizer(
        template.format(question=r.question, rationale=r.rationale, answer=r.answer)
        for r in arithmetic.generate("fresh", 4000, seed)
    )
    config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
    module, ids = T5(config, scan_layers=False), jnp.ones((1, 8), jnp.int32)
    params = nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"])
    mixture = Mixture(tokenizer, seed)
    first = max(1, round(_OPERATION_STEPS * scale))
    mixed = ("operations", "text", "word_problems", "text")
    kinds = ["operations"] * first
    kinds += [
        mixed[step % len(mixed)] for step in range(first, first + round(_MIXED_STEPS * scale))
    ]
    batch = lambda kind, step: mixture.batch(kind, seed, step)  # noqa: E731
    return config, rows.train(module, params, kinds, batch, _LEARNING_RATE), tokenizer


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

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, seed: int) -> None:
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

        equations = arithmetic.equations()
        self._equations = encode_parts(equations)
        # Rare kinds ("twice", "dozen") more often than their number of cases would have it.
        kinds = [re.sub(r"\d", "", e.before) for e in equations]
        counts = collections.Counter(kinds)
        self._odds = np.cumsum([counts[kind] ** -0.5 for kind in kinds])
        records = arithmetic.generate("fresh", _PROBLEMS, seed)
        self._questions = encode(record.question for record in records)
        # Single steps, around the result of each.
        self._steps = encode_parts(
            piece for i, record in enumerate(records) if (piece := _around_a_result(record, i))
        )
        simple = arithmetic.generate("fresh", _PROBLEMS // 2, seed, operations=(1, 1))
        self._word_problems = encode_parts((r.question, r.answer) for r in simple)

    def batch(self, kind: str, seed: int, step: int) -> dict[str, np.ndarray]:
        """Rows of a kind of `_SHAPES`: source, inputs and target int32, their masks bool."""
        rng = np.random.default_rng([seed, step])
        make: Callable[[np.random.Generator], Row] = {
            "operations": self._operation,
            "text": self._text,
            "word_problems": self._word_problem,
        }[kind]
        shape = _SHAPES[kind]
        return rows.batch_of([make(rng) for _ in range(shape.rows)], shape, self._eos)

    def _operation(self, rng: np.random.Generator) -> Row:
        """One operation: its result is missing, or the whole is to be written out."""
        place = int(np.searchsorted(self._odds, rng.random() * self._odds[-1]))
        before, result = self._equations[place]
        sentinel = self._sentinels[0]
        if rng.random() < 0.5:
            return [*before, sentinel], [sentinel, *result]
        return [sentinel, *before], [sentinel, *before, *result]

    def _word_problem(self, rng: np.random.Generator) -> Row:
        """A question that one operation answers, and the answer alone."""
        question, answer = self._word_problems[int(rng.integers(len(self._word_problems)))]
        return question, answer

    def _text(self, rng: np.random.Generator) -> Row:
        """A text with parts missing: a fifth of a question, or the result of a step.

        The target holds what is missing (T5's way) or the whole text (BART's, which teaches to
        copy), as often one as the other.
        """
        whole = rng.random() < 0.5
        if rng.random() < 0.5:
            before, result, after = self._steps[int(rng.integers(len(self._steps)))]
            source = [*before, self._sentinels[0], *after]
            missing = [self._sentinels[0], *result]
            return source, [*before, *result, *after] if whole else missing
        text = self._questions[int(rng.integers(len(self._questions)))]
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
        return source, text if whole else missing


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
