"""Algorithm 1 from top to bottom: rationales → weights → difficulties → schedule → student.

Each stage reads and writes files of the work directory and is skipped while its output is up to
date. This is the only place that knows their order.
"""

import dataclasses
import functools
import importlib.metadata
import math
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from absl import logging

import kpod_jax
from kpod_jax import (
    answers,
    configuration,
    difficulty,
    distill,
    evaluate,
    files,
    model_card,
    report,
    sharding,
)
from kpod_jax.checkpoint import Checkpoints
from kpod_jax.configuration import Config
from kpod_jax.data import overlap, sources, tokens
from kpod_jax.data import records as records_io
from kpod_jax.data.batches import BatchSource
from kpod_jax.data.records import Ragged, Record
from kpod_jax.errors import UserError
from kpod_jax.generate import Sampling
from kpod_jax.models import adapters, hub, layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import Student, load_student
from kpod_jax.progress import Progress
from kpod_jax.schedule import clusters, curricula
from kpod_jax.schedule.following import Following
from kpod_jax.schedule.protocol import Curriculum, Feedback, Setting
from kpod_jax.weighting import weigh
from kpod_jax.workdir import Workdir

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of Algorithm 1.

    Attributes:
      run: does the work and says in a few words what it did.
      keys: parts of the configuration that it depends on.
      inputs: files that it reads.
      outputs: files that it writes.
      optional: outputs of other stages that it reads where the configuration needs those.
      needed: whether the configuration asks for it at all.
      continues: a stale output is a training that may have taken days: it is not overwritten.
      partial: what an interrupted run of it goes on from; removed where that was another one's.
    """

    run: Callable[["Run"], str]
    keys: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    needed: Callable[[Config], bool] = lambda config: True
    continues: bool = False
    partial: tuple[str, ...] = ()


def run(
    config: Config,
    workdir: files.PathLike,
    mode: str = "all",
    siblings: Sequence[files.PathLike] = (),
) -> pathlib.Path:
    """Runs a stage, or all of them but the export, in a work directory.

    Args:
      config: checked (`configuration.check`).
      workdir: made if it is missing.
      mode: a name of STAGES, or "all".
      siblings: work directories whose outputs are taken over where they were made from the same.

    Returns:
      The work directory.

    Raises:
      UserError: something that the user can put right.
    """
    current = Run(config, Workdir(workdir, siblings))
    _write_config(current)
    for name in [name for name in STAGES if name != "export"] if mode == "all" else [mode]:
        current.stage(name)
    return current.workdir.path


def say(line: str) -> None:
    """Prints a line for the user, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


