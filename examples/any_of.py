"""A custom judge: a gold answer may list several alternatives, such as "NYC | New York"."""

from kpod_jax.data import answers


def any_of(prediction, gold):
    """Returns whether the answer of a generation is one of the alternatives."""
    return any(answers.answers_equal(prediction, one.strip(), "text") for one in gold.split("|"))
