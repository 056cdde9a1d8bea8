r"""Draws the README figure from a sweep: token weights, schedule and accuracy.

    python -m benchmarks.picture --sweep=runs/quickstart --output=docs/quickstart.png

The sweep's work directory contains comparison.json, which names the run to show.
"""

from absl import app, flags

from kpod_jax import report
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def main(argv: list[str]) -> None:
    """Draws the figure."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    root = files.as_path(flags.FLAGS.sweep)
    try:
        comparison = files.read_json(root / "comparison.json")
        path = report.readme_picture(root / comparison["shown"], flags.FLAGS.output, comparison)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(path)


if __name__ == "__main__":  # Defined here because `kpod_jax.main` has flags with these names.
    flags.DEFINE_string("sweep", None, "Work directory of a sweep.", required=True)
    flags.DEFINE_string("output", None, "Output file, .png or .svg.", required=True)
    app.run(main)