class Run:
    """A run's configuration and directory, and what stages share, made when first asked for."""

    def __init__(self, config: Config, workdir: Workdir) -> None:
        """Starts nothing yet."""
        self.config = config
        self.workdir = workdir

    def stage(self, name: str) -> None:
        """Runs one stage unless its output is there and up to date."""
        stage = STAGES[name]
        if not stage.needed(self.config):
            say(f"{name}: not needed for method {self.config.method}")
            return
        missing = [file for file in self.inputs(name) if not (self.workdir / file).exists()]
        if missing:
            raise UserError(
                f"--mode={name} reads {self.workdir / missing[0]}, which is not there. Run the "
                "stages before it first, or --mode=all."
            )
        fingerprint = self.fingerprint(name)
        if name != "report" and self.workdir.done(name, fingerprint, stage.outputs):
            say(f"{name}: up to date")
            return
        if name != "report" and self.workdir.take_over(name, fingerprint, stage.outputs):
            say(f"{name}: taken over from another run that made it from the same")
            return
        stored = self.workdir.stored(name)
        if stored is not None and stored != fingerprint:
            why = self.workdir.difference(name, fingerprint)
            if stage.continues and any((self.workdir / file).exists() for file in stage.outputs):
                raise UserError(
                    f"{self.workdir.path} holds the {name} stage of another configuration: {why}. "
                    "Nothing was changed. Use the configuration that it was made with, another "
                    f"--workdir, or delete {self.workdir / stage.outputs[0]} to train anew."
                )
            say(f"{name}: made again: {why}")
        if stored != fingerprint:
            for part in stage.partial:
                shutil.rmtree(self.workdir / part, ignore_errors=True)
        began = time.monotonic()
        self.workdir.mark(name, fingerprint, complete=False)
        message = stage.run(self)
        self.workdir.mark(name, fingerprint)
        say(f"{name}: {message} → {', '.join(stage.outputs)} ({time.monotonic() - began:.1f} s)")

    def fingerprint(self, name: str) -> dict[str, Any]:
        """What a stage's output depends on."""
        stage, flat = STAGES[name], configuration.flatten(self.config)
        settings = {
            key: value
            for key, value in flat.items()
            if any(key == part or key.startswith(f"{part}.") for part in stage.keys)
        }
        outside = []
        if name == "rationales":
            data = self.config.data
            read = sources.input_files(data.name, data.path, data.splits)
            outside = [data.rationales, *map(str, read)]
        if "student" in stage.keys:
            outside += [self.config.student.model, self.config.student.tokenizer]
        if name == "weigh":
            outside.append(self.config.weighting.answerer)
        if name == "eval":
            outside += self.config.eval.ood_paths
        if name == "schedule":
            outside.append(self.config.schedule.vectors)
        if name in ("schedule", "distill"):
            outside += curricula.source_files(self.config.schedule.curriculum)
        if name in ("eval", "export"):
            found = (self.workdir / "checkpoints/student").glob("[0-9]*")
            settings["checkpoints"] = sorted(int(path.name) for path in found)
            settings["training"] = self.workdir.stored("distill")
        return self.workdir.fingerprint(settings, self.inputs(name), outside)

    def inputs(self, name: str) -> list[str]:
        """Files of the work directory that a stage reads."""
        made = {
            file for stage in STAGES.values() if stage.needed(self.config) for file in stage.outputs
        }
        stage = STAGES[name]
        return [*stage.inputs, *(file for file in stage.optional if file in made)]

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        return sharding.make_mesh(**self.config.mesh)

    @functools.cached_property
    def student(self) -> Student:
        """Model and tokenizer, without parameters."""
        student = self.load_student(self.config.student.model)
        if self.config.distill.pack and not student.decoder_only:
            raise UserError(
                f"distill.pack={self.config.distill.pack}: the student {student.model!r} has an "
                "encoder, and only decoder-only students' rows are packed; expected 0."
            )
        if student.decoder_only and self.config.distill.input_steps == "encoder":
            raise UserError(
                f"distill.input_steps='encoder': the student {student.model!r} has no encoder; "
                "expected decoder."
            )
        return student

    def load_student(self, model: str, *, adapters: bool = True) -> Student:
        """A model under the student's settings, perhaps without its adapters."""
        config = self.config.student
        lora = None
        if config.lora.rank and adapters:
            lora = LoRAConfig(**(config.lora.to_dict() | {"targets": tuple(config.lora.targets)}))
        return load_student(
            model,
            init=config.init,
            tokenizer=config.tokenizer,
            dtype=config.dtype,
            scan_layers=config.scan_layers,
            remat=config.remat,
            attention=config.attention,
            lora=lora,
            seed=self.config.seed,
        )

    def records(self, split: str) -> list[Record]:
        """A split, as the first stage wrote it."""
        return records_io.read_records(self.workdir / f"records/{split}.jsonl")

    @functools.cached_property
    def train_set(self) -> tokens.TokenizedSet:
        """The training examples as tokens."""
        return self.tokenize(self.records("train"))[0]

    @functools.cached_property
    def prompt(self) -> str:
        """The template of prompts, in the student's form."""
        return tokens.resolve_prompt(
            self.student.tokenizer,
            self.config.student.prompt,
            decoder_only=self.student.decoder_only,
            chat=self.config.student.chat,
        )

    def tokenize(
        self, examples: Sequence[Record]
    ) -> tuple[tokens.TokenizedSet, list[records_io.Rejected]]:
        """Examples under the student's templates and limits, and those turned down."""
        config = self.config.student
        return tokens.tokenize(
            examples,
            self.student.tokenizer,
            prompt=self.prompt,
            answer_template=config.answer_template,
            max_question_tokens=config.max_question_tokens,
            max_target_tokens=config.max_target_tokens,
            decoder_only=self.student.decoder_only,
        )

    def batch_source(self, **options: Any) -> BatchSource:
        """Batches of the training examples."""
        return BatchSource(
            self.train_set,
            self.config.distill.batch_size,
            self.config.seed,
            pad_id=self.student.tokenizer.pad_token_id,
            decoder_start_id=self.student.decoder_start(self.prompt),
            **options,
        )

    def weights(self) -> Ragged | None:
        """w_j of the training rationales; None where all are 1."""
        if self.config.weighting.weights == "uniform":
            return None
        arrays = files.read_npz(self.workdir / "token_weights.npz")
        return Ragged(arrays["values"], arrays["offsets"])

    def evaluator(self, records: Sequence[Record], **options: Any) -> evaluate.Evaluator:
        """For the questions of some records, greedy by default."""
        config = self.config
        return evaluate.Evaluator(
            self.student,
            records,
            self.mesh,
            prompt=self.prompt,
            answer_kind=sources.answer_kind(config.data.name, config.data.answer_kind),
            batch_size=config.eval.batch_size,
            max_new_tokens=config.eval.max_new_tokens or config.student.max_target_tokens,
            **options,
        )


