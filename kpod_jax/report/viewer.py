"""--mode=heatmap: shows a run's token weights as a page, a picture and text for the terminal."""

import os
import pathlib
import sys
from collections.abc import Sequence

from kpod_jax.report import page, picture, sections, terminal
from kpod_jax.report import run as run_files
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_PAGE, _PICTURE = 40, 6  # Default numbers of rationales.


def heat_map(
    workdir: files.PathLike, wanted: Sequence[str] = ()
) -> tuple[pathlib.Path, pathlib.Path, str]:
    """Writes `heatmap.html` and `heatmap.png` of a run's training rationales.

    Args:
      workdir: work directory of a run with learned token weights.
      wanted: ids of records; by default, some are selected evenly from the data set.

    Returns:
      The paths of page and picture, and the first rationale as text, colored if standard output is
      a terminal, unless the environment variable NO_COLOR is set.

    Raises:
      UserError: there are no learned weights, or no record with a given id.
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
            f"{run.records[0].id!r}. All ids are in records/train.jsonl."
        )
    chosen, count = [places[name] for name in wanted], len(run.records)
    on_page = chosen or sections.spread(count, _PAGE)
    in_picture = chosen or sections.spread(count, _PICTURE)
    page_path = page.write_heat_map(run, on_page, chosen=bool(wanted))
    picture_path = picture.heat_map_picture(run, in_picture, run.directory / "heatmap.png")
    first = on_page[0]
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = terminal.heat_map(
        run.records[first], run.spans[first], run.weights[first], colours=colours
    )
    return page_path, picture_path, text
