"""The command of this package; see its first lines."""

from absl import app, flags, logging

from kpod_jax.models import hub
from kpod_jax.pretrain import answerer, student

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write the model to.", required=True)
_WHAT = flags.DEFINE_enum("what", "student", ["student", "answerer"], "What to make.")
_STUDENT = flags.DEFINE_string(
    "student", "kpod_jax/assets/tiny_t5", "Directory whose tokenizer the answerer has."
)
_SCALE = flags.DEFINE_float("scale", 1.0, "Scales the number of steps, for a quick try.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")


def main(argv: list[str]) -> None:
    """Makes a model and writes it, with its tokenizer, in Hugging Face's format."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO)
    seed, scale = _SEED.value, _SCALE.value
    if _WHAT.value == "answerer":
        config, params, tokenizer = answerer.train_answerer(_STUDENT.value, scale=scale, seed=seed)
    else:
        config, params, tokenizer = student.train_student(scale=scale, seed=seed)
    hub.save_pretrained(_OUTPUT.value, config, params, tokenizer, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
