"""Clusters of questions, and what is output at each stage of training (Eq. 9-13)."""

import math

import numpy as np
from absl import logging

from kpod_jax.data import tokens
from kpod_jax.run import Run
from kpod_jax.schedule import clusters, curricula
from kpod_jax.schedule.protocol import Curriculum, Setting
from kpod_jax.utils import files


def run_stage(run: Run) -> str:
    """Reads the training records and step_difficulty.npz; writes schedule.npz.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: question vectors that cannot be read, or a curriculum's setting.
    """
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
    stages = run.length.stages
    curriculum = curriculum_of(run, found.labels)
    plan = curricula.plan(curriculum, stages, run.difficulty, config.schedule.curriculum)
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


def curriculum_of(run: Run, labels: np.ndarray) -> Curriculum:
    """The curriculum of the configuration, for questions of these clusters."""
    options = run.config.schedule
    stages = run.length.stages
    setting = Setting(
        difficulty=run.difficulty,
        clusters=labels,
        stages=stages,
        ramp_stages=min(stages - 1, round(options.ramp_share * stages)),
        options=options.to_dict(),
    )
    return curricula.make(options.curriculum, setting)
