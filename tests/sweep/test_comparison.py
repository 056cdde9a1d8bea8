"""The figures of a sweep, by hand, from made-up results."""

import statistics

import pytest

from kpod_jax.evaluation import intervals
from kpod_jax.sweep import comparison
from kpod_jax.utils import files
from tests.sweep.runs import config, write


def compared(root, runs, failed=None):
    return comparison.compare("a.py:b", runs, root, failed or {})


def cells(result, column=0):
    return {row["name"]: row["cells"][column] for row in result["rows"]}


def test_means_spreads_and_tests_over_seeds(tmp_path):
    rights = {
        ("kpod", 0): "1110" * 10, ("kpod", 1): "1100" * 10, ("kpod", 2): "1111" * 10,
        ("scotd", 0): "1000" * 10, ("scotd", 1): "0000" * 10, ("none", 0): "1110" * 10,
    }  # fmt: skip
    runs = {
        f"{m}-{s}": write(tmp_path, f"{m}-{s}", config(m, s), right)
        for (m, s), right in rights.items()
    }
    result = compared(tmp_path, runs)
    assert result["reference"] == "KPOD" and result["shown"] == "kpod-0"
    assert result["columns"] == [
        {"name": "arithmetic", "data": "arithmetic", "tested": "arithmetic", "split": "test",
         "file": "test"}
    ]  # fmt: skip
    found = cells(result)
    assert list(found) == ["KPOD", "SCoTD", "no distillation"]
    assert found["KPOD"]["mean"] == pytest.approx(0.75)
    assert found["KPOD"]["spread"] == pytest.approx(statistics.stdev([0.75, 0.5, 1.0]))
    assert [seed["run"] for seed in found["KPOD"]["seeds"]] == ["kpod-0", "kpod-1", "kpod-2"]
    assert found["SCoTD"]["mean"] == pytest.approx(0.125)
    assert found["no distillation"]["spread"] is None
    assert found["no distillation"]["interval"] == list(intervals.wilson_interval(30, 40))
    assert found["KPOD"]["against"] is None
    test = found["SCoTD"]["against"]
    # KPOD minus SCoTD by question: 1/2, 1, 2/3, 1/3: in no resample it changes its sign.
    assert test["difference"] == pytest.approx(0.625)
    assert test["p"] == pytest.approx(2 / 10_001) and test["p_holm"] == pytest.approx(4 / 10_001)
    # The means are the same.
    assert found["no distillation"]["against"]["difference"] == 0
    assert found["no distillation"]["against"]["p_holm"] > 0.9
    # The tiny student is none of the paper's.
    assert all(cell["paper"] is None for cell in found.values())


def test_single_seeds_have_mcnemars_test(tmp_path):
    runs = {
        "a": write(tmp_path, "a", config("kpod"), "1111111100"),
        "b": write(tmp_path, "b", config("scotd"), "1100000010"),
    }
    test = cells(compared(tmp_path, runs))["SCoTD"]["against"]
    # Of 7 discordant pairs 6 are for KPOD.
    assert test["p"] == pytest.approx(2 * 8 / 128) and test["difference"] == pytest.approx(0.5)


def test_the_first_kpod_is_the_reference_wherever_it_stands(tmp_path):
    runs = {
        "b": write(tmp_path, "b", config("scotd"), "1100"),
        "a": write(tmp_path, "a", config("kpod"), "1111"),
    }
    result = compared(tmp_path, runs)
    assert (result["reference"], result["shown"]) == ("KPOD", "a")
    assert [row["name"] for row in result["rows"]] == ["SCoTD", "KPOD"]
    assert cells(result)["SCoTD"]["against"]["difference"] == pytest.approx(0.5)
    del runs["a"]
    assert compared(tmp_path, runs)["reference"] == "SCoTD"


def test_variants_of_a_method_are_named_by_what_they_change(tmp_path):
    made = {
        "kpod-seed0": config(), "kpod-seed1": config(seed=1),
        "beta10-seed0": config(schedule__beta=10.0),
        "beta10-seed1": config(seed=1, schedule__beta=10.0),
    }  # fmt: skip
    runs = {name: write(tmp_path, name, one, "10") for name, one in made.items()}
    result = compared(tmp_path, runs)
    assert [row["name"] for row in result["rows"]] == ["KPOD", "KPOD, schedule.beta = 10.0"]
    assert result["rows"][1]["settings"] == {"schedule.beta": 10.0}
    assert result["base"] == {"schedule.beta": 12.0}
    assert [len(row["cells"][0]["seeds"]) for row in result["rows"]] == [2, 2]


def test_other_data_sets_are_columns_with_tests_of_their_own(tmp_path):
    ood = {"svamp": "1110"}
    runs = {
        "a": write(tmp_path, "a", config("kpod"), "1100", ood),
        "b": write(tmp_path, "b", config("scotd"), "1100", {"svamp": "1000"}),
    }
    result = compared(tmp_path, runs)
    assert [c["name"] for c in result["columns"]] == ["arithmetic", "SVAMP"]
    assert [c["file"] for c in result["columns"]] == ["test", "svamp_test"]
    assert cells(result, 1)["KPOD"]["mean"] == 0.75
    assert cells(result, 1)["SCoTD"]["against"]["difference"] == pytest.approx(0.5)
    assert cells(result, 0)["SCoTD"]["against"]["difference"] == 0


def test_data_sets_are_columns_and_the_papers_figures_stand_beside_ours(tmp_path):
    runs = {}
    for data in ("gsm8k", "svamp"):
        for method in ("kpod", "scotd"):
            if (data, method) != ("svamp", "scotd"):
                made = config(method, data__name=data, student__model="google/flan-t5-large")
                runs[f"{method}-{data}"] = write(tmp_path, f"{method}-{data}", made, "10")
    result = compared(tmp_path, runs)
    assert [c["name"] for c in result["columns"]] == ["GSM8K", "SVAMP"]
    kpod, scotd = result["rows"]
    assert [cell["paper"] for cell in kpod["cells"]] == pytest.approx([0.2246, 0.2533])
    assert scotd["cells"][0]["paper"] == pytest.approx(0.1942)
    assert scotd["cells"][1] is None


def test_questions_that_do_not_fit_are_noted_and_the_rest_stays(tmp_path):
    runs = {
        "a": write(tmp_path, "a", config("kpod"), "1100"),
        "b": write(tmp_path, "b", config("scotd"), "1000"),
    }
    (tmp_path / "b/predictions/test.jsonl").unlink()
    result = compared(tmp_path, runs, {"c": "no memory"})
    assert cells(result)["SCoTD"]["mean"] == 0.25
    assert cells(result)["SCoTD"]["against"] is None
    assert result["notes"][0].startswith("arithmetic: no paired tests. No such file: ")
    assert result["failed"] == {"c": "no memory"}
    files.write_json(tmp_path / "comparison.json", result)  # All of it is plain JSON.


def test_rationale_tokens_are_means_over_seeds_and_unknown_where_one_is(tmp_path):
    seeds = [("kpod", 0, 1000), ("kpod", 1, 2000), ("scotd", 0, 9000), ("scotd", 1, None)]
    runs = {
        f"{m}-{s}": write(tmp_path, f"{m}-{s}", config(m, s), "10", tokens=tokens)
        for m, s, tokens in seeds
    }
    found = cells(compared(tmp_path, runs))
    assert found["KPOD"]["rationale_tokens"] == 1500
    assert found["SCoTD"]["rationale_tokens"] is None
