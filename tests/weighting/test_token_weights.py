"""What token weights write and say."""

import numpy as np
import pytest

from kpod_jax.data.records import offsets_of
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import weigh
from kpod_jax.weighting.weigh import TokenWeights
from tests.weighting import tiny


def test_the_objective_is_told_beside_those_of_keeping_all_and_none(tmp_path):
    data = tiny.copying(4, 0)
    figures = {"objective": 0.754, "keep_all": 1.004, "keep_none": 2.0, "auc": None}
    summary = figures | {"gap": {"none_masked": 0.5, "all_masked": 2.0}, "mean_weight": 0.25}
    values = np.linspace(0, 1, int(data.rationale_lengths.sum()), dtype=np.float32)
    offsets = offsets_of(data.rationale_lengths)
    weights = TokenWeights(values, offsets, summary, spans=data.rationale_char_spans)
    said = str(weights)
    assert "objective 0.75 (all kept 1.00, none 2.00)" in said and "gap 1.50 nats" in said
    weights.save(tmp_path)
    written = files.read_json(tmp_path / "weighting.json")
    assert {key: written[key] for key in figures} == figures
    again = TokenWeights.load(tmp_path)
    np.testing.assert_array_equal(again.values, values)
    assert again.summary == summary


def test_weights_of_ones_own_are_taken_as_they_are(tmp_path):
    path, lengths = tmp_path / "mine.npz", np.array([2, 1])
    files.write_npz(path, values=np.array([0.5, 1.0, 0.0]), offsets=np.array([0, 2, 3]))
    given = weigh.read_token_weights(str(path), lengths)
    assert given[0].tolist() == [0.5, 1.0] and given[1].tolist() == [0.0]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"values": [0.5, 1.0], "offsets": [0, 2]}, "of 1 rationales with 2 tokens; expected"),
        ({"values": [0.5, 1.0, 0.0], "offsets": [0, 1, 3]}, "the 2 training records"),
        ({"values": [0.5, np.nan, 0.0], "offsets": [0, 2, 3]}, "weights between 0 and 1"),
        ({"values": [0.5, 1.5, 0.0], "offsets": [0, 2, 3]}, "weights between 0 and 1"),
        ({"weights": [0.5]}, 'holds weights; expected the arrays "values" and "offsets"'),
    ],
)
def test_weights_of_ones_own_that_do_not_fit_are_refused(tmp_path, arrays, expected):
    path = tmp_path / "mine.npz"
    files.write_npz(path, **{name: np.array(values) for name, values in arrays.items()})
    with pytest.raises(UserError, match=expected):
        weigh.read_token_weights(str(path), np.array([2, 1]))