def _rationales(run: Run) -> str:
    config, rejected, too_long, usable = run.config, [], [], {}
    if note := sources.note(config.data.name, config.data.splits):
        say(f"rationales: {note}")
    for split in SPLITS:
        # The built-in task is one data set, like any other: the run's seed does not change it.
        found, bad = sources.load_records(
            config.data.name,
            split,
            path=config.data.path,
            cache_dir=config.data.cache,
            splits=config.data.splits,
            rationales=config.data.rationales,
            columns=config.data.columns.to_dict(),
            kind=config.data.answer_kind,
            separator=config.data.step_separator,
            limit=config.data[f"{split}_examples"],
            max_bad_share=config.data.max_bad_share,
        )
        if split == "train":
            tokenized, too_long = run.tokenize(found)
            found, bad = list(tokenized.records), [*bad, *too_long]
        if not found:
            raise UserError(
                f"The {split} split of {config.data.name} has no usable record: "
                + "; ".join(f"{r.id}: {r.reason}" for r in bad[:3])
                + ". Mend the data, or raise student.max_question_tokens and max_target_tokens."
            )
        rejected += [{"id": r.id, "split": split, "reason": r.reason} for r in bad]
        usable[split] = found
        records_io.write_records(run.workdir / f"records/{split}.jsonl", found)
    files.write_jsonl(run.workdir / "records/rejected.jsonl", rejected)
    # `load_records` has judged the data set's own faults; these are the student's limits.
    total = len(usable["train"]) + len(too_long)
    records_io.check_bad_share(too_long, total, config.data.max_bad_share)
    found = [f"{len(records)} {split}" for split, records in usable.items()]
    if shared := overlap.describe(usable):
        say(f"rationales: the splits overlap, so that accuracies may be too high:\n{shared}")
    else:
        found.append("no question in two splits")
    return ", ".join([*found, f"{len(rejected)} rejected"])


