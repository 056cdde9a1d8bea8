from benchmarks import keypoints

HEAD = ["| weights | AUC |", "| --- | --- |"]


def test_rows_that_are_not_made_anew_stay_in_their_table():
    old = [*HEAD, "| α = 0.1 | 0.5 |", "| α = 0.9 (1 of 3 refused: “no gap”) | 0.6 |"]
    new = [*HEAD, "| random | 0.5 |", "| α = 0.9 | 0.7 |", "| α = 0.5 | 0.8 |"]
    study = keypoints.merged(new, old, ("alpha", "masks"))
    assert study == [*HEAD, "| α = 0.1 | 0.5 |", "| α = 0.5 | 0.8 |", "| α = 0.9 | 0.7 |"]
    assert keypoints.merged(new, [], ("baselines",)) == [*HEAD, "| random | 0.5 |"]
    other = ["| weights | AUC | objective |", *new[1:]]
    assert keypoints.merged(other, old, ("alpha",)) == [*other[:2], *other[:2:-1]]


def test_objectives_stand_beside_those_of_keeping_all_and_none():
    better = {"objective": 0.5, "keep_all": 0.75, "keep_none": 2.0}
    worse = {"objective": 1.0, "keep_all": 0.85, "keep_none": 3.0}
    assert keypoints.objectives([better, worse]) == ["0.750", "0.800", "2.500"]
    assert keypoints.objectives([]) == ["", "", ""]
    assert [keypoints.fails(end) for end in (better, worse)] == [False, True]


def test_every_row_is_in_one_table_and_has_a_name_of_its_own():
    groups = [group for groups in keypoints._TABLES.values() for group in groups]
    assert sorted({row.group for row in keypoints.ROWS}) == sorted(groups)
    names = [row.name for row in keypoints.ROWS]
    assert len(set(names)) == len(names)
    assert not any(" (" in name for name in names)
