"""Command-line entry point; see the package docstring."""

from absl import app, flags, logging

from kpod_jax.models import hub
from kpod_jax.pretrain import answerer, student

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the model to.", required=True)
_WHAT = flags.DEFINE_enum("what", "student", ["student", "answerer"], "Model to train.")
_STUDENT = flags.DEFINE_string(
    "student", "kpod_jax/assets/tiny_t5", "Student directory; its tokenizer is the answerer's."
)
_SCALE = flags.DEFINE_float("scale", 1.0, "Scales the number of steps, for a quick test.")
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.")


def main(argv: list[str]) -> None:
    """Trains a model and writes it, with its tokenizer, in Hugging Face format."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    seed, scale = _SEED.value, _SCALE.value
    if _WHAT.value == "answerer":
        config, params, tokenizer = answerer.train_answerer(_STUDENT.value, scale=scale, seed=seed)
    else:
        config, params, tokenizer = student.train_student(scale=scale, seed=seed)
    hub.save_pretrained(_OUTPUT.value, config, params, tokenizer, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