def _weigh(run: Run) -> str:
    config = run.config
    # All of the answerer's weights are fit.
    answerer = config.weighting.answerer
    if answerer or config.student.lora.rank:
        model = run.load_student(answerer or config.student.model, adapters=False)
    else:
        model = run.student
    held_out, _ = run.tokenize(run.records("validation"))
    if not held_out.records:
        raise UserError(
            "Token weights are judged on the validation split, whose records have no rationales "
            "that fit. Give some, by data.rationales or in the data, or set "
            "weighting.weights=uniform."
        )
    result = weigh.weigh(
        run.train_set,
        held_out,
        run.student,
        model,
        run.mesh,
        config.weighting,
        fresh=_fresh(run) if config.weighting.fit == "fresh" else None,
        seed=config.seed,
        workdir=run.workdir.path,
    )
    spans = run.train_set.rationale_char_spans
    files.write_npz(run.workdir / "token_spans.npz", values=spans.values, offsets=spans.offsets)
    files.write_json(run.workdir / "weighting.json", result.summary)
    files.write_npz(
        run.workdir / "token_weights.npz",
        values=result.weights.values,
        offsets=result.weights.offsets,
    )
    gap = result.summary["gap"]
    message = (
        f"{len(result.weights.values)} token weights, mean {result.summary['mean_weight']:.2f}, "
        f"held-out gap {gap['all_masked'] - gap['none_masked']:.2f} nats"
    )
    if result.summary["auc"] is not None:
        message += f", AUC of keypoints over filler {result.summary['auc']:.3f} (held out)"
    return message


def _fresh(run: Run) -> tokens.TokenizedSet:
    from kpod_jax.data import arithmetic

    # A seed apart from that of a shipped answerer's training.
    count = run.config.weighting.fresh_examples
    return run.tokenize(arithmetic.generate("fresh", count, run.config.seed + 1))[0]


def _step_difficulty(run: Run, params: Any, what: str) -> Ragged:
    """d_k of every step of the training rationales under some parameters (Eq. 8)."""
    config, train = run.config, run.train_set
    with Progress(len(train), what, unit="examples") as progress:
        nll = difficulty.rationale_losses(
            run.student.module,
            params,
            run.batch_source(),
            train,
            run.mesh,
            batch_size=config.difficulty.batch_size,
            progress=progress.update,
        )
    weights = None if config.difficulty.weights == "uniform" else run.weights()
    return difficulty.step_difficulty(nll, weights, train)


def _score(run: Run) -> str:
    train = run.train_set
    result = _step_difficulty(run, run.student.load(run.mesh), "Scoring")
    files.write_npz(
        run.workdir / "step_difficulty.npz", values=result.values, offsets=result.offsets
    )
    message = f"{len(result.values)} step difficulties, mean {result.values.mean():.2f} nats"
    if all(record.hardness is not None for record in train.records):
        from scipy import stats

        known = np.concatenate([record.hardness or () for record in train.records])
        message += (
            f", rank correlation with the known ones {stats.spearmanr(result.values, known)[0]:.2f}"
        )
    return message


def _schedule(run: Run) -> str:
    config, train = run.config, run.train_set
    questions, path = [record.question for record in train.records], config.schedule.vectors
    if path.endswith(".npy"):
        vectors = clusters.read_question_vectors(path, len(questions))
    elif path:
        vectors = clusters.question_vectors(questions, path)
    else:
        plain = tokens.tokenize_questions(train.records, run.student.tokenizer, prompt="{question}")
        vectors = clusters.mean_token_vectors(
            run.student.embeddings(run.student.load(run.mesh)), plain
        )
    found = clusters.cluster_questions(vectors, config.schedule.clusters, config.seed)
    if found.warning:
        logging.warning("%s", found.warning)
    stages, difficulty = _length(run).stages, _difficulty(run)
    curriculum = _curriculum(run, found.labels)
    plan = curricula.plan(curriculum, stages, difficulty, config.schedule.curriculum)
    arrays = {"start_steps": plan.start_steps, "remaining": plan.remaining}
    if plan.target is not None:
        arrays["target"] = plan.target
    files.write_npz(run.workdir / "schedule.npz", clusters=found.labels, **arrays)
    means = plan.start_steps.mean(axis=1)
    silhouette = "" if math.isnan(found.silhouette) else f", silhouette {found.silhouette:.2f}"
    return (
        f"{stages} stages, mean c_i {means[0]:.2f} "
        + ("at first" if curriculum.needs_feedback else f"falling to {means[-1]:.2f}")
        + f", {found.labels.max() + 1} clusters{silhouette}"
    )


