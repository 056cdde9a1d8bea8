"""Token weights as a picture of a rationale, for notebooks."""

import dataclasses
from collections.abc import Sequence

from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged
from kpod_jax.report import colours, heatmap
from kpod_jax.report.page import template


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Rationales whose words are coloured by their weights; a notebook shows it as HTML.

    Attributes:
      html: one element, which needs nothing else.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html


def heat_map(data: Data, weights: Ragged, indices: Sequence[int] = (0,)) -> HeatMap:
    """Shows the token weights of some training rationales.

    Args:
      data: from `prepare_data`.
      weights: w_j of every rationale token.
      indices: which training records, by number.
    """
    train = data.train
    shown = [
        (
            train.records[i].question,
            heatmap.steps(train.records[i], train.rationale_char_spans[i], weights[i]),
        )
        for i in indices
    ]
    return HeatMap(template("heat_map.html.j2").render(shown=shown, heat=colours.heat))
