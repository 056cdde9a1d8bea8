"""A custom judge: a gold answer may list several right ones, such as "NYC | New York"."""

from kpod_jax.data import answers


def any_of(prediction, gold):
    """Returns whether a generation's answer is one of those that the gold answer lists."""
    return any(answers.answers_equal(prediction, one.strip(), "text") for one in gold.split("|"))
