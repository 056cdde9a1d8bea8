r"""Makes the built-in task's tiny T5: its tokenizer, and its weights pre-trained WITHOUT chains of thought.

    python -m kpod_jax.pretrain --output=kpod_jax/assets/tiny_t5

The mixture is what a real student has seen, in small: single operations, in symbols and in single
sentences, and running text of the task with spans to fill in (span corruption). It never sees a
question followed by its rationale or by its answer, so it knows the words, not the reasoning.
Problems are of the task's "fresh" split, which shares no question with the others.
"""

import collections
import functools
import json
import re
from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np
import optax
import tokenizers
import transformers
from absl import app, flags, logging
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from kpod_jax import losses
from kpod_jax.data import arithmetic
from kpod_jax.models.t5 import T5, T5Config

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the student to.", required=True)
_STEPS = flags.DEFINE_integer("steps", 3000, "Training steps.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

SENTINELS = 32
_BATCH, _SOURCE, _TARGET = 64, 48, 40
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
        records = arithmetic.generate("fresh", _PROBLEMS, seed)
        self._sentinels = tokenizer.convert_tokens_to_ids(
            [f"<extra_id_{i}>" for i in range(SENTINELS)]
        )
        self._eos = tokenizer.eos_token_id
        equations = arithmetic.equations()
        before = tokenizer([e.before for e in equations]).input_ids
        result = tokenizer([e.result for e in equations]).input_ids
        self._equations = list(zip(before, result, strict=True))
        # Rare kinds ("twice", "dozen") more often than their number of cases would have it.
        kinds = [re.sub(r"\d", "", e.before) for e in equations]
        counts = collections.Counter(kinds)
        self._odds = np.cumsum([counts[kind] ** -0.5 for kind in kinds])
        questions = [record.question for record in records]
        # Single steps, each torn from its rationale.
        steps = [record.steps[i % len(record.steps)] for i, record in enumerate(records)]
        self._texts = tokenizer(questions + steps, add_special_tokens=False).input_ids

    def batch(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """Rows of (seed, step): source, source_mask, inputs, target, target_mask."""
        rng = np.random.default_rng([seed, step])
        rows = [self._operations(rng) if i % 2 else self._running_text(rng) for i in range(_BATCH)]
        source = np.zeros((_BATCH, _SOURCE), np.int32)
        target = np.zeros((_BATCH, _TARGET), np.int32)
        for i, (left, right) in enumerate(rows):
            left, right = left[: _SOURCE - 1] + [self._eos], right[: _TARGET - 1] + [self._eos]
            source[i, : len(left)], target[i, : len(right)] = left, right
        inputs = np.roll(target, 1, axis=1)
        inputs[:, 0] = 0
        return {
            "source": source,
            "source_mask": source > 0,
            "inputs": inputs,
            "target": target,
            "target_mask": target > 0,
        }

    def _operations(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Single operations; of each, the result is missing, or the whole is to be written out."""
        source, target = [], []
        for i in range(6):
            before, result = self._equations[
                int(np.searchsorted(self._odds, rng.random() * self._odds[-1]))
            ]
            if rng.random() < 0.5:
                source += [*before, self._sentinels[i]]
                target += [self._sentinels[i], *result]
            else:  # The equation is to be written out.
                source += [self._sentinels[i], *before]
                target += [self._sentinels[i], *before, *result]
        return source, target

    def _running_text(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """A question or a step with about a fifth of its tokens missing, in spans of one to three."""
        text = self._texts[int(rng.integers(len(self._texts)))]
        while len(text) < _SOURCE // 2:
            text = text + self._texts[int(rng.integers(len(self._texts)))]
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


def train(
    module: T5, mixture: Mixture, *, steps: int, learning_rate: float, seed: int
) -> tuple[dict, list[float]]:
    """Trains from random values; returns the parameters and the losses in nats a token."""
    example = mixture.batch(seed, 0)
    params = nn.unbox(
        module.init(
            jax.random.key(seed), example["source"], example["source_mask"], example["inputs"]
        )["params"]
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(200, steps), steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        def loss(params):
            hidden = module.apply(
                {"params": params}, batch["source"], batch["source_mask"], batch["inputs"]
            )
            nll = losses.token_losses(
                hidden,
                batch["target"],
                batch["target_mask"],
                lambda h: module.apply({"params": params}, h, method="logits"),
                chunk=_TARGET,
            )
            return nll.sum() / batch["target_mask"].sum()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, history = optimizer.init(params), []
    for step in range(steps):
        params, state, value = train_step(params, state, mixture.batch(seed, step))
        if step % 100 == 0 or step == steps - 1:
            history.append(float(value))
            logging.info("step %d of %d, loss %.4f", step, steps, history[-1])
    return params, history


def main(argv: list[str]) -> None:
    """Makes tokenizer and weights and writes them in Hugging Face's format."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    records = arithmetic.generate("fresh", 4000, _SEED.value)
    template = "Q: {} A: Let's think step by step. {} Therefore, the answer is {}."
    texts = [template.format(r.question, r.rationale, r.answer) for r in records]
    tokenizer = train_tokenizer(texts)
    config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
    module = T5(config, scan_layers=False)
    mixture = Mixture(tokenizer, _SEED.value)
    params, _ = train(module, mixture, steps=_STEPS.value, learning_rate=3e-3, seed=_SEED.value)
    hub.save_pretrained(_OUTPUT.value, config, params, tokenizer, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