def _curriculum(run: Run, labels: np.ndarray) -> Curriculum:
    options = run.config.schedule
    stages = _length(run).stages
    setting = Setting(
        difficulty=_difficulty(run),
        clusters=labels,
        stages=stages,
        ramp_stages=min(stages - 1, round(options.ramp_share * stages)),
        options=options.to_dict(),
    )
    return curricula.make(options.curriculum, setting)


def _difficulty(run: Run) -> Ragged:
    arrays = files.read_npz(run.workdir / "step_difficulty.npz")
    return Ragged(arrays["values"], arrays["offsets"])


def _length(run: Run) -> distill.Plan:
    """The training's length; one stage at least, for a schedule to speak of."""
    config = run.config.distill
    source = run.batch_source(buckets=config.buckets, pack=config.pack)
    length = distill.plan(config, source.steps_per_epoch, run.config.schedule.stage_steps)
    return length if length.stages else dataclasses.replace(length, total_steps=1)


def _start_steps(run: Run) -> Callable[[int], np.ndarray]:
    """c_i by stage."""
    num_steps, name = run.train_set.num_steps, run.config.schedule.curriculum
    if name == "full":
        return curricula.FullRationale(num_steps).start_steps
    stored = files.read_npz(run.workdir / "schedule.npz")
    curriculum = _curriculum(run, stored["clusters"])
    if curriculum.needs_feedback:
        return Following(curriculum, num_steps, run.workdir / "start_steps.npz", name)
    table = stored["start_steps"]
    return lambda stage: table[min(stage, len(table) - 1)]


def _distill(run: Run) -> str:
    config, student = run.config, run.student
    start_steps = _start_steps(run)
    length = _length(run)
    source = run.batch_source(
        weights=run.weights(),
        start_steps=start_steps,
        stage_of_step=lambda step: step // length.steps_per_stage,
        buckets=config.distill.buckets,
        input_steps=config.distill.input_steps,
        host=(jax.process_index(), jax.process_count()),
        pack=config.distill.pack,
    )
    # Checkpoints are chosen by it; the test split is not read before the evaluation.
    evaluator = run.evaluator(run.records("validation"))

    def begin_stage(stage: int, params: Any) -> None:
        assert isinstance(start_steps, Following)
        losses = _step_difficulty(run, params, f"Losses before stage {stage}")
        start_steps.begin(stage, Feedback(losses))

    distill.train(
        student.module,
        *student.split(student.load(run.mesh)),
        source,
        start_steps,
        config.distill,
        length=length,
        seed=config.seed,
        mesh=run.mesh,
        workdir=run.workdir.path,
        validate=evaluator.accuracy,
        begin_stage=begin_stage if isinstance(start_steps, Following) else None,
    )
    return (
        f"{length.total_steps} steps in {length.stages} stages, "
        f"batches of shapes {', '.join(f'{s}+{u}' for s, u in source.shapes)}, "
        f"{source.padding_share:.0%} padding"
    )


def _trained_params(run: Run) -> tuple[Any, int]:
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


def _eval(run: Run) -> str:
    config = run.config
    params, step = _trained_params(run)
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
        found[name] = evaluate.summary(rows)
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
            "ood": {name: found[f"{name}_test"] for name in config.eval.ood},
        },
    )
    shown = [
        f"{name} accuracy {one['accuracy']:.1%} ({one['correct']} of {one['total']}; 95 % interval "
        f"{one['interval'][0]:.1%} to {one['interval'][1]:.1%})"
        for name, one in found.items()
    ]
    return f"{'; '.join(shown)}, step {step}"


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
    kind = config.data.answer_kind
    for record in found:
        if answers.extract_answer(record.answer, kind) is None:
            raise UserError(
                f"eval.ood={name}: record {record.id} has the answer {record.answer!r:.80}, which "
                f"is none of data.answer_kind={kind!r}. Expected data sets of the same kind of "
                "answer as the student's own."
            )
    return found, rejected


