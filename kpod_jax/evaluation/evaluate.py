"""Evaluation of a trained student on its own data and on data sets it was not trained on."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from kpod_jax import baselines
from kpod_jax.config.defaults import Config, trained_method
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
from kpod_jax.training import divergence, forward
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, listed
from kpod_jax.utils.progress import Progress

_DIVERGED = (
    "Evaluate an earlier checkpoint with --config.eval.checkpoint=STEP, or train again, in another "
    "--workdir, with a lower distill.learning_rate."
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions of a student for a set of records, with their summary.

    Attributes:
      predictions: one row per record, see `Evaluator.predictions`.
      summary: "accuracy", "correct", "total", "interval", "errors" and so on, see
        `accuracy.summary`; also "token_loss", in nats per token of rationale and answer, if there
        are rationales.
    """

    predictions: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Fraction of correct answers, in [0, 1]."""
        return self.summary["accuracy"]

    def __str__(self) -> str:
        """Returns the accuracy with its interval, and the loss."""
        summary = self.summary
        low, high = summary["interval"]
        text = (
            f"accuracy {summary['accuracy']:.1%} ({summary['correct']} of {summary['total']}; 95% "
            f"interval {low:.1%} to {high:.1%})"
        )
        if "token_loss" in summary:
            text += f", loss {summary['token_loss']:.3f} nats per token"
        return text


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
    """Evaluates a student on the questions of the given records.

    Args:
      config: the `eval` section of the configuration.
      student: model and tokenizer.
      params: its parameters, on the mesh.
      records: records with gold answers.
      mesh: device mesh; None for all devices.
      prompt: prompt template in the student's form (`Student.resolve_prompt`); empty for the
        student's own.
      answer_kind: kind of answer, one of `answers.KINDS` or package.module:function.
      label: label of the progress bar.

    Raises:
      UserError: a parameter, or the loss of a record, is not finite.
    """
    divergence.require_finite(params, "The student's parameters", _DIVERGED)
    mesh = mesh or sharding.make_mesh()
    sampling = Sampling(config.temperature, config.top_p, student.seed, config.samples)
    evaluator = make_evaluator(config, student, records, mesh, prompt, answer_kind, sampling)
    with Progress(
        len(records) * config.samples, label, unit="generations", compiles=True
    ) as progress:
        rows = evaluator.predictions(params, progress.update)
    summary = accuracy.summary(rows)
    token_loss = make_token_loss(config, student, records, mesh, prompt)
    return Evaluation(rows, summary | token_loss(params))


def make_evaluator(
    config: Config,
    student: Student,
    records: Sequence[Record],
    mesh: Mesh,
    prompt: str = "",
    answer_kind: str = "number",
    sampling: Sampling | None = None,
) -> Evaluator:
    """Creates an `Evaluator` from an `eval` configuration; greedy if `sampling` is None."""
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
    """Returns a function from parameters to {"token_loss": loss}.

    The loss is the mean -log P per token of rationale and answer, in nats. The function returns {}
    if no record has a rationale within the student's limits. The records are tokenized only once.
    It raises a `UserError` if the loss of a record is not finite.
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

    def token_loss(params: Any) -> dict[str, float]:
        arguments = student.module, params, source, mesh
        loss = forward.mean_target_loss(*arguments, batch_size=batch_size)
        if math.isfinite(loss):
            return {"token_loss": loss}
        divergence.require_finite(params, "The student's parameters", _DIVERGED)
        ids = [
            tokenized.records[i].id
            for index, values, _ in forward.target_losses_of_all(*arguments, batch_size=batch_size)
            for i, row in zip(index.tolist(), values, strict=True)
            if i >= 0 and not np.isfinite(row).all()
        ]
        raise UserError(
            f"The loss of {listed(ids, 8)} is {loss} under finite parameters: the student's "
            "numbers overflow. Set student.dtype=float32, or train with a lower "
            "distill.learning_rate."
        )

    return token_loss


