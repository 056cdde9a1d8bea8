import json

import numpy as np
import pytest

from kpod_jax.data import records
from kpod_jax.data.records import Ragged, Record, Rejected
from kpod_jax.utils.errors import UserError

KNOWN = Record("a", "Why 漢\u2028?", ("One. ", "Two."), "2", ((0, 3), (5, 8)), (1.0, 2.5))
PLAIN = Record("b", "q", (), "x")


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "records" / "train.jsonl"
    records.write_records(path, [KNOWN, PLAIN])
    assert records.read_records(path) == [KNOWN, PLAIN]
    assert "keypoints" not in path.read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", r"not a JSON object \(got list\)"),
        ('{"id": "c", "question": "q", "steps": []}', "has no 'answer'"),
        ('{"id": "c", "question": "q", "steps": "One.", "answer": "1"}', "'steps' must be strings"),
        ('{"id": "c", "question": "q", "steps": [1], "answer": "1"}', "'steps' must be strings"),
        ('{"id": "a", "question": "q", "steps": [], "answer": "1"}', "id 'a' of line 1"),
    ],
)
def test_broken_line_is_named(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(KNOWN.to_json()) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"train\.jsonl:2 .*{reason}"):
        records.read_records(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        records.read_records(tmp_path / "nothing.jsonl")


def test_bad_share():
    bad = [Rejected(f"id-{i}", f"reason {i}") for i in range(7)]
    records.check_rejected_fraction(bad, 70, 0.1)
    records.check_rejected_fraction([], 0, 0.0)
    with pytest.raises(
        UserError, match=r"7 of 69 .*max_rejected_fraction=0\.1[^§]*id-0: reason 0[^§]*2 more"
    ):
        records.check_rejected_fraction(bad, 69, 0.1)


def test_ragged():
    ragged = Ragged.from_list([[1, 2], [], [3]], np.int32)
    assert len(ragged) == 3
    assert [part.tolist() for part in ragged] == [[1, 2], [], [3]]
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert len(Ragged.from_list([], np.int32)) == 0
