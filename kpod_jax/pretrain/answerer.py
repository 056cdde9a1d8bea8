"""The answerer of the token weighting: from whole rationales, short ones first, then masked ones.

Reading has to be learned first, and for long: most masked prefixes say nothing of the answer, and
where nothing can be read, reading is not learned. Masks have to be seen for long, too: only then is
an answer found among masked filler, and no intermediate result taken for it.
"""

import dataclasses
import functools

import jax.numpy as jnp
from absl import logging

from kpod_jax import sharding
from kpod_jax.data import arithmetic, tokens
from kpod_jax.models.student import Student, load_student
from kpod_jax.weighting import learn, weigh
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.problems import Problems, problems_of

_PROBLEMS = 20000
# Operations of the problems, steps of reading, steps under masks, learning rate, clear share.
_PHASES = (
    ((1, 2), 250, 0, 1e-3, 0.5),
    ((1, 3), 700, 0, 1e-3, 0.5),
    ((1, 3), 0, 700, 7e-4, 0.5),
    ((1, 3), 0, 1200, 7e-4, 0.3),
)


def train_answerer(directory: str, *, scale: float, seed: int) -> tuple[Student, dict]:
    """Trains a student to answer, by `_PHASES`.

    Args:
      directory: of the student that it starts from.
      scale: of the number of steps.
      seed: of everything random.

    Returns:
      The student, for its configuration and tokenizer, and the answerer's parameters.
    """
    student = load_student(directory, scan_layers=False)
    params = student.load(sharding.make_mesh())

    @functools.cache
    def problems(split: str, count: int, operations: tuple[int, int]) -> Problems:
        records = arithmetic.generate(split, count, seed, operations)
        tokenized, _ = tokens.tokenize(
            records, student.tokenizer, max_question_tokens=128, max_target_tokens=192
        )
        return problems_of(tokenized, student.config.pad_token_id)

    learner = learn.MaskLearner(
        weigh.make_answerer(student), Generator(8, 1), jnp.zeros((1, 1)), 0.0, "step_ends"
    )

    def log(what: str, step: int, values: dict[str, float]) -> None:
        logging.info("%s: step %d, %s", what, step, values)

    for operations, reading, masking, learning_rate, clear_share in _PHASES:
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
    return student, params
