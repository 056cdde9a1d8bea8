"""--mode=heatmap: a finished run's token weights as a page, a picture, and lines of a terminal."""

import os
import pathlib
import sys
from collections.abc import Sequence

from kpod_jax.report import page, picture, sections, terminal
from kpod_jax.report import run as run_files
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_PAGE, _PICTURE = 40, 6  # Rationales, where none is asked for.


def heat_map(
    workdir: files.PathLike, wanted: Sequence[str] = ()
) -> tuple[pathlib.Path, pathlib.Path, str]:
    """Writes `heatmap.html` and `heatmap.png` of a run's training rationales.

    Args:
      workdir: of a run whose tokens are weighed.
      wanted: ids of records; without them some are taken, evenly over the data set.

    Returns:
      The paths of page and picture, and the first rationale for the terminal: coloured where
      that is one, unless the environment sets NO_COLOR.

    Raises:
      UserError: there are no learned weights, or no record of such an id.
    """
    run = run_files.load(workdir)
    if not run.records or run.weights is None or run.spans is None:
        raise UserError(
            f"{run.directory} has no learned token weights to show. Run --mode=weigh first, with "
            "weighting.weights=learned."
        )
    places = {record.id: i for i, record in enumerate(run.records)}
    if missing := [name for name in wanted if name not in places]:
        raise UserError(
            f"No training record {missing[0]!r} in {run.directory}; the first is "
            f"{run.records[0].id!r}, and records/train.jsonl lists all."
        )
    asked, count = [places[name] for name in wanted], len(run.records)
    indices, few = asked or sections.spread(count, _PAGE), asked or sections.spread(count, _PICTURE)
    written = page.write_heat_map(run, indices, chosen=bool(wanted))
    drawn = picture.heat_map_picture(run, few, run.directory / "heatmap.png")
    first = indices[0]
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = terminal.heat_map(
        run.records[first], run.spans[first], run.weights[first], colours=colours
    )
    return written, drawn, shown
