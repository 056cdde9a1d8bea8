"""Token weights of the training rationales (Eq. 2-7)."""

from kpod_jax import files
from kpod_jax.data import tokens
from kpod_jax.errors import UserError
from kpod_jax.models.student import Student
from kpod_jax.run import Run
from kpod_jax.weighting import weigh


def run_stage(run: Run) -> str:
    """Learns masks on the records; writes token_weights.npz, token_spans.npz and weighting.json.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: no held-out rationales, or as `weigh.weigh` does.
    """
    config = run.config
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
    spans = run.train_set.rationale_char_spans
    files.write_npz(run.workdir / "token_spans.npz", values=spans.values, offsets=spans.offsets)
    files.write_json(run.workdir / "weighting.json", result.summary)
    files.write_npz(
        run.workdir / "token_weights.npz",
        values=result.weights.values,
        offsets=result.weights.offsets,
    )
    summary = result.summary
    gap = summary["gap"]["all_masked"] - summary["gap"]["none_masked"]
    message = (
        f"{len(result.weights.values)} token weights, mean {summary['mean_weight']:.2f}; held out: "
        f"gap {gap:.2f} nats, objective {summary['objective']:.2f} "
        f"(all kept {summary['keep_all']:.2f}, none {summary['keep_none']:.2f})"
    )
    if summary["auc"] is not None:
        message += f", AUC of keypoints over filler {summary['auc']:.3f}"
    return message


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
