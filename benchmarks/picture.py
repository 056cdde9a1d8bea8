r"""The picture of the README: token weights, schedule and accuracy, from a sweep.

    python -m benchmarks.picture --sweep=runs/quickstart --output=docs/quickstart.png

A sweep's work directory holds comparison.json; the run is the one that its report shows.
"""

from absl import app, flags

from kpod_jax import report
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def main(argv: list[str]) -> None:
    """Draws it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
    root = files.as_path(flags.FLAGS.sweep)
    try:
        comparison = files.read_json(root / "comparison.json")
        path = report.readme_picture(root / comparison["shown"], flags.FLAGS.output, comparison)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(path)


if __name__ == "__main__":  # `kpod_jax.main` has flags of these names.
    flags.DEFINE_string("sweep", None, "Work directory of a sweep.", required=True)
    flags.DEFINE_string("output", None, "The picture: a .png or .svg.", required=True)
    app.run(main)
