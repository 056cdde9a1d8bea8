"""What a trained student answers: on its own split, and on data that it was not trained on."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

from jax.sharding import Mesh

from kpod_jax import baselines
from kpod_jax.config.defaults import Config
from kpod_jax.data import answers, sources
from kpod_jax.data import records as records_io
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Record, Rejected
from kpod_jax.evaluation import accuracy
from kpod_jax.evaluation.accuracy import Evaluator
from kpod_jax.evaluation.generation import Sampling
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.training import forward
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Generations of a student for some records, and how good they are.

    Attributes:
      predictions: a row a record, see `Evaluator.predictions`.
      summary: "accuracy", "correct", "total", "interval", "errors" and so on, see
        `accuracy.summary`; "token_loss", nats a token of rationale and answer, where there are
        rationales.
    """

    predictions: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return self.summary["accuracy"]

    def __str__(self) -> str:
        """The accuracy with its interval, and the loss."""
        one = self.summary
        text = (
            f"accuracy {one['accuracy']:.1%} ({one['correct']} of {one['total']}; 95 % interval "
            f"{one['interval'][0]:.1%} to {one['interval'][1]:.1%})"
        )
        return text + (
            f", loss {one['token_loss']:.3f} nats a token" if "token_loss" in one else ""
        )


def evaluate(
    config: Config,
    student: Student,
    params: Any,
    records: Sequence[Record],
    mesh: Mesh | None = None,
    *,
    prompt: str = "",
    answer_kind: str = "number",
    label: str = "Evaluating",
) -> Evaluation:
    """Asks a student the questions of some records.

    Args:
      config: `eval` of a configuration.
      student: model and tokenizer.
      params: its parameters, on the mesh.
      records: with gold answers.
      mesh: of the devices; None: all of them.
      prompt: in the student's form (`Student.resolve_prompt`); empty: the student's own.
      answer_kind: of `answers.KINDS`.
      label: of the progress bar.
    """
    mesh = mesh or sharding.make_mesh()
    sampling = Sampling(config.temperature, config.top_p, student.seed, config.samples)
    evaluator = make_evaluator(config, student, records, mesh, prompt, answer_kind, sampling)
    with Progress(len(records) * config.samples, label, unit="generations") as progress:
        rows = evaluator.predictions(params, progress.update)
    summary = accuracy.summary(rows)
    loss_of = make_token_loss(config, student, records, mesh, prompt)
    return Evaluation(rows, summary | loss_of(params))


def make_evaluator(
    config: Config,
    student: Student,
    records: Sequence[Record],
    mesh: Mesh,
    prompt: str = "",
    answer_kind: str = "number",
    sampling: Sampling | None = None,
) -> Evaluator:
    """An `Evaluator` as `eval` of a configuration has it; None of `sampling`: greedy."""
    return Evaluator(
        student,
        records,
        mesh,
        prompt=prompt or student.prompt,
        answer_kind=answer_kind,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens or student.settings.max_target_tokens,
        sampling=sampling,
    )


def make_token_loss(
    config: Config, student: Student, records: Sequence[Record], mesh: Mesh, prompt: str = ""
) -> Callable[[Any], dict[str, float]]:
    """From parameters to {"token_loss": mean -log P, nats, of a token of rationales and answers}.

    Empty where no record has a rationale that the student's limits let through. The records are
    tokenised once, however often the function is called.
    """
    prompt, batch_size = prompt or student.prompt, config.batch_size
    tokenized, _ = student.tokenize(records, prompt)
    if not len(tokenized):
        return lambda params: {}
    layout = Layout(
        batch_size,
        student.seed,
        student.tokenizer.pad_token_id,
        student.decoder_start(prompt),
        buckets=2,
    )
    source = BatchSource(tokenized, layout)
    loss = functools.partial(forward.mean_target_loss, batch_size=batch_size)
    return lambda params: {"token_loss": loss(student.module, params, source, mesh)}


