import dataclasses
import json

import numpy as np
import pytest

from kpod_jax.data import token_store
from kpod_jax.data.records import Ragged
from kpod_jax.utils.errors import UserError
from tests.weighting import tiny


@pytest.fixture
def tokenized():
    return tiny.random_set(5, 7)


def test_a_set_comes_back_as_it_was_from_a_mapped_file(tokenized, tmp_path):
    token_store.save(tmp_path / "tokens", tokenized)
    found = token_store.load(tmp_path / "tokens", tokenized.records)
    assert found.records == tokenized.records
    for field in dataclasses.fields(tokenized):
        ours, theirs = getattr(found, field.name), getattr(tokenized, field.name)
        if isinstance(theirs, Ragged):
            np.testing.assert_array_equal(ours.offsets, theirs.offsets)
            ours, theirs = ours.values, theirs.values
        if field.name != "records":
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.int32 and not ours.flags.owndata and not ours.flags.writeable
    base = found.targets.values
    while isinstance(base.base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("harm", ["missing", "cut", "other records", "other table", "no array"])
def test_what_does_not_hold_the_tokens_is_turned_down(tokenized, tmp_path, harm):
    path, records = tmp_path / "tokens", tokenized.records
    token_store.save(path, tokenized)
    array, table = tmp_path / "tokens.npy", tmp_path / "tokens.json"
    if harm == "missing":
        array.unlink()
    elif harm == "cut":
        array.write_bytes(array.read_bytes()[:-40])
    elif harm == "no array":
        array.write_text("{}")
    elif harm == "other records":
        records = records[:3]
    else:
        places = json.loads(table.read_text())
        places["targets.values"]["start"] += 10**6
        table.write_text(json.dumps(places))
    with pytest.raises(UserError, match=r"tokens\.npy .*Delete it"):
        token_store.load(path, records)
