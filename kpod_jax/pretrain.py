r"""Makes the two small models that the built-in task ships with.

    python -m kpod_jax.pretrain --what=student --output=kpod_jax/assets/tiny_t5
    python -m kpod_jax.pretrain --what=answerer --output=kpod_jax/assets/tiny_answerer

The student is pre-trained WITHOUT chains of thought, on what a real one has seen, in small: single
operations, and running text of the task with spans to fill in. It never sees a question followed by
its rationale or by its answer, so it knows the words, not the reasoning.

The answerer of the token weighting learns the operations likewise, then to answer from a question
and its rationale: short problems first, then masked prefixes. Its tokenizer is the student's.

Problems are of the task's "fresh" split, which shares no question with the others.
"""

import collections
import functools
import json
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import transformers
from absl import app, flags, logging
from tokenizers import decoders, models, pre_tokenizers, trainers

from kpod_jax import losses
from kpod_jax.data import arithmetic, tokens
from kpod_jax.models import hub
from kpod_jax.models.t5 import T5, T5Config
from kpod_jax.weighting import answerer, learn
from kpod_jax.weighting.generator import Generator

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the student to.", required=True)
_WHAT = flags.DEFINE_enum("what", "student", ["student", "answerer"], "What to make.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Scales the number of steps, for a quick try.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

SENTINELS = 32
# Rows, source and target tokens of a batch.
_OPERATIONS, _TEXT = (128, 8, 8), (48, 40, 32)
_PROBLEMS = 20000
_ARCHITECTURE = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 384,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_max_distance": 64,
    "dropout_rate": 0.0,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": False,
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
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_max_length=512,
    )


