"""The student of the built-in task: its tokenizer, and pre-training without chains of thought.

It learns, in miniature, what a real student has already seen: arithmetic, both in its own text and
in its input; word problems of one operation, answered with and without a rationale; finding the
numbers of a story in order; and text of the task with gaps to fill. It never sees a question of
several operations followed by its rationale or its answer, so it knows the vocabulary and the
arithmetic, but not the reasoning.
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
# Problems from which rows are built, for training and for evaluation.
_PROBLEMS, _HELD_OUT = 20000, 400
# Reading comes before arithmetic: starting with steps that do not need the source would teach the
# model to ignore it.
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
# Initial bias of heads that attend to nearby tokens. Adam changes a bias by about the learning rate
# per step, so learning it would take thousands of steps.
_NEAR = 5.0
# Problems of one operation may be seen whole.
_ONE_STEP = Task(operations=(1, 1))


def train_student(
    *, scale: float, seed: int
) -> tuple[T5Config, dict, transformers.PreTrainedTokenizerFast]:
    """Trains on reading, then on all kinds of rows.

    Args:
      scale: factor on the number of steps.
      seed: random seed.

    Returns:
      Configuration, parameters and tokenizer of the student.
    """
    templates = defaults.get_config().student
    template = f"{templates.prompt} {{rationale}} {templates.answer_template}"
    tokenizer = train_tokenizer(
        template.format(question=r.question, rationale=r.rationale, answer=r.answer)
        for r in arithmetic.generate("fresh", 4000, seed)
    )
    config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
    module, ids = T5(config, scan_layers=False), jnp.ones((1, 8), jnp.int32)
    params = nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"])
    for stack in ("encoder", "decoder"):
        bias = params[stack]["relative_bias"]
        params[stack]["relative_bias"] = bias + _local_bias(config, stack == "encoder")
    mixture = Mixture(tokenizer, seed)
    first = max(1, round(_READING_STEPS * scale))
    kinds = ["reading"] * first
    kinds += [
        _MIXED[step % len(_MIXED)] for step in range(first, first + round(_MIXED_STEPS * scale))
    ]
    batch = lambda kind, step: mixture.batch(kind, seed, step)  # noqa: E731
    params = rows.train(module, params, kinds, batch, _LEARNING_RATE)
    held_out = held_out_losses(module, params, tokenizer)
    logging.info("held out, nats per token: %s", {k: round(v, 4) for k, v in held_out.items()})
    return config, params, tokenizer


def _local_bias(config: T5Config, bidirectional: bool) -> np.ndarray:
    """Returns a bias [buckets, heads] that makes all heads but the last attend to nearby tokens.

    In the decoder, each attends to one of the last three tokens. In the encoder, they attend to the
    previous token, the next token, and all previous tokens with decreasing strength.
    """
    bias = np.zeros((config.relative_attention_num_buckets, config.num_heads), np.float32)
    if not bidirectional:
        for head in range(3):
            bias[head + 1, head] = _NEAR  # Small distances are their own buckets.
        return bias
    half = len(bias) // 2  # The second half are the buckets of following tokens.
    bias[1, 0] = bias[half + 1, 1] = _NEAR
    bias[:half, 2] = -_NEAR * np.arange(half) / half
    bias[half:, 2] = -_NEAR
    return bias


def held_out_losses(
    module: T5, params: dict, tokenizer: transformers.PreTrainedTokenizerFast
) -> dict[str, float]:
    """Returns the mean loss of each kind of row on validation problems, in nats per token.

    That of "results" is the loss of a result within the decoder's own text.
    """
    mixture = Mixture(tokenizer, 0, "validation")
    loss = jax.jit(functools.partial(rows.loss_of, module))
    return {
        kind: float(np.mean([loss(params, mixture.batch(kind, 0, step)) for step in range(8)]))
        for kind in _SHAPES
    }


def train_tokenizer(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """Trains a T5-style BPE tokenizer whose pieces are whole words of the task.

    Numbers below 100 are single tokens. Unknown characters fall back to bytes, so every text can be
    tokenized.
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
    # The trainer lacks byte fallback; the model supports it once the vocabulary has the bytes.
    model = json.loads(tokenizer.to_str())["model"]
    for byte in range(256):
        model["vocab"].setdefault(f"<0x{byte:02X}>", len(model["vocab"]))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True)  # pyright: ignore
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.ByteFallback(), decoders.Metaspace()]
    )
    # Like T5's, it appends EOS unless add_special_tokens=False.
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

    Texts are questions and single steps taken out of their rationales. A question never appears
    with its steps, and with its answer only if the problem has one operation.
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
            """Tokenizes every text of every row separately."""
            columns = zip(*texts, strict=True)
            return list(zip(*map(encode, columns), strict=True))

        problems = _PROBLEMS if split == "fresh" else _HELD_OUT
        equations = arithmetic.equations()
        self._equations = encode_parts(equations)
        # Oversample the operators with few equations (*, /).
        signs = [re.sub(r"[\d ]", "", e.before) for e in equations]
        counts = collections.Counter(signs)
        self._odds = np.cumsum([counts[sign] ** -0.5 for sign in signs])
        (self._stop,) = encode(["."])[0][-1:]
        records = arithmetic.generate(split, problems, seed)
        self._questions = encode(record.question for record in records)
        # Numbers, each with the following word.
        self._numbers = [
            encode_parts(re.findall(r"(\d+) (\w+)", record.question)) for record in records
        ]
        # Single steps, split around their results.
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
        templates = defaults.get_config().student
        self._word_problems = encode_parts((r.question, r.answer) for r in simple)
        self._one_step = encode_parts(
            (
                templates.prompt.format(question=r.question),
                f"{r.rationale} {templates.answer_template.format(answer=r.answer)}",
            )
            for r in simple
        )

    def batch(self, kind: str, seed: int, step: int) -> dict[str, np.ndarray]:
        """Returns rows of a kind in `_SHAPES`: source, inputs and target int32, masks bool."""
        rng = np.random.default_rng([seed, step])
        make: Callable[[np.random.Generator], Row] = {
            "equations": self._bare_equations,
            "steps": self._steps_of_others,
            "results": lambda rng: self._steps_of_others(rng, results_only=True),
            "text": self._text,
            "word_problems": lambda rng: Row(*_pick(rng, self._word_problems)),
            "reading": self._reading,
            "one_step": lambda rng: Row(*_pick(rng, self._one_step)),
        }[kind]
        shape = _SHAPES[kind]
        return rows.batch_of([make(rng) for _ in range(shape.rows)], shape, self._eos)

    def _equation(self, rng: np.random.Generator) -> tuple[list[int], ...]:
        """Draws an equation, split before its result, with operators about equally frequent."""
        return self._equations[int(np.searchsorted(self._odds, rng.random() * self._odds[-1]))]

    def _bare_equations(self, rng: np.random.Generator) -> Row:
        """Draws equations for the decoder, with an unrelated source; only results are supervised.

        Rows have one equation or several. The model is slow to learn that a result depends only on
        the equation just before it; the first equation of each row teaches arithmetic meanwhile.
        """
        target, supervised = [], []
        while not target or (len(target) < _SHAPES["equations"].target and rng.random() > 0.25):
            before, result = self._equation(rng)
            target += [*before, *result, self._stop]
            supervised += [False] * len(before) + [True] * len(result) + [False]
        return Row(_pick(rng, self._questions), target, supervised)

    def _steps_of_others(self, rng: np.random.Generator, results_only: bool = False) -> Row:
        """Draws numbered steps, each from a different rationale, after an unrelated question.

        Operands, operator and unit are not supervised, since only the steps' own questions
        determine them; with `results_only`, only the results are supervised.
        """
        target, supervised, number = [], [], 0
        while len(target) < _SHAPES["steps"].target:
            number += 1
            if rng.random() < 0.2:
                tokens = _pick(rng, self._filler)
                flags = [not results_only] * len(tokens)
            else:
                before, result, after = _pick(rng, self._steps)
                tokens = [*before, *result, *after]
                words = not results_only
                flags = [words] * len(before[:-4]) + [False] * 3 + [words]
                flags += [True] * len(result) + [False] + [words] * len(after[1:])
            # "Step", its number, a colon.
            target += [tokens[0], *self._step_numbers[number - 1], *tokens[2:]]
            supervised += flags
        return Row(_pick(rng, self._questions), target, supervised)

    def _reading(self, rng: np.random.Generator) -> Row:
        """Draws a question as source, with its numbers as target.

        Either the numbers come in order, each followed by its word, or each word comes first, in
        random order, and only the numbers are supervised.
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
        """Draws a text with missing parts: a fifth of a question, or the result of a step.

        The target is either the missing parts (as in T5) or the whole text (as in BART, to teach
        copying), with equal probability.
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
    """Splits one of a record's steps into the text before its result, the result, and the rest.

    The result is the last keypoint of the step. Returns None for a step without keypoints.
    """
    number %= len(record.steps)
    start = sum(map(len, record.steps[:number]))
    step = record.steps[number].rstrip()
    inside = [key for key in record.keypoints or () if start <= key[0] < start + len(step)]
    if not inside:
        return None
    left, right = inside[-1][0] - start, inside[-1][1] - start
    return step[:left].rstrip(), step[left:right], step[right:]
