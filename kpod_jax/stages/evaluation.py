"""Generations and accuracy of a checkpoint, on its own test split and on other data sets."""

from itertools import zip_longest
from typing import Any

from kpod_jax.data import answers, sources
from kpod_jax.data import records as records_io
from kpod_jax.data.records import Record
from kpod_jax.evaluation import accuracy
from kpod_jax.evaluation.generation import Sampling
from kpod_jax.models import layout
from kpod_jax.run import Run
from kpod_jax.stages.distill import SUPERVISED
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.progress import Progress


def trained_params(run: Run) -> tuple[Any, int]:
    """The parameters that the configuration's checkpoint names, and its step."""
    if not run.config.distill.epochs:
        return run.student.load(run.mesh), 0
    which = str(run.config.eval.checkpoint)
    directory = run.workdir / "checkpoints/student"
    with Checkpoints(directory, best_metric="accuracy", read_only=True) as checkpoints:
        restored = checkpoints.restore_params(
            run.student.split(run.student.abstract(run.mesh))[0],
            int(which) if which.isdecimal() else which,  # pyright: ignore[reportArgumentType]
        )
    if run.student.module.lora is None:
        return restored.state, restored.step
    _, frozen = run.student.split(run.student.load(run.mesh))
    return layout.combine(restored.state, frozen), restored.step


def run_stage(run: Run) -> str:
    """Asks the student of checkpoints/student the records; writes predictions/ and results.json.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: no checkpoint, or other data sets (`eval.ood`) that cannot be read.
    """
    config = run.config
    params, step = trained_params(run)
    # All that can be wrong with data is said before anything is generated.
    asked = {config.eval.split: run.records(config.eval.split)}
    rejected = {}
    for name, path in zip_longest(config.eval.ood, config.eval.ood_paths, fillvalue=""):
        asked[f"{name}_test"], rejected[name] = _ood_records(run, name, path)
    found = {}
    for name, records in asked.items():
        evaluator = run.evaluator(
            records,
            samples=config.eval.samples,
            sampling=Sampling(config.eval.temperature, config.eval.top_p, config.seed),
        )
        what = "Evaluating" if name == config.eval.split else f"Evaluating {name}"
        with Progress(len(records) * config.eval.samples, what, unit="generations") as progress:
            rows = evaluator.predictions(params, progress.update)
        files.write_jsonl(run.workdir / f"predictions/{name}.jsonl", rows)
        found[name] = accuracy.summary(rows)
        if (loss_of := run.target_loss(records)) is not None:
            found[name]["token_loss"] = loss_of(params)
    for name, bad in rejected.items():
        records_io.write_records(run.workdir / f"records/{name}_test.jsonl", asked[f"{name}_test"])
        found[f"{name}_test"]["rejected"] = len(bad)
        rows = [{"id": r.id, "reason": r.reason} for r in bad]
        files.write_jsonl(run.workdir / f"records/{name}_test_rejected.jsonl", rows)
    result = found[config.eval.split]
    files.write_json(
        run.workdir / "results.json",
        {
            "method": config.method,
            "seed": config.seed,
            "split": config.eval.split,
            **result,
            "checkpoint_step": step,
            **_supervised(run),
            "ood": {name: found[f"{name}_test"] for name in config.eval.ood},
        },
    )
    shown = [
        f"{name} accuracy {one['accuracy']:.1%} ({one['correct']} of {one['total']}; 95 % interval "
        f"{one['interval'][0]:.1%} to {one['interval'][1]:.1%})"
        + (f", loss {one['token_loss']:.3f} nats a token" if "token_loss" in one else "")
        for name, one in found.items()
    ]
    return f"{'; '.join(shown)}, step {step}"


def _supervised(run: Run) -> dict[str, int]:
    """How many tokens the training supervised; {} where it has not come to its end."""
    path = run.workdir / SUPERVISED
    if not run.config.distill.epochs:
        return {"supervised_rationale_tokens": 0, "supervised_answer_tokens": 0}
    return files.read_json(path) if path.exists() else {}


def _ood_records(run: Run, name: str, path: str) -> tuple[list[Record], list[records_io.Rejected]]:
    """The test split of a data set that the student was not trained on."""
    config = run.config
    found, rejected = sources.load_records(
        name,
        "test",
        path=path,
        cache_dir=config.data.cache,
        limit=config.eval.ood_examples,
        max_bad_share=config.data.max_bad_share,
    )
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    for record in found:
        if answers.extract_answer(record.answer, kind) is None:
            raise UserError(
                f"eval.ood={name}: record {record.id} has the answer {record.answer!r:.80}, which "
                f"is none of data.answer_kind={kind!r}. Expected data sets of the same kind of "
                "answer as the student's own."
            )
    return found, rejected