def _report(run: Run) -> str:
    path = report.write(run.workdir.path)
    return f"{path.stat().st_size // 1000} kB"


def _export(run: Run) -> str:
    config, student = run.config, run.student
    params, step = _trained_params(run)
    lora, tokenizer = student.module.lora, student.tokenizer
    directory = run.workdir / "export"
    shutil.rmtree(directory, ignore_errors=True)
    is_adapter = lora is not None and config.export.lora == "adapter"
    if is_adapter:
        assert lora is not None
        base = config.student.model
        adapters.save_adapter(
            directory, student.config, params, lora, base_model=base, tokenizer=tokenizer
        )
    else:
        dtype = config.export.dtype
        hub.save_pretrained(directory, student.config, params, tokenizer, dtype, lora=lora)
        generation = {
            "do_sample": False,
            "max_new_tokens": config.eval.max_new_tokens or config.student.max_target_tokens,
        }
        ids = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "bos_token_id")
        values = student.config.to_json()
        generation |= {name: values[name] for name in ids if name in values}
        files.write_json(directory / "generation_config.json", generation)
    results = run.workdir / "results.json"
    card = model_card.model_card(
        config,
        prompt=run.prompt,
        step=step,
        decoder_only=student.decoder_only,
        is_adapter=is_adapter,
        results=files.read_json(results) if results.exists() else None,
    )
    files.write_text(directory / "README.md", card)
    what = "its adapter, for PEFT" if is_adapter else "in Hugging Face format"
    return f"the student of step {step}, {what}"


_RECORDS = ("records/train.jsonl",)

STAGES: dict[str, Stage] = {
    "rationales": Stage(
        _rationales,
        ("data", "student"),
        (),
        (*(f"records/{split}.jsonl" for split in SPLITS), "records/rejected.jsonl"),
    ),
    "weigh": Stage(
        _weigh,
        ("student", "weighting", "seed"),
        (*_RECORDS, "records/validation.jsonl"),
        ("token_weights.npz", "token_spans.npz", "weighting.json"),
        needed=lambda config: config.weighting.weights == "learned",
        partial=(weigh.CHECKPOINTS,),
    ),
    "score": Stage(
        _score,
        ("student", "difficulty", "weighting.weights", "seed"),
        _RECORDS,
        ("step_difficulty.npz",),
        ("token_weights.npz",),
        needed=lambda config: config.schedule.curriculum != "full",
    ),
    "schedule": Stage(
        _schedule,
        (
            "student",
            "schedule",
            "distill.epochs",
            "distill.batch_size",
            "distill.max_steps",
            "distill.buckets",
            "distill.pack",
            "seed",
        ),
        (*_RECORDS, "step_difficulty.npz"),
        ("schedule.npz",),
        needed=lambda config: config.schedule.curriculum != "full",
    ),
    "distill": Stage(
        _distill,
        ("student", "distill", "weighting.weights", "difficulty", "schedule", "seed"),
        (*_RECORDS, "records/validation.jsonl"),
        ("checkpoints/student",),
        ("token_weights.npz", "step_difficulty.npz", "schedule.npz"),
        needed=lambda config: config.distill.epochs > 0,
        continues=True,
    ),
    "eval": Stage(
        _eval,
        ("student", "eval", "method", "data.answer_kind", "seed"),
        ("records/test.jsonl",),
        ("results.json",),
    ),
    "report": Stage(_report, (), (), ("report.html",)),
    "export": Stage(_export, ("student", "eval.checkpoint", "export"), (), ("export",)),
}


def _write_config(run: Run) -> None:
    """Writes `config.json`: the resolved configuration, versions, revision and devices."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    value = {
        "config": run.config.to_dict(),
        "kpod_jax": kpod_jax.__version__,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "revision": _revision(),
        "devices": [str(device) for device in jax.devices()],
    }
    files.write_json(run.workdir / "config.json", value)


def _revision() -> str | None:
    """The git revision of the package's own directory, if it is in a repository."""
    root = pathlib.Path(kpod_jax.__file__).parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
