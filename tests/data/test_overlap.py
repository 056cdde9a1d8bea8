from kpod_jax.data import overlap
from kpod_jax.data.records import Record


def records(name, *questions):
    return [Record(f"{name}{i}", question, (), "1") for i, question in enumerate(questions)]


def test_questions_are_the_same_up_to_case_and_white_space():
    splits = {
        "train": records("a", "How  many\npens?", "Why?", "how many pens?", "Where?"),
        "validation": records("b", "When?"),
        "test": records("c", "Who?", " HOW MANY PENS?", "where?", "when?"),
    }
    assert overlap.overlaps(splits) == {
        ("train", "test"): [("a0", "c1"), ("a2", "c1"), ("a3", "c2")],
        ("validation", "test"): [("b0", "c3")],
    }
    assert overlap.describe(splits) == (
        "3 questions of train are also in test: a0 = c1, a2 = c1, a3 = c2\n"
        "1 questions of validation are also in test: b0 = c3"
    )


def test_no_overlap_says_nothing_and_a_long_one_is_cut():
    assert overlap.describe({"train": records("a", "x"), "test": records("b", "y")}) == ""
    many = [str(i) for i in range(9)]
    said = overlap.describe({"train": records("a", *many), "test": records("b", *many)})
    assert said == "9 questions of train are also in test: a0 = b0, a1 = b1, a2 = b2, …"
