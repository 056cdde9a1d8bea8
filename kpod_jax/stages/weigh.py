"""Token weights of the training rationales (Eq. 2-7)."""

from typing import Any

import numpy as np

from kpod_jax.data import tokens
from kpod_jax.data.records import Ragged
from kpod_jax.models.student import Student
from kpod_jax.run import Run
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import weigh


def run_stage(run: Run) -> str:
    """Learns masks on the records; writes token_weights.npz, token_spans.npz and weighting.json.

    Weights of one's own (`weighting.weights=FILE.npz`) are checked and copied instead.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: no held-out rationales, or as `weigh.weigh` and `given_weights` do.
    """
    config = run.config
    if config.weighting.weights != "learned":
        train = run.train_set
        weights = given_weights(config.weighting.weights, train.rationale_lengths)
        auc = weigh.keypoint_auc(weights.values, train, len(train))
        _write(run, weights, {"mean_weight": float(weights.values.mean()), "auc": auc})
        return f"{len(weights.values)} token weights of {config.weighting.weights}"
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
        answerer_of(run),
        run.mesh,
        config.weighting,
        fresh=_fresh(run) if config.weighting.fit == "fresh" else None,
        seed=config.seed,
        workdir=run.workdir.path,
    )
    summary = result.summary
    _write(run, result.weights, summary)
    gap = summary["gap"]["all_masked"] - summary["gap"]["none_masked"]
    message = (
        f"{len(result.weights.values)} token weights, mean {summary['mean_weight']:.2f}; held out: "
        f"gap {gap:.2f} nats, objective {summary['objective']:.2f} "
        f"(all kept {summary['keep_all']:.2f}, none {summary['keep_none']:.2f})"
    )
    if summary["auc"] is not None:
        message += f", AUC of keypoints over filler {summary['auc']:.3f}"
    return message


def _write(run: Run, weights: Ragged, summary: dict[str, Any]) -> None:
    spans = run.train_set.rationale_char_spans
    files.write_npz(run.workdir / "token_spans.npz", values=spans.values, offsets=spans.offsets)
    files.write_json(run.workdir / "weighting.json", summary)
    files.write_npz(
        run.workdir / "token_weights.npz", values=weights.values, offsets=weights.offsets
    )


def given_weights(path: str, lengths_N: np.ndarray) -> Ragged:
    """Token weights of one's own.

    Args:
      path: a .npz file as token_weights.npz is: "values" [M], the weights of the rationale tokens
        of all training records in their order, and "offsets" [N + 1], where each record's begin.
      lengths_N: rationale tokens of each record.

    Raises:
      UserError: the file cannot be read, is of other records, or a weight is not in [0, 1].
    """
    arrays = files.read_npz(path)
    if not {"values", "offsets"} <= arrays.keys():
        raise UserError(
            f"weighting.weights={path} holds {', '.join(arrays) or 'nothing'}; expected the arrays "
            '"values" and "offsets", as token_weights.npz of a run has them.'
        )
    weights = Ragged(arrays["values"].astype(np.float32), arrays["offsets"])
    if not np.array_equal(weights.lengths, lengths_N) or weights.offsets[0] != 0:
        raise UserError(
            f"weighting.weights={path} has the weights of {len(weights)} rationales with "
            f"{len(weights.values)} tokens; expected those of the {len(lengths_N)} training "
            f"records, whose rationales have {int(lengths_N.sum())} tokens under this student."
        )
    if not ((weights.values >= 0) & (weights.values <= 1)).all():  # NaN is neither.
        raise UserError(f"weighting.weights={path}: expected weights from 0 to 1 alone.")
    return weights


def answerer_of(run: Run) -> Student:
    """The answerer before it is fit: a student without adapters, as all of its weights are fit."""
    config = run.config
    answerer = config.weighting.answerer
    if answerer or config.student.lora.rank:
        return run.load_student(answerer or config.student.model, adapters=False)
    return run.student


def _fresh(run: Run) -> tokens.TokenizedSet:
    from kpod_jax.data import arithmetic

    # A seed apart from that of a shipped answerer's training.
    count, task = run.config.weighting.fresh_examples, run.config.data.arithmetic.to_dict()
    fresh = arithmetic.generate("fresh", count, run.config.seed + 1, arithmetic.Task(**task))
    return run.tokenize(fresh)[0]
