"""Token weights: fits the answerer, checks that it reads, learns masks and weighs the tokens.

With `fit="other_fold"` the training set is split in half: each half's weights are learned with an
answerer that was fit on the other half, so no answerer has seen the answers that it must predict.
With `fit="fresh"` it is fit on new problems, and one pass suffices. `fit="same"` is the paper's
method, which works as long as the answerer cannot memorize.
"""

import contextlib
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from sklearn.metrics import roc_auc_score

from kpod_jax.config import paper
from kpod_jax.config.defaults import Config
from kpod_jax.data.ground_truth import keypoint_tokens
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.training.metrics import MetricsWriter
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.progress import Progress
from kpod_jax.weighting import learn, reference, weightings
from kpod_jax.weighting import summary as summary_file
from kpod_jax.weighting.answerer import Params
from kpod_jax.weighting.answerer_batch import AnswererBatch
from kpod_jax.weighting.answerer_model import (
    load_answerer,
    make_answerer,
    read_records,
    scatter,
)
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.objective import MaskLearner, constant_objectives, objective_on

STAGE = "weigh"
CHECKPOINTS = "checkpoints/weigher"
_COLLAPSED = 0.02


@dataclasses.dataclass(frozen=True)
class TokenWeights(Ragged):
    """w_j of every training rationale token, N slices of float32, and how they were learned.

    Attributes:
      summary: plain JSON: "objective" on held-out examples, beside that of keeping every token and
        none, "keep_all" and "keep_none", "gap", "mean_weight", "auc"; per fold in "folds".
      held_out: weights of the held-out examples used for evaluation, averaged over folds.
      spans: the characters of each token in its rationale.
    """

    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: Ragged | None = None
    spans: Ragged | None = None

    OUTPUTS: ClassVar[tuple[str, ...]] = ("token_weights.npz", "token_spans.npz", "weighting.json")

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` under a work directory."""
        assert self.spans is not None
        spans = {"values": self.spans.values, "offsets": self.spans.offsets}
        files.write_npz(root / "token_spans.npz", **spans)
        files.write_json(root / "weighting.json", self.summary)
        files.write_npz(root / "token_weights.npz", values=self.values, offsets=self.offsets)

    @classmethod
    def load(cls, root: pathlib.Path) -> "TokenWeights":
        """Loads the weights and the summary that `save` wrote."""
        path = root / "token_weights.npz"
        arrays = files.read_npz(path, STAGE, ("values", "offsets"))
        return cls(arrays["values"], arrays["offsets"], summary_file.read(root))

    def __str__(self) -> str:
        """Returns a one-line summary."""
        summary = self.summary
        kind = f" ({summary['weights']})" if "weights" in summary else ""
        text = f"{len(self.values)} token weights{kind}, mean {summary['mean_weight']:.2f}"
        if "gap" in summary:
            gap = summary["gap"]["all_masked"] - summary["gap"]["none_masked"]
            text += (
                f"; held out: gap {gap:.2f} nats, objective {summary['objective']:.2f} "
                f"(all kept {summary['keep_all']:.2f}, none {summary['keep_none']:.2f})"
            )
        if summary["auc"] is not None:
            text += f", AUC of keypoints over filler {summary['auc']:.3f}"
        return text


def learn_token_weights(
    config: Config,
    student: Student,
    data: Data,
    mesh: Mesh | None = None,
    *,
    answerer: Student | None = None,
    fresh: Sequence[Record] = (),
    workdir: pathlib.Path | None = None,
) -> TokenWeights:
    """Learns how much each token of the training rationales matters (Eq. 2-7).

    Args:
      config: `weighting` of a configuration. If `weights` is not "learned", they are computed by
        that weighting or read from that file.
      student: the model whose tokens are weighted, and whose input embeddings the generator reads.
      data: data set, whose validation split is used to evaluate the weights.
      mesh: mesh of the devices; None: all of them.
      answerer: θw before it is fit; None: `config.answerer`, or the student without adapters.
      fresh: new problems to fit the answerer on, for `fit="fresh"`; not needed if the answerer is
        not fit.
      workdir: for metrics and checkpoints, from which an interrupted run resumes; None: none are
        kept.

    Raises:
      UserError: there are no held-out rationales; see also `weigh` and `read_token_weights`.
    """
    config, mesh = paper.mask_learning(config), mesh or sharding.make_mesh()
    if config.weights != "learned":
        return _other_weights(config, student, data.train, mesh, workdir)
    held_out, _ = student.tokenize(data.records("validation"))
    if not held_out.records:
        raise UserError(
            "Token weights are evaluated on the validation split, whose records have no rationales "
            "that fit. Provide some in the data or through data.rationales, or set "
            "weighting.weights=uniform."
        )
    if config.fit == "fresh" and not fresh and config.fit_unmasked_steps + config.fit_masked_steps:
        raise UserError(
            "weighting.fit='fresh' fits the answerer on new problems, but none were given. "
            "Pass some as `fresh`, or use fit='other_fold'."
        )
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = weigh(
            config,
            student,
            data.train,
            held_out,
            mesh,
            answerer=answerer or load_answerer(student, config),
            fresh=student.tokenize(fresh)[0] if config.fit == "fresh" and fresh else None,
            workdir=workdir,
        )
    return dataclasses.replace(weights, spans=data.train.rationale_char_spans)


def _other_weights(
    config: Config, student: Student, train: TokenizedSet, mesh: Mesh, workdir: pathlib.Path | None
) -> TokenWeights:
    """Reads weights from a file, or computes them by a named or custom weighting."""
    name = config.weights
    if name.endswith(".npz"):
        weights = read_token_weights(name, train.rationale_lengths)
    else:
        with tempfile.TemporaryDirectory() as directory:
            folder = pathlib.Path(directory) if workdir is None else workdir / CHECKPOINTS
            setting = weightings.Setting(train, student, config, mesh, folder)
            weights = weightings.compute(name, setting)
    auc = keypoint_auc(weights.values, train, len(train))
    summary = {"weights": name, "mean_weight": float(weights.values.mean()), "auc": auc}
    spans = train.rationale_char_spans
    return TokenWeights(weights.values, weights.offsets, summary, spans=spans)


def read_token_weights(path: str, lengths_N: np.ndarray) -> Ragged:
    """Reads custom token weights.

    Args:
      path: .npz file like token_weights.npz: "values" [M], the weights of the rationale tokens of
        all training records in order, and "offsets" [N + 1], where each record's weights begin.
      lengths_N: rationale tokens of each record.

    Raises:
      UserError: the file cannot be read, is of other records, or a weight is not in [0, 1].
    """
    arrays = files.read_npz(path)
    if not {"values", "offsets"} <= arrays.keys():
        raise UserError(
            f"weighting.weights={path} holds {', '.join(arrays) or 'nothing'}; expected the arrays "
            '"values" and "offsets", as in token_weights.npz of a run.'
        )
    weights = Ragged(arrays["values"], arrays["offsets"])
    return weightings.check(weights, lengths_N, path)


def weigh(
    config: Config,
    student: Student,
    train: TokenizedSet,
    held_out: TokenizedSet,
    mesh: Mesh,
    *,
    answerer: Student,
    fresh: TokenizedSet | None,
    workdir: pathlib.Path,
) -> TokenWeights:
    """Fits the answerer and learns the weights, fold by fold.

    Args:
      config: `weighting` of the configuration.
      student: the model whose input embeddings the generator reads; its seed is used throughout.
      train: examples whose tokens are weighted.
      held_out: examples of another split, on which gap and objectives are measured.
      mesh: mesh of the devices.
      answerer: θw before it is fit. If its tokenizer is not the student's, records that it cannot
        read are not weighed: their tokens get the mean weight.
      fresh: new problems to fit the answerer on, for `fit="fresh"`.
      workdir: for metrics and checkpoints, from which an interrupted run resumes.

    Raises:
      UserError: the answerer cannot read the records, there is no gap to learn masks from, the
        weights collapsed, or keeping every token, or none, has a lower objective.
    """
    train_rows, all_train = read_records(train, student, answerer), train
    train, held_out_rows = train_rows.tokenized, read_records(held_out, student, answerer)
    held_out = held_out_rows.tokenized
    embeddings, answerer_params = student.embeddings(student.load(mesh)), answerer.load(mesh)
    embeddings = jax.device_put(embeddings, sharding.replicated(mesh))
    learner, seed = make_learner(answerer, embeddings, config, mesh), student.seed
    examples = train_rows.batch
    held_out_batch = jax.tree.map(lambda a: a[: config.eval_examples], held_out_rows.batch)
    fresh_batch = None if fresh is None else read_records(fresh, student, answerer).batch
    values: list[np.ndarray] = [np.zeros(0, np.float32)] * len(train)
    folds, parts, held_out_weights = _folds(len(train), config.fit, seed), [], []
    steps = config.fit_unmasked_steps + config.fit_masked_steps + config.steps
    passes = [
        _Fold(learner, config, seed + n, steps * n, workdir / f"{CHECKPOINTS}/fold_{n}")
        for n in range(len(folds))
    ]
    reached = max(fold.resume_step() for fold in passes)
    with (
        sharding.use(mesh),
        MetricsWriter(workdir, STAGE, restored_step=reached or None) as writer,
        Progress(steps * len(folds), "Weighing", initial=reached, compiles=True) as progress,
    ):
        for fold, (fit_on, weigh_on) in zip(passes, folds, strict=True):
            fit = _rows(examples, fit_on) if fresh_batch is None else fresh_batch
            params, part = fold.learn(
                answerer_params, fit, _rows(examples, weigh_on), held_out_batch, writer, progress
            )
            weights = learn.compute_weights(
                learner, params, _rows(examples, weigh_on), config.batch_size
            )
            for row, i in enumerate(weigh_on):
                values[i] = weights[row]
            part["mean_weight"] = float(weights.values.mean())
            _check_health(part, config)
            parts.append(part)
            held_out_weights.append(
                learn.compute_weights(learner, params, held_out_batch, config.batch_size)
            )
    weights = scatter(Ragged.from_list(values, np.float32), train, all_train)
    summary: dict[str, Any] = {
        key: float(np.mean([part[key] for part in parts])) for key in parts[0]
    }
    summary["mean_weight"] = float(weights.values.mean())
    held_out_M = np.mean([weights.values for weights in held_out_weights], axis=0)
    held_out_weights = Ragged(held_out_M, held_out_weights[0].offsets)
    summary["auc"] = keypoint_auc(held_out_M, held_out, len(held_out_batch.question))
    summary["folds"] = parts
    summary["gap"] = {key: summary.pop(key) for key in ("none_masked", "all_masked")}
    return TokenWeights(weights.values, weights.offsets, summary, held_out_weights)


def keypoint_auc(weights_M: np.ndarray, tokenized: TokenizedSet, count: int) -> float | None:
    """Returns the probability that a keypoint's weight exceeds a filler token's; None if unknown.

    Args:
      weights_M: w_j of the rationale tokens of the first `count` examples.
      tokenized: the examples.
      count: number of examples to use.
    """
    truth = keypoint_tokens(tokenized.records[:count], tokenized.rationale_char_spans)
    if truth is None or truth.all() or not truth.any():
        return None
    return float(roc_auc_score(truth, weights_M))


@dataclasses.dataclass(frozen=True)
class _Fold:
    """One pass: an answerer fit on some examples, and a generator trained on others.

    Attributes:
      learner: the mask learner.
      config: `weighting` of the configuration.
      seed: seed of this pass.
      first_step: step of the stage at which this pass begins.
      directory: directory for the checkpoints of both.
    """

    learner: MaskLearner
    config: Config
    seed: int
    first_step: int
    directory: pathlib.Path

    def resume_step(self) -> int:
        """Returns the stage's step that the pass resumes from; 0 if it has not begun."""
        offsets = {
            "answerer": 0,
            "generator": self.config.fit_unmasked_steps + self.config.fit_masked_steps,
        }
        steps = [
            self.first_step + offsets[part] + int(path.name)
            for part in offsets
            for path in (self.directory / part).glob("[0-9]*")
            if path.name.isdecimal()
        ]
        return max(steps, default=0)

    def learn(
        self,
        answerer_params: Params,
        fit: AnswererBatch,
        weigh: AnswererBatch,
        held_out: AnswererBatch,
        writer: MetricsWriter,
        progress: Progress,
    ) -> tuple[Params, dict[str, float]]:
        """Fits and trains; returns the generator's parameters, and held-out gap and objectives."""
        config, learner = self.config, self.learner
        done = self.resume_step()

        def log(what: str, step: int, values: dict[str, float]) -> None:
            nonlocal done
            offset = (
                config.fit_unmasked_steps + config.fit_masked_steps if what == "generator" else 0
            )
            step += self.first_step + offset
            progress.update(max(0, step - max(done, self.first_step)), **values)
            done = step
            writer.write(step, {"part": what, **values})
            if not all(map(math.isfinite, values.values())):
                rate = "fit_learning_rate" if what == "answerer" else "learning_rate"
                shown = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in values.items())
                raise UserError(
                    f"Token weighting diverged: step {step} of the {what} gave {shown}, at "
                    f"weighting.{rate}={config[rate]:g}. Nothing was saved since it was finite. "
                    f"Lower weighting.{rate}, or weighting.clip_norm, or set student.dtype=float32."
                )

        gap_of = learn.gap_on(learner, held_out, config.batch_size)
        with Checkpoints(self.directory / "answerer") as checkpoints:
            answerer_params = learn.fit_answerer(
                learner,
                answerer_params,
                fit,
                config,
                recorder=learn.Recorder(log, checkpoints),
                seed=self.seed,
                gap=lambda params: gap_of(params)["gap"],
            )
        gap = gap_of(answerer_params)
        by_prefix = ", ".join(
            f"{a - n:.1f}"
            for a, n in zip(
                gap["by_prefix"]["all_masked"], gap["by_prefix"]["none_masked"], strict=True
            )
        )
        writer.write(
            self.first_step + config.fit_unmasked_steps + config.fit_masked_steps,
            {"part": "gap", "gap_by_tenths": by_prefix}
            | {key: gap[key] for key in ("none_masked", "all_masked", "gap")},
        )
        if not gap["gap"] >= config.min_gap:  # Or NaN.
            raise UserError(_no_gap(gap, config))
        evaluate = objective_on(learner, held_out, config.batch_size, self.seed)
        with Checkpoints(self.directory / "generator") as checkpoints:
            params, answerer_params = learn.learn_masks(
                learner,
                answerer_params,
                weigh,
                config,
                joint_examples=fit,
                judge=evaluate,
                recorder=learn.Recorder(log, checkpoints),
                seed=self.seed,
            )
        keep_all, keep_none = constant_objectives(
            learner, answerer_params, held_out, config.batch_size, self.seed
        )
        return params, {
            "none_masked": gap["none_masked"],
            "all_masked": gap["all_masked"],
            "objective": evaluate(params, answerer_params),
            "keep_all": keep_all,
            "keep_none": keep_none,
        }


def _folds(count: int, fit: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns pairs of (examples that the answerer is fit on, examples to weigh)."""
    everything = np.arange(count)
    if fit != "other_fold":
        return [(everything, everything)]
    return reference.halves(count, seed)


def _rows(batch: AnswererBatch, index: np.ndarray) -> AnswererBatch:
    return jax.tree.map(lambda array: array[index], batch)


def make_learner(
    answerer: Student, embeddings: jax.Array, config: Config, mesh: Mesh | None = None
) -> MaskLearner:
    """Returns the mask learner that `weighting` of the configuration describes."""
    return MaskLearner(
        make_answerer(answerer, config.encoding),
        Generator(config.hidden_size, config.num_heads, config.initial_weight),
        embeddings,
        config.alpha,
        config.prefixes,
        config.prefix_samples,
        config.estimator,
        config.mask_samples,
        config.exploration,
        config.fit_unmasked_fraction,
        mesh,
    )


def _no_gap(gap: dict[str, Any], config: Config) -> str:
    if not math.isfinite(gap["gap"]):
        return (
            "Token weights cannot be learned: on held-out examples the answer's loss is "
            f"{gap['none_masked']:g} nats with nothing masked and {gap['all_masked']:g} with "
            "everything masked. Check the weights of the answerer, lower "
            "weighting.fit_learning_rate or set student.dtype=float32."
        )
    advice = (
        "The answerer does not read rationales: raise weighting.fit_unmasked_steps or "
        "weighting.fit_masked_steps, or start from a stronger weighting.answerer."
        if gap["none_masked"] > 1.0
        else "The answerer answers from the question alone; it may have memorized the answers: use "
        "weighting.fit=other_fold (or fresh), fewer weighting.fit_masked_steps, or more examples."
    )
    return (
        "Token weights cannot be learned: on held-out examples the answer's loss is "
        f"{gap['none_masked']:.2f} nats with nothing masked and {gap['all_masked']:.2f} with "
        f"everything masked. The gap of {gap['gap']:.2f} is below weighting.min_gap="
        f"{config.min_gap}, so keeping nothing would minimize Eq. 7. {advice} Or train without "
        "token weights: --config.weighting.weights=uniform."
    )


def _check_health(part: dict[str, float], config: Config) -> None:
    """Rejects weights that carry no information.

    Raises:
      UserError: they are not finite, nearly all are 0 or 1, or keeping everything, or nothing, is
        a better mask.
    """
    mean, objective = part["mean_weight"], part["objective"]
    if not all(map(math.isfinite, part.values())):
        shown = ", ".join(f"{key} {value:g}" for key, value in part.items())
        raise UserError(
            f"The token weights are not finite: {shown}. Lower weighting.learning_rate or "
            "weighting.fit_learning_rate, or train without token weights: "
            "--config.weighting.weights=uniform."
        )
    if not _COLLAPSED <= mean <= 1 - _COLLAPSED:
        advice = (
            "Lower weighting.alpha or weighting.learning_rate, or raise weighting.alpha_warmup."
            if mean < _COLLAPSED
            else "Raise weighting.alpha, weighting.fit_masked_steps or weighting.steps."
        )
        raise UserError(
            f"The token weights have collapsed: their mean is {mean:.3f}. {advice} Or train "
            "without token weights: --config.weighting.weights=uniform."
        )
    if objective <= min(part["keep_all"], part["keep_none"]):
        return
    failure = (
        "The token weights fail their own objective: on held-out examples Eq. 7 is "
        f"{objective:.3f} nats with them, {part['keep_all']:.3f} with every token kept and "
        f"{part['keep_none']:.3f} with none."
    )
    if config.allow_failed:
        logging.warning("weigh: %s Continuing, as weighting.allow_failed is set.", failure)
        return
    raise UserError(
        f"{failure} Try more weighting.steps or weighting.mask_samples, another weighting.alpha, "
        "or an answerer that reads better (weighting.fit_masked_steps, weighting.answerer). Use "
        "them anyway with --config.weighting.allow_failed=True, or train without token weights "
        "(--config.weighting.weights=uniform)."
    )