@dataclasses.dataclass(frozen=True)
class Results:
    """The evaluation of a run on its own data and on other data sets.

    Attributes:
      facts: facts about the run: its method and seed, the step of the checkpoint, and so on.
      split: the evaluated split of its own data.
      in_domain: the evaluation of that split.
      ood: evaluations of the test splits of data sets that the student was not trained on, by
        name.
      records: the records of those test splits.
      rejected: their unusable records.
    """

    facts: Mapping[str, Any]
    split: str
    in_domain: Evaluation
    ood: Mapping[str, Evaluation]
    records: Mapping[str, Sequence[Record]]
    rejected: Mapping[str, Sequence[Rejected]]

    OUTPUTS: ClassVar[tuple[str, ...]] = ("results.json", "predictions/{split}.jsonl")

    def save(self, root: pathlib.Path) -> None:
        """Writes predictions/ and results.json to a work directory, and other data to records/."""
        files.write_jsonl(root / f"predictions/{self.split}.jsonl", self.in_domain.predictions)
        for name, other in self.ood.items():
            files.write_jsonl(root / f"predictions/{name}_test.jsonl", other.predictions)
            records_io.write_records(root / f"records/{name}_test.jsonl", self.records[name])
            rows = [{"id": bad.id, "reason": bad.reason} for bad in self.rejected[name]]
            files.write_jsonl(root / f"records/{name}_test_rejected.jsonl", rows)
        facts = dict(self.facts)
        head = {key: facts.pop(key) for key in ("method", "seed")} | {"split": self.split}
        ood = {
            name: other.summary | {"rejected": len(self.rejected[name])}
            for name, other in self.ood.items()
        }
        files.write_json(
            root / "results.json", {**head, **self.in_domain.summary, **facts, "ood": ood}
        )

    def __str__(self) -> str:
        """Returns a one-line summary."""
        parts = [f"{self.split} {self.in_domain}"]
        parts += [f"{name}_test {other}" for name, other in self.ood.items()]
        return f"{'; '.join(parts)}, step {self.facts['checkpoint_step']}"


def evaluate_run(config: Config, student: Student, trained: Any, data: Data, mesh: Mesh) -> Results:
    """Evaluates the student of a run on `eval.split` and on the data sets of `eval.ood`.

    Args:
      config: the whole configuration.
      student: model and tokenizer.
      trained: has "params", "step" and "supervised" (`distillation.Trained`).
      data: the data of the run.
      mesh: the mesh of the parameters.

    Raises:
      UserError: if one of the other data sets cannot be read.
    """
    # Read and validate all data before generating anything.
    split, own_records = config.eval.split, data.records(config.eval.split)
    other_records, rejected = read_ood_records(config)
    options = {
        "prompt": baselines.prompt_of(config, student),
        "answer_kind": sources.answer_kind(config.data.name, config.data.answer_kind),
    }

    def evaluate_records(records: Sequence[Record], label: str) -> Evaluation:
        return evaluate(config.eval, student, trained.params, records, mesh, label=label, **options)

    method = trained_method(config)
    facts = {"method": method, "seed": config.seed, "checkpoint_step": trained.step}
    if trained.supervised is not None:
        facts |= trained.supervised
    return Results(
        facts,
        split,
        evaluate_records(own_records, "Evaluating"),
        {
            name: evaluate_records(records, f"Evaluating {name}_test")
            for name, records in other_records.items()
        },
        other_records,
        rejected,
    )


def make_validation(
    config: Config, student: Student, records: Sequence[Record], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """Returns a function from parameters to the greedy accuracy and the token loss on records."""
    prompt = baselines.prompt_of(config, student)
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    evaluator = make_evaluator(config.eval, student, records, mesh, prompt, kind)
    token_loss = make_token_loss(config.eval, student, records, mesh, prompt)
    return lambda params: {"accuracy": evaluator.accuracy(params)} | token_loss(params)


def read_ood_records(config: Config) -> tuple[dict[str, list[Record]], dict[str, list[Rejected]]]:
    """Reads the test splits of the data sets in `eval.ood`.

    Returns:
      Their records and their rejected records, by name.

    Raises:
      UserError: if one cannot be read, or its answers are of a different kind than those of the
        student's own data.
    """
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    records, rejected = {}, {}
    for name, path in zip_longest(config.eval.ood, config.eval.ood_paths, fillvalue=""):
        records[name], rejected[name] = sources.load_records(
            name,
            "test",
            config.eval.ood_examples,
            path=path,
            answer_kind=kind,
            cache_dir=config.data.cache_dir,
            max_rejected_fraction=config.data.max_rejected_fraction,
        )
        for record in records[name]:
            try:
                answers.parse_gold(record.answer, kind, record.question)
            except ValueError as error:
                raise UserError(
                    f"eval.ood={name}: record {record.id} has the answer {record.answer!r:.80}, "
                    f"which does not match data.answer_kind={kind!r}. Expected data sets with the "
                    "same kind of answer as the student's own data."
                ) from error
    return records, rejected