class Mixture:
    """Rows of span corruption: parts of a text are replaced by sentinels, the target holds them."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, seed: int) -> None:
        records = arithmetic.generate("fresh", _PROBLEMS, seed, (2, 4))
        self._sentinels: Any = tokenizer.convert_tokens_to_ids(
            [f"<extra_id_{i}>" for i in range(SENTINELS)]
        )
        self._eos: Any = tokenizer.eos_token_id
        equations = arithmetic.equations()
        before: Any = tokenizer([e.before for e in equations]).input_ids
        result: Any = tokenizer([e.result for e in equations]).input_ids
        self._equations = list(zip(before, result, strict=True))
        # Rare kinds ("twice", "dozen") more often than their number of cases would have it.
        kinds = [re.sub(r"\d", "", e.before) for e in equations]
        counts = collections.Counter(kinds)
        self._odds = np.cumsum([counts[kind] ** -0.5 for kind in kinds])
        questions = [record.question for record in records]
        # Single steps, each torn from its rationale.
        steps = [record.steps[i % len(record.steps)] for i, record in enumerate(records)]
        self._texts: Any = tokenizer(questions + steps).input_ids

    def operations(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """A batch of single operations, a pure function of (seed, step)."""
        rng = np.random.default_rng([seed, step])
        return self._batch([self._operation(rng) for _ in range(_OPERATIONS[0])], *_OPERATIONS)

    def running_text(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """A batch of questions and single steps, likewise."""
        rng = np.random.default_rng([seed, step])
        return self._batch([self._text(rng) for _ in range(_TEXT[0])], *_TEXT)

    def _batch(
        self, rows: list[tuple[list[int], list[int]]], count: int, source_len: int, target_len: int
    ) -> dict[str, np.ndarray]:
        source = np.zeros((count, source_len), np.int32)
        target = np.zeros((count, target_len), np.int32)
        for i, (left, right) in enumerate(rows):
            left, right = left[: source_len - 1], right[: target_len - 1]
            source[i, : len(left) + 1] = [*left, self._eos]
            target[i, : len(right) + 1] = [*right, self._eos]
        inputs = np.roll(target, 1, axis=1)
        inputs[:, 0] = 0
        return {
            "source": source,
            "source_mask": source > 0,
            "inputs": inputs,
            "target": target,
            "target_mask": target > 0,
        }

    def _operation(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """One operation: its result is missing, or the whole is to be written out."""
        place = int(np.searchsorted(self._odds, rng.random() * self._odds[-1]))
        before, result = self._equations[place]
        sentinel = self._sentinels[0]
        if rng.random() < 0.5:
            return [*before, sentinel], [sentinel, *result]
        return [sentinel, *before], [sentinel, *before, *result]

    def _text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """A text with about a fifth of its tokens missing, in spans of one to three."""
        text = self._texts[int(rng.integers(len(self._texts)))]
        source, target, place, span = [], [], 0, 0
        while place < len(text):
            if rng.random() < 0.1 and span < SENTINELS:
                length = int(rng.integers(1, 4))
                source.append(self._sentinels[span])
                target += [self._sentinels[span], *text[place : place + length]]
                place, span = place + length, span + 1
            else:
                source.append(text[place])
                place += 1
        return source, target


def pretrain(
    module: T5,
    params: dict,
    mixture: Mixture,
    *,
    operation_steps: int,
    mixed_steps: int,
    seed: int,
    learning_rate: float = 2e-3,
) -> dict:
    """Trains on single operations, then on these and running text in turn."""
    steps = operation_steps + mixed_steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps), steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        def loss(params):
            variables = {"params": params}
            hidden: Any = module.apply(
                variables, batch["source"], batch["source_mask"], batch["inputs"]
            )
            nll = losses.token_losses(
                hidden,
                batch["target"],
                batch["target_mask"],
                lambda h: module.apply(variables, h, method="logits"),  # pyright: ignore
            )
            return nll.sum() / batch["target_mask"].sum()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for step in range(steps):
        text = step >= operation_steps and step % 2
        batch = mixture.running_text(seed, step) if text else mixture.operations(seed, step)
        params, state, value = train_step(params, state, batch)
        if step % 100 < 2 or step == steps - 1:
            kind = "text" if text else "operations"
            logging.info("step %d of %d, %s, loss %.3f", step, steps, kind, float(value))
    return params


def train_answerer(
    module: T5, params: dict, tokenizer: Any, *, steps: tuple[int, int], seed: int
) -> dict:
    """Trains to answer: from whole rationales of short problems, then from masked prefixes."""

    def problems(count: int, operations: tuple[int, int]) -> answerer.Problems:
        records = arithmetic.generate("fresh", count, seed, operations)
        tokenized, _ = tokens.tokenize(
            records, tokenizer, max_question_tokens=128, max_target_tokens=192
        )
        return learn.problems_of(tokenized, 0)

    mask_id = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    learner = learn.MaskLearner(
        answerer.Answerer(module, mask_id, start_id=0), Generator(8, 1), jnp.zeros((1, 1)), 0.0
    )

    def log(what: str, step: int, values: dict[str, float]) -> None:
        logging.info("%s: step %d, %s", what, step, values)

    fit = functools.partial(
        learn.fit_answerer, learner, batch_size=32, learning_rate=2e-3, seed=seed, log=log
    )
    short, masked = problems(_PROBLEMS // 2, (1, 2)), problems(_PROBLEMS, (1, 3))
    params = fit(params, short, reading_steps=steps[0], masking_steps=0)
    params = fit(params, masked, reading_steps=0, masking_steps=steps[1])
    held_out = problems(_PROBLEMS + 256, (1, 3))
    held_out = jax.tree.map(lambda array: array[-256:], held_out)
    logging.info("held out: %s", learn.measure_gap(learner, params, held_out, 64))
    return params


def main(argv: list[str]) -> None:
    """Makes a model and writes it, with its tokenizer, in Hugging Face's format."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    seed = _SEED.value
    records = arithmetic.generate("fresh", 4000, seed, (2, 4))
    template = "Q: {} A: Let's think step by step. {} Therefore, the answer is {}."
    tokenizer = train_tokenizer(template.format(r.question, r.rationale, r.answer) for r in records)
    config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
    module = T5(config, scan_layers=False)
    ids = jnp.ones((1, 8), jnp.int32)
    params = nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"])

    def scaled(steps: int) -> int:
        return max(1, round(steps * _SCALE.value))

    student = _WHAT.value == "student"
    params = pretrain(
        module,
        params,
        Mixture(tokenizer, seed),
        operation_steps=scaled(1500 if student else 800),
        mixed_steps=scaled(1500) if student else 0,
        seed=seed,
    )
    if not student:
        steps = scaled(1000), scaled(1200)
        params = train_answerer(module, params, tokenizer, steps=steps, seed=seed)
    hub.save_pretrained(_OUTPUT.value, config, params, tokenizer, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
