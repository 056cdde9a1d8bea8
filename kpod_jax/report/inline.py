"""Heat maps of token weights for notebooks."""

import dataclasses
from collections.abc import Sequence

from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged
from kpod_jax.report import colours, heatmap
from kpod_jax.report.page import template


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Rationales with words colored by weight; notebooks display it as HTML.

    Attributes:
      html: a self-contained element.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html


def heat_map(data: Data, weights: Ragged, indices: Sequence[int] = (0,)) -> HeatMap:
    """Returns a heat map of the token weights of training rationales.

    Args:
      data: data from `prepare_data`.
      weights: w_j of every rationale token.
      indices: indices of the training records.
    """
    train = data.train
    rationales = [
        (
            train.records[i].question,
            heatmap.steps(train.records[i], train.rationale_char_spans[i], weights[i]),
        )
        for i in indices
    ]
    return HeatMap(template("heat_map.html.j2").render(shown=rationales, heat=colours.heat))
