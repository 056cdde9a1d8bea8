r"""Makes the two small models that the built-in task ships with.

    python -m kpod_jax.pretrain --what=student --output=kpod_jax/assets/tiny_t5
    python -m kpod_jax.pretrain --what=answerer --output=kpod_jax/assets/tiny_answerer

The student is pre-trained WITHOUT chains of thought, on what a real one has seen, in small: single
operations, word problems of one operation with their answers, and running text of the task with
parts to fill in. It never sees a question of several operations followed by its rationale or by its
answer, so it knows the words, not the reasoning.

The answerer of the token weighting starts from the student and learns to answer from a question and
its rationale: short problems first, longer ones, then masked prefixes.

They learn from problems of the task's "fresh" split, which shares no question with the others.
"""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable
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

from kpod_jax import losses, sharding
from kpod_jax.data import arithmetic, tokens
from kpod_jax.data.records import Record
from kpod_jax.models import hub
from kpod_jax.models.student import Student, load_student
from kpod_jax.models.t5 import T5, T5Config
from kpod_jax.weighting import learn, weigh
from kpod_jax.weighting.answerer import Problems
from kpod_jax.weighting.generator import Generator

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the model to.", required=True)
_WHAT = flags.DEFINE_enum("what", "student", ["student", "answerer"], "What to make.")
_STUDENT = flags.DEFINE_string(
    "student", "kpod_jax/assets/tiny_t5", "Directory that the answerer starts from."
)
_SCALE = flags.DEFINE_float("scale", 1.0, "Scales the number of steps, for a quick try.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

SENTINELS = 32
# Rows, source and target tokens of a batch.
_SHAPES = {"operations": (128, 8, 8), "text": (48, 48, 48), "word_problems": (96, 32, 4)}
_PROBLEMS = 20000
# Operations of the problems, steps of reading, steps under masks, learning rate, clear share.
_ANSWERER_PHASES = (
    ((1, 2), 250, 0, 1e-3, 0.5),
    ((1, 3), 700, 0, 1e-3, 0.5),
    ((1, 3), 0, 700, 7e-4, 0.5),
    ((1, 3), 0, 1200, 7e-4, 0.3),
)
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


# Tokens of a source and of its target.
Row = tuple[list[int], list[int]]


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
            return tokenizer(list(texts)).input_ids

        def encode_parts(rows: Iterable[tuple[str, ...]]) -> list[tuple[list[int], ...]]:
            """Each text of each row as ids of its own."""
            columns = zip(*rows, strict=True)
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
        count, source_len, target_len = _SHAPES[kind]
        source = np.zeros((count, source_len), np.int32)
        target = np.zeros((count, target_len), np.int32)
        for i in range(count):
            left, right = make(rng)
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
    """Trains on single operations, then on all kinds of rows, half of them text."""
    steps = operation_steps + mixed_steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps), steps + 1)
    kinds = ("operations", "text", "word_problems", "text")
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
    recent: dict[str, list[jax.Array]] = collections.defaultdict(list)
    for step in range(steps):
        kind = "operations" if step < operation_steps else kinds[step % len(kinds)]
        params, state, loss = train_step(params, state, mixture.batch(kind, seed, step))
        recent[kind].append(loss)
        if step % 200 == 199 or step == steps - 1:
            means = {
                kind: round(float(jnp.stack(values).mean()), 3) for kind, values in recent.items()
            }
            logging.info("step %d of %d, nats a token: %s", step + 1, steps, means)
            recent.clear()
    return params


def train_answerer(student: Student, params: dict, *, scale: float, seed: int) -> dict:
    """Trains the student to answer: from whole rationales, short ones first, then from masked ones.

    Reading has to be learned first, and for long: most masked prefixes say nothing of the answer,
    and where nothing can be read, reading is not learned. Masks have to be seen for long, too:
    only then is an answer found among masked filler, and no intermediate result taken for it.
    """

    @functools.cache
    def problems(split: str, count: int, operations: tuple[int, int]) -> Problems:
        records = arithmetic.generate(split, count, seed, operations)
        tokenized, _ = tokens.tokenize(
            records, student.tokenizer, max_question_tokens=128, max_target_tokens=192
        )
        return learn.problems_of(tokenized, student.config.pad_token_id)

    learner = learn.MaskLearner(
        weigh.make_answerer(student), Generator(8, 1), jnp.zeros((1, 1)), 0.0, "step_ends"
    )

    def log(what: str, step: int, values: dict[str, float]) -> None:
        logging.info("%s: step %d, %s", what, step, values)

    for operations, reading, masking, learning_rate, clear_share in _ANSWERER_PHASES:
        params = learn.fit_answerer(
            dataclasses.replace(learner, clear_share=clear_share),
            params,
            problems("fresh", _PROBLEMS, operations),
            reading_steps=round(reading * scale),
            masking_steps=round(masking * scale),
            batch_size=32,
            learning_rate=learning_rate,
            seed=seed,
            log=log,
        )
    gap = learn.measure_gap(learner, params, problems("validation", 256, (2, 3)), 64)
    means = {kind: round(float(gap[kind]), 2) for kind in ("none_masked", "all_masked")}
    whole = {kind: round(gap["by_prefix"][kind][-1], 2) for kind in means}
    logging.info("held out, nats: %s, at the whole rationale %s", means, whole)
    return params


def main(argv: list[str]) -> None:
    """Makes a model and writes it, with its tokenizer, in Hugging Face's format."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    seed, scale = _SEED.value, _SCALE.value
    if _WHAT.value == "answerer":
        student = load_student(_STUDENT.value, scan_layers=False)
        start = student.load(sharding.make_mesh())
        params = train_answerer(student, start, scale=scale, seed=seed)
        config, tokenizer = student.config, student.tokenizer
    else:
        records = arithmetic.generate("fresh", 4000, seed)
        template = "Q: {} A: Let's think step by step. {} Therefore, the answer is {}."
        tokenizer = train_tokenizer(
            template.format(record.question, record.rationale, record.answer) for record in records
        )
        config = T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, **_ARCHITECTURE)
        module = T5(config, scan_layers=False)
        ids = jnp.ones((1, 8), jnp.int32)
        params = pretrain(
            module,
            nn.unbox(module.init(jax.random.key(seed), ids, ids > 0, ids)["params"]),
            Mixture(tokenizer, seed),
            operation_steps=max(1, round(1000 * scale)),
            mixed_steps=round(4000 * scale),
            seed=seed,
        )
    hub.save_pretrained(_OUTPUT.value, config, params, tokenizer, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
