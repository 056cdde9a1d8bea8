from benchmarks import keypoints

HEAD = ["| weights | AUC |", "| --- | --- |"]


def test_rows_that_are_not_made_anew_stay_in_their_table():
    old = [*HEAD, "| α = 0.1 | 0.5 |", "| α = 0.9 (1 of 3 refused: “no gap”) | 0.6 |"]
    new = [*HEAD, "| random | 0.5 |", "| α = 0.9 | 0.7 |", "| α = 0.5 | 0.8 |"]
    study = keypoints.merged(new, old, ("alpha", "masks"))
    assert study == [*HEAD, "| α = 0.1 | 0.5 |", "| α = 0.5 | 0.8 |", "| α = 0.9 | 0.7 |"]
    assert keypoints.merged(new, [], ("baselines",)) == [*HEAD, "| random | 0.5 |"]


def test_every_row_is_in_one_table_and_has_a_name_of_its_own():
    groups = [group for groups in keypoints._TABLES.values() for group in groups]
    assert sorted({row.group for row in keypoints.ROWS}) == sorted(groups)
    names = [row.name for row in keypoints.ROWS]
    assert len(set(names)) == len(names)
    assert not any(" (" in name for name in names)
