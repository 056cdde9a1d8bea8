r"""Learned token weights against baselines, on a task with known keypoints.

    python -m benchmarks.keypoints                         # prints the table
    python -m benchmarks.keypoints --only=baselines        # only the rows of this group
    python -m benchmarks.keypoints --write                 # and updates the rows in the document

Rows of the document that are not measured again stay as they are.

Uses the built-in task, the quickstart's data and answerer, held-out rationales, and seeds 0 to 2.
AUC is the probability that a keypoint has a higher weight than a filler token. Further columns: AUC
among numbers only, where "digits only" is blind; the mean weight of each kind of token; and, for
learned weights, the held-out objective (Eq. 7), which is a failure if it exceeds that of keeping
all tokens or none.
"""

import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from absl import app, flags, logging
from sklearn.metrics import roc_auc_score

from benchmarks import tables
from configs import quickstart
from kpod_jax.data import arithmetic
from kpod_jax.data.buckets import padded
from kpod_jax.data.ground_truth import spans_overlap
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import weigh, weightings
from kpod_jax.weighting.answerer_batch import batches, make_answerer_batch
from kpod_jax.weighting.answerer_model import make_answerer
from kpod_jax.weighting.generator import Generator

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds per row.")
_OBJECTIVES = ("objective", "keep_all", "keep_none")
_KINDS = ("result", "operand", "operator", "filler number", "filler word")
_PREFIXES = 16
_PAGE = "docs/token_weighting.md"
# Tables of the page, with the groups of their rows.
_TABLES = {
    "keypoints": ("baselines", "quickstart"),
    "study": ("alpha", "masks", "exploration", "steps", "prefixes", "answerer", "joint"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One weighting: changes to the quickstart's `weighting`, or a baseline.

    A row that is not `seeded` is the same for every seed and computed once.
    """

    group: str
    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: Callable[["Task", int], np.ndarray] | None = None
    seeded: bool = True


class Task:
    """Training and held-out examples, student and answerer."""

    def __init__(self) -> None:
        """Loads the models and tokenizes the examples."""
        self.config = quickstart.get_config()
        self.student = load_student(self.config.student)
        self.answerer = load_student(self.config.weighting.answerer, scan_layers=False)
        self.mesh = sharding.make_mesh()
        self.params = self.student.load(self.mesh)
        data = self.config.data
        self.train = self._tokenize(arithmetic.generate("train", data.train_examples))
        self.held_out = self._tokenize(arithmetic.generate("validation", 256))
        self.kinds = np.concatenate([_kinds(self.held_out, i) for i in range(len(self.held_out))])

    def _tokenize(self, records: Sequence[Any]) -> TokenizedSet:
        return self.student.tokenize(records)[0]


def _kinds(tokenized: TokenizedSet, i: int) -> np.ndarray:
    """Returns the index into _KINDS of every rationale token of an example."""
    record, spans = tokenized.records[i], tokenized.rationale_char_spans[i]
    ends = np.cumsum([len(step) for step in record.steps])
    keys = sorted(record.keypoints or ())
    results = {max((key for key in keys if key[0] < end), default=None) for end in ends}
    kinds = []
    for (start, end), inside in zip(spans, spans_overlap(spans, keys), strict=True):
        text = record.rationale[start:end].strip()
        if not inside.any():
            kinds.append(3 if text.isdigit() else 4)
        else:
            is_result = keys[inside.argmax()] in results
            kinds.append(0 if is_result else 1 if text.isdigit() else 2)
    return np.array(kinds)


def _rationales(tokenized: TokenizedSet) -> list[np.ndarray]:
    """Returns the ids of every example's rationale tokens."""
    return [tokenized.targets[i][:n] for i, n in enumerate(tokenized.rationale_lengths)]


def random(task: Task, seed: int) -> np.ndarray:
    """Returns noise."""
    return np.random.default_rng(seed).random(len(task.kinds))


def digits(task: Task, seed: int) -> np.ndarray:
    """Returns 1 for numbers, else 0."""
    del seed
    return np.isin(task.kinds, (0, 1, 3)).astype(float)


def inverse_document_frequency(task: Task, seed: int) -> np.ndarray:
    """Returns the log inverse document frequency of each token in the training rationales."""
    del seed
    lists = _rationales(task.train)
    counts = np.bincount(np.concatenate([np.unique(ids) for ids in lists]), minlength=100_000)
    return np.log(len(lists) / (1 + counts[np.concatenate(_rationales(task.held_out))]))


def gradient_times_input(task: Task, seed: int) -> np.ndarray:
    """Returns the first-order effect of unmasking each token on the answer's loss (|-dL/dm|)."""
    found = weightings.gradient_times_input(task.held_out, task.answerer, task.mesh, seed)
    return found.values


@functools.cache  # Used by two rows.
def occlusion(task: Task, seed: int) -> np.ndarray:
    """Returns the increase of the answer's loss L_p, in nats, from masking each token alone."""
    del seed
    problems = make_answerer_batch(task.held_out, task.student.tokenizer.pad_token_id)
    answerer, params = make_answerer(task.answerer), task.answerer.load(task.mesh)

    @jax.jit
    def losses(params, rows, keep):
        length = rows.rationale_mask.sum(axis=1)[:, None]
        prefix = jnp.ceil((jnp.arange(_PREFIXES) + 0.5) / _PREFIXES * length).astype(jnp.int32)
        return answerer.prefix_losses(params, rows, keep, prefix).mean(axis=1)

    values, width = [], problems.rationale.shape[1]
    # The last row masks nothing.
    keep = jnp.asarray(1 - np.eye(width + 1, width, dtype=np.float32))
    for i in range(len(task.held_out)):
        rows = jax.tree.map(lambda array, i=i: array[i : i + 1].repeat(width + 1, axis=0), problems)
        loss = np.asarray(losses(params, rows, keep))
        values.append((loss[:-1] - loss[-1])[problems.rationale_mask[i]])
    return np.concatenate(values)


def occlusion_by_word(task: Task, seed: int) -> np.ndarray:
    """Returns the mean of `occlusion` over all occurrences of a word; all numbers are one word."""
    values, ids = occlusion(task, seed), np.concatenate(_rationales(task.held_out))
    ids = np.where(digits(task, seed) > 0, -1, ids)
    _, word = np.unique(ids, return_inverse=True)
    return (np.bincount(word, values) / np.bincount(word))[word]


def attention_mass(task: Task, seed: int) -> np.ndarray:
    """Returns the answerer's attention to each token, over layers, heads and prefixes."""
    rng, held_out = np.random.default_rng(seed), task.held_out
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        task.config.weighting.answerer, attn_implementation="eager", dtype=torch.float32
    )
    # EOS separates the prefix from the answer; the answer is predicted from its attention.
    end, values = model.config.eos_token_id, []
    for i, size in enumerate(held_out.rationale_lengths):
        question, rationale = held_out.questions[i][:-1], held_out.targets[i][:size]
        mass = np.zeros(size)
        for _ in range(_PREFIXES):
            length = int(rng.integers(1, size + 1))
            ids = torch.tensor([[*question, *rationale[:length], end]])
            with torch.no_grad():
                output = model(input_ids=ids, output_attentions=True)
            layers = torch.stack(output.attentions)[:, 0, :, -1].mean(dim=(0, 1)).numpy()
            mass[:length] += layers[len(question) : len(question) + length]
        values.append(mass)
    return np.concatenate(values)


def from_labels(task: Task, seed: int) -> np.ndarray:
    """Returns the weights of a generator trained on the ground truth, in the same number of steps.

    This shows what the generator can express.
    """
    config = task.config.weighting
    pad_id, table = task.student.tokenizer.pad_token_id, task.student.embeddings(task.params)
    network = Generator(config.hidden_size, config.num_heads, config.initial_weight)
    train, held_out = (make_answerer_batch(part, pad_id) for part in (task.train, task.held_out))
    kinds = Ragged.from_list([_kinds(task.train, i) < 3 for i in range(len(task.train))])
    labels, _ = padded(kinds, np.arange(len(kinds)), train.rationale.shape[1], False)
    optimizer = optax.adam(4e-3)

    def logits(params, rationale, mask):
        return network.apply({"params": params}, jnp.asarray(table)[rationale], mask)

    @jax.jit
    def step(params, state, rationale, mask, labels):
        def loss(params):
            losses = optax.sigmoid_binary_cross_entropy(logits(params, rationale, mask), labels)
            return jnp.mean(losses, where=mask)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = network.init(
        jax.random.key(seed), jnp.asarray(table)[train.rationale[:1]], train.rationale_mask[:1]
    )["params"]
    state, indices = optimizer.init(params), batches(len(labels), config.batch_size, seed)
    for _ in range(config.steps):
        rows = next(indices)
        params, state = step(
            params, state, train.rationale[rows], train.rationale_mask[rows], labels[rows]
        )
    weights = jax.nn.sigmoid(jax.jit(logits)(params, held_out.rationale, held_out.rationale_mask))
    return np.asarray(weights)[np.asarray(held_out.rationale_mask)]


ROWS = [
    Row("baselines", "the generator, trained on the truth", baseline=from_labels),
    Row("baselines", "random", baseline=random),
    Row(
        "baselines", "inverse document frequency", baseline=inverse_document_frequency, seeded=False
    ),
    Row("baselines", "digits only", baseline=digits, seeded=False),
    Row("baselines", "occlusion, a token at a time", baseline=occlusion, seeded=False),
    Row(
        "baselines",
        "the same, mean over a word's places",
        baseline=occlusion_by_word,
        seeded=False,
    ),
    Row("baselines", "attention mass of the answerer", baseline=attention_mass),
    Row("baselines", "gradient × input of the answerer", baseline=gradient_times_input),
    Row("quickstart", "**learned, the quickstart's settings**"),
    Row("alpha", "α = 0.1", {"alpha": 0.1}),
    Row("alpha", "α = 0.5", {"alpha": 0.5}),
    Row("alpha", "α = 0.9", {"alpha": 0.9}),
    Row("masks", "soft masks", {"estimator": "soft"}),
    Row("masks", "straight-through masks", {"estimator": "straight_through"}),
    Row("masks", "4 masks an example", {"mask_samples": 4}),
    Row("masks", "16 masks an example", {"mask_samples": 16}),
    Row(
        "masks",
        "soft masks, temperature 0.3 throughout",
        {"estimator": "soft", "temperature_start": 0.3, "temperature_end": 0.3},
    ),
    Row(
        "masks",
        "soft masks, temperature 2 throughout",
        {"estimator": "soft", "temperature_start": 2.0, "temperature_end": 2.0},
    ),
    Row("masks", "α rises over half of the steps", {"alpha_warmup": 0.5}),
    Row("exploration", "no exploration", {"exploration": 0.0}),
    Row("exploration", "exploration 0.2", {"exploration": 0.2}),
    Row("exploration", "exploration 0.3", {"exploration": 0.3}),
    Row("exploration", "exploration 0.45", {"exploration": 0.45}),
    Row("steps", "half of the steps", {"steps": 70}),
    Row("steps", "twice the steps", {"steps": 280}),
    Row("prefixes", "prefixes at step ends", {"prefixes": "step_ends"}),
    Row("prefixes", "late prefixes more often", {"prefixes": "late"}),
    Row("prefixes", "one prefix a step", {"prefix_samples": 1}),
    Row("prefixes", "four prefixes a step", {"prefix_samples": 4}),
    Row(
        "answerer",
        "answerer fit on the other half: reading, then masks",
        {"answerer": "", "fit": "other_fold", "fit_unmasked_steps": 300, "fit_masked_steps": 600},
    ),
    Row(
        "answerer",
        "the same, frozen after reading: it never saw a mask",
        {"answerer": "", "fit": "other_fold", "fit_unmasked_steps": 900, "fit_masked_steps": 0},
    ),
    Row(
        "answerer",
        "fit on the very examples: it may memorise",
        {"answerer": "", "fit": "same", "fit_unmasked_steps": 300, "fit_masked_steps": 600},
    ),
    Row(
        "joint",
        "the paper's plain joint training, from the student",
        {"answerer": "", "fit": "same", "joint_learning_rate": 1e-3, "min_gap": -100.0},
    ),
    Row("joint", "joint training, from our answerer", {"joint_learning_rate": 1e-4, "fit": "same"}),
]


def learned(task: Task, row: Row, seed: int) -> tuple[np.ndarray, dict[str, Any], float]:
    """Returns the weights of the held-out tokens, the training's summary, and its seconds."""
    config = quickstart.get_config().weighting
    config.update({"allow_failed": True, **row.changes})
    # Only fitting uses fresh problems; a pre-trained answerer needs none.
    fresh = None
    if config.fit == "fresh":
        fresh = task._tokenize(arithmetic.generate("fresh", config.fit_fresh_examples, seed + 1))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        result = weigh.weigh(
            config,
            dataclasses.replace(task.student, seed=seed),
            task.train,
            task.held_out,
            task.mesh,
            answerer=task.answerer if config.answerer else task.student,
            fresh=fresh,
            workdir=pathlib.Path(directory),
        )
    assert result.held_out is not None
    return result.held_out.values, result.summary, time.monotonic() - start


def cells(task: Task, seeds: Sequence[np.ndarray]) -> list[str]:
    """Formats AUC over all tokens and over numbers, and the mean weight of each kind.

    Args:
      task: the task.
      seeds: weights of the held-out tokens, one array per seed.
    """
    key, number = task.kinds < 3, np.isin(task.kinds, (0, 1, 3))

    def mean_and_spread(values: Sequence[float]) -> str:
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    all_auc = [float(roc_auc_score(key, weights)) for weights in seeds]
    number_auc = [float(roc_auc_score(key[number], weights[number])) for weights in seeds]
    means = [
        statistics.fmean(float(weights[task.kinds == kind].mean()) for weights in seeds)
        for kind in range(len(_KINDS))
    ]
    return [
        mean_and_spread(all_auc),
        mean_and_spread(number_auc),
        *(f"{mean:.2f}" for mean in means),
    ]


def objectives(summaries: Sequence[Mapping[str, float]]) -> list[str]:
    """Formats the mean over seeds of the objective, and of keeping all tokens and none."""
    return [
        f"{statistics.fmean(summary[key] for summary in summaries):.3f}" if summaries else ""
        for key in _OBJECTIVES
    ]


def fails(summary: Mapping[str, float]) -> bool:
    """Returns whether keeping all tokens, or none, beats the learned weights."""
    return summary["objective"] > min(summary["keep_all"], summary["keep_none"])


def merged(new: Sequence[str], old: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Returns the rows of some groups, in the order of ROWS, preferring new rows over old ones.

    Old rows are dropped if their columns differ.
    """

    def by_name(table: Sequence[str]) -> dict[str, str]:
        # A note on failures follows the name in parentheses.
        return {line.split("|")[1].split(" (")[0].strip(): line for line in table[2:]}

    rows = (by_name(old) if old[:1] == new[:1] else {}) | by_name(new)
    names = [row.name for row in ROWS if row.group in groups]
    return [*new[:2], *(rows[name] for name in names if name in rows)]


def main(argv: list[str]) -> None:
    """Prints the table, one row at a time."""
    del argv
    logging.set_verbosity(logging.ERROR)
    groups = [group for groups in _TABLES.values() for group in groups]
    groups = tables.only(groups) or groups
    task = Task()
    names = [key.replace("_", " ") for key in _OBJECTIVES]
    head = ["weights", "AUC", "AUC among numbers", *names, *_KINDS, "seconds"]
    table = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    print("\n".join(table), flush=True)
    for row in ROWS:
        if row.group not in groups:
            continue
        seed_weights, summaries, seconds, refusal = [], [], [], ""
        for seed in range(_SEEDS.value if row.seeded else 1):
            if row.baseline is not None:
                seed_weights.append(row.baseline(task, seed))
                continue
            try:
                weights, summary, took = learned(task, row, seed)
            except UserError as error:
                refusal = str(error).split(".")[0].split(":")[0]
                continue
            seed_weights.append(weights)
            summaries.append(summary)
            seconds.append(took)
        took = f"{statistics.fmean(seconds):.0f}" if seconds else ""
        values = cells(task, seed_weights) if seed_weights else ["–"] * (2 + len(_KINDS))
        line = [row.name, *values[:2], *objectives(summaries), *values[2:], took]
        if failed := sum(map(fails, summaries)):
            line[0] += f" ({failed} of {len(summaries)} worse than keeping all or none)"
        if refusal:
            refused = _SEEDS.value - len(seed_weights)
            line[0] += f" ({refused} of {_SEEDS.value} refused: “{refusal}”)"
        table.append(f"| {' | '.join(line)} |")
        print(table[-1], flush=True)
    if tables.WRITE.value:
        for name, groups in _TABLES.items():
            tables.put(_PAGE, name, merged(table, tables.get(_PAGE, name), groups))


if __name__ == "__main__":
    app.run(main)