@dataclasses.dataclass(frozen=True)
class Results:
    """The evaluation of a run: of its own split, then of other data sets by name.

    Attributes:
      facts: of the run, such as its method and seed, and the checkpoint's step.
      split: that was asked.
      own: its evaluation.
      others: of test splits of data sets that the student was not trained on.
      records: the records of those.
      rejected: those of them that cannot be used.
    """

    facts: Mapping[str, Any]
    split: str
    own: Evaluation
    others: Mapping[str, Evaluation]
    records: Mapping[str, Sequence[Record]]
    rejected: Mapping[str, Sequence[Rejected]]

    OUTPUTS: ClassVar = ("results.json",)

    def save(self, root: pathlib.Path) -> None:
        """Writes predictions/ and results.json under a work directory."""
        files.write_jsonl(root / f"predictions/{self.split}.jsonl", self.own.predictions)
        for name, other in self.others.items():
            files.write_jsonl(root / f"predictions/{name}_test.jsonl", other.predictions)
            records_io.write_records(root / f"records/{name}_test.jsonl", self.records[name])
            rows = [{"id": bad.id, "reason": bad.reason} for bad in self.rejected[name]]
            files.write_jsonl(root / f"records/{name}_test_rejected.jsonl", rows)
        facts = dict(self.facts)
        head = {key: facts.pop(key) for key in ("method", "seed")} | {"split": self.split}
        ood = {
            name: other.summary | {"rejected": len(self.rejected[name])}
            for name, other in self.others.items()
        }
        files.write_json(root / "results.json", {**head, **self.own.summary, **facts, "ood": ood})

    def __str__(self) -> str:
        """What came, in a few words."""
        shown = [f"{self.split} {self.own}"]
        shown += [f"{name}_test {other}" for name, other in self.others.items()]
        return f"{'; '.join(shown)}, step {self.facts['checkpoint_step']}"


def evaluate_run(config: Config, student: Student, trained: Any, data: Data, mesh: Mesh) -> Results:
    """Evaluates a run's student on its split, and on other data sets (`eval.ood`).

    Args:
      config: of the whole run.
      student: model and tokenizer.
      trained: with "params", "step" and "supervised" (`distillation.Trained`).
      data: of the run.
      mesh: that the parameters lie on.

    Raises:
      UserError: another data set cannot be read.
    """
    # Data is checked before anything is generated.
    split, own = config.eval.split, data.records(config.eval.split)
    records, rejected = read_others(config)
    options = {
        "prompt": baselines.prompt_of(config, student),
        "answer_kind": sources.answer_kind(config.data.name, config.data.answer_kind),
    }

    def asked(records: Sequence[Record], label: str) -> Evaluation:
        return evaluate(config.eval, student, trained.params, records, mesh, label=label, **options)

    facts = {"method": config.method, "seed": config.seed, "checkpoint_step": trained.step}
    if trained.supervised is not None:
        facts |= trained.supervised
    return Results(
        facts,
        split,
        asked(own, "Evaluating"),
        {name: asked(found, f"Evaluating {name}_test") for name, found in records.items()},
        records,
        rejected,
    )


def make_validation(
    config: Config, student: Student, records: Sequence[Record], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """From parameters to the accuracy on some records, greedy, and the loss of their tokens."""
    prompt = baselines.prompt_of(config, student)
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    evaluator = make_evaluator(config.eval, student, records, mesh, prompt, kind)
    loss_of = make_token_loss(config.eval, student, records, mesh, prompt)
    return lambda params: {"accuracy": evaluator.accuracy(params)} | loss_of(params)


def read_others(config: Config) -> tuple[dict[str, list[Record]], dict[str, list[Rejected]]]:
    """The test splits of the data sets of `eval.ood`, by name, and what of them is rejected.

    Raises:
      UserError: one cannot be read, or has another kind of answers than the student's own data.
    """
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    records, rejected = {}, {}
    for name, path in zip_longest(config.eval.ood, config.eval.ood_paths, fillvalue=""):
        records[name], rejected[name] = sources.load_records(
            name,
            "test",
            config.eval.ood_examples,
            path=path,
            cache_dir=config.data.cache_dir,
            max_rejected_fraction=config.data.max_rejected_fraction,
        )
        for record in records[name]:
            if answers.extract_answer(record.answer, kind) is None:
                raise UserError(
                    f"eval.ood={name}: record {record.id} has the answer {record.answer!r:.80}, "
                    f"which is none of data.answer_kind={kind!r}. Expected data sets of the same "
                    "kind of answer as the student's own."
                )
    return records, rejected
