"""configs/sweeps/: each run of each table is what KPOD.md's tables say."""

import collections
import importlib
import pathlib

import pytest

from configs.sweeps import (
    common,
    factorial,
    quickstart,
    sensitivity,
    smollm2_svamp,
    table1,
    table2,
    table3,
)
from kpod_jax import pipeline
from kpod_jax.cli import checks
from kpod_jax.config import defaults, paper
from kpod_jax.training import loop
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError

BASES = (
    "quickstart",
    "t5_base",
    "flan_t5_large",
    "flan_t5_xl",
    "llama_7b",
    "smollm2_135m",
    "smollm2_135m_cpu",
)
FOLDER = pathlib.Path(common.__file__).parent

# What the paper's Table 2 takes away, in this project's keys (all else stays).
ABLATIONS = {
    "kpod": {},
    "without_significance": {"weighting.weights": "uniform"},
    "without_significance_in_difficulty": {"difficulty.weights": "uniform"},
    "without_progression": {"schedule.curriculum": "full"},
    "without_diversity": {"schedule.beta": 0.0},
    "acl": {"schedule.curriculum": "acl"},
    "spl": {"schedule.curriculum": "spl"},
    "icl": {"schedule.curriculum": "icl"},
}


def flat(config):
    return config_dict.flatten(config)


def changed(config, base):
    return {key: value for key, value in flat(config).items() if value != flat(base)[key]}


@pytest.mark.parametrize("base", BASES)
def test_every_row_of_table_2_changes_what_it_names_and_nothing_else(base):
    runs = table2.get_runs(f"{base},seeds=2")
    assert list(runs) == [f"{method}-seed{seed}" for method in ABLATIONS for seed in (0, 1)]
    for method, keys in ABLATIONS.items():
        for seed in (0, 1):
            config = runs[f"{method}-seed{seed}"]
            checks.check(config)
            names = {"method": method} if method != "kpod" else {}
            seeds = {"seed": 1} if seed else {}
            assert changed(config, runs["kpod-seed0"]) == keys | names | seeds


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("sweep", [table1, table2, table3, sensitivity])
def test_every_run_is_sound(sweep, base):
    # What only a teacher can write comes from a file.
    runs = sweep.get_runs(f"{base},data.rationales=a.jsonl,baseline.counterfactuals=b.jsonl")
    assert next(iter(runs)) == "kpod-seed0"
    for config in runs.values():
        checks.check(config)


def test_table_1_takes_up_every_method_but_the_ablations(monkeypatch):
    monkeypatch.setitem(defaults.METHODS, "mine", ("Mine", {"distill.epochs": 3}))
    runs = table1.get_runs("quickstart")
    assert {"kpod-seed0", "scotd-seed0", "none-seed0", "mine-seed0"} <= runs.keys()
    assert runs["mine-seed0"].distill.epochs == 3
    equal, kpod = runs["scotd_equal_tokens-seed0"], runs["kpod-seed0"]
    assert changed(equal, kpod).keys() == {"method", "distill.equal_tokens"}
    shared = pipeline.recipes(kpod)  # It is cut to the tokens of the very schedule.
    assert "schedule" in shared and pipeline.recipes(equal) == shared
    assert not {f"{method}-seed0" for method in paper.TABLE_2 if method != "kpod"} & runs.keys()


def test_data_sets_are_columns_with_their_own_epochs_and_paths():
    runs = table1.get_runs("llama_7b,data=gsm8k+svamp,seeds=2,data.path=sets/{data}")
    assert runs["kpod-gsm8k-seed1"].distill.epochs == 20
    assert runs["kpod-svamp-seed1"].distill.epochs == 40
    assert runs["kpod-svamp-seed1"].data.name == "svamp"
    assert runs["kpod-svamp-seed0"].data.path == "sets/svamp"
    # Nothing is random without distillation.
    assert "none-svamp-seed0" in runs and "none-svamp-seed1" not in runs
    assert runs["none-svamp-seed0"].distill.epochs == 0


def test_table_3_asks_two_other_data_sets():
    runs = table3.get_runs("llama_7b")
    for config in runs.values():
        assert (config.data.name, config.eval.ood) == ("gsm8k", ("asdiv", "svamp"))
    given = table3.get_runs("t5_base,eval.ood=svamp,eval.ood_paths=here")["kpod-seed0"]
    assert (given.eval.ood, given.eval.ood_paths) == (("svamp",), ("here",))
    # In the directory of table 1, all but the evaluation is up to date.
    first, third = table1.get_runs("llama_7b"), table3.get_runs("llama_7b")
    assert list(first) == list(third)
    assert changed(third["kpod-seed0"], first["kpod-seed0"]).keys() == {"eval.ood"}


def test_sensitivity_covers_the_papers_ranges_one_setting_at_a_time():
    runs = sensitivity.get_runs("llama_7b")
    base = runs.pop("kpod-seed0")
    values: dict[str, set] = {key: {flat(base)[key]} for key in paper.SENSITIVITY}
    for config in runs.values():
        ((key, value),) = changed(config, base).items()
        values[key].add(value)
    for key, (low, high) in paper.SENSITIVITY.items():
        assert (min(values[key]), max(values[key]), len(values[key])) == (low, high, 4)
    some = sensitivity.get_runs("quickstart,settings=alpha+p")
    base = some["kpod-seed0"]
    others = [
        set(values) - {flat(base)[key]}
        for key, values in (sensitivity.SETTINGS["alpha"], sensitivity.SETTINGS["p"])
    ]
    assert len(some) == 1 + sum(map(len, others))
    with pytest.raises(UserError, match="settings=gamma: expected one or more of alpha, beta"):
        sensitivity.get_runs("quickstart,settings=gamma")


def test_quickstart_and_its_short_form():
    runs = quickstart.get_runs("")
    assert list(runs) == ["kpod-seed0", "kpod-seed1", "scotd-seed0", "scotd-seed1", "none-seed0"]
    assert runs["kpod-seed1"].data.train_examples == 1500
    short = quickstart.get_runs("short")
    assert list(short) == ["kpod-seed0", "scotd-seed0", "none-seed0"]
    for config in short.values():
        checks.check(config)
        assert config.data.train_examples == 96
    assert short["none-seed0"].distill.epochs == 0


def test_keys_are_set_in_their_types_and_never_against_the_method():
    config = table2.get_runs(
        "quickstart,distill.epochs=3,schedule.p=2,distill.dropout=true,student.lora.targets=q+k,"
        "schedule.beta=9,student.dtype=bfloat16"
    )
    kpod, diversity = config["kpod-seed0"], config["without_diversity-seed0"]
    assert (kpod.distill.epochs, kpod.schedule.p, kpod.distill.dropout) == (3, 2.0, True)
    assert (kpod.student.lora.targets, kpod.student.dtype) == (("q", "k"), "bfloat16")
    assert (kpod.schedule.beta, diversity.schedule.beta) == (9.0, 0.0)


def test_every_run_makes_the_steps_that_are_asked_for():
    runs = table1.get_runs("quickstart,steps=70,short")
    for name, config in runs.items():
        checks.check(config)
        steps = 0 if name == "none-seed0" else 70
        for steps_per_epoch in (1, 30, 500):
            assert loop.plan(config.distill, steps_per_epoch).total_steps == steps


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("distill.learning_rate", "5e-4", 5e-4),
        ("distill.max_steps", "9", 9),
        ("distill.step_start_weight", "learned", "learned"),
        ("distill.rescale_weights", "mean", "mean"),
        ("distill.min_weight", "0", 0.0),
        ("schedule.ramp_fraction", "0.8", 0.8),
        ("schedule.initial_fraction", "0.5", 0.5),
        ("weighting.alpha", "0.4", 0.4),
        ("eval.ood", "gsm8k+svamp", ("gsm8k", "svamp")),
    ],
)
def test_settings_of_all_runs_follow_the_colon(key, text, value):
    for config in table1.get_runs(f"quickstart,{key}={text}").values():
        assert flat(config)[key] == value


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("quickstarts", "no such file: configs/quickstarts.py. Expected one of flan_t5_large"),
        ("quickstart,seeds=0", "cannot parse 'seeds=0'"),
        ("quickstart,steps=0", "cannot parse 'steps=0'"),
        ("quickstart,seed=3", "other than method and seed"),
        ("quickstart,method=scotd", "cannot parse 'method=scotd'"),
        ("quickstart,five", "cannot parse 'five'"),
        ("quickstart,distill.epoch=5", "cannot parse 'distill.epoch=5'"),
        ("quickstart,distill.epochs=few", "distill.epochs='few': expected the type of the default"),
        ("../quickstart", "no such file: configs/../quickstart.py"),
    ],
)
def test_arguments_that_cannot_be_read_say_what_was_expected(argument, said):
    with pytest.raises(UserError) as error:
        table2.get_runs(argument)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "file", sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common"))
)
def test_every_file_says_how_to_run_it(file):
    module = importlib.import_module(f"configs.sweeps.{file}")
    assert f"--sweep=configs/sweeps/{file}.py" in (module.__doc__ or "")


def test_the_factorial_crosses_weights_curricula_and_lengths(tmp_path):
    (tmp_path / "keypoints.npz").touch()
    runs = factorial.get_runs(f"quickstart,controls={tmp_path},lengths=base+long")
    assert len(runs) == 3 * 2 * 2
    base = runs["learned-seed0"]
    assert changed(runs["keypoints-full-long-seed0"], base) == {
        "weighting.weights": str(tmp_path / "keypoints.npz"),
        "schedule.curriculum": "full",
        "distill.epochs": 3 * base.distill.epochs,
    }
    for config in runs.values():
        checks.check(config)


@pytest.mark.parametrize("option", ["lengths=short", "controls=nowhere"])
def test_the_factorial_names_what_it_cannot_use(option):
    with pytest.raises(UserError, match=option):
        factorial.get_runs(f"quickstart,{option}")


def test_kpod_and_scotd_have_five_seeds_on_svamp(tmp_path):
    keys = f"smollm2_svamp,data.path={tmp_path},data.rationales=a.jsonl"
    runs = smollm2_svamp.get_runs(keys)
    assert collections.Counter(name.rpartition("-seed")[0] for name in runs) == smollm2_svamp.SEEDS
    for config in runs.values():
        checks.check(config)
    single = smollm2_svamp.get_runs(f"{keys},seeds=1,distill.epochs=1")
    assert {name: config.seed for name, config in single.items()} == {
        f"{name}-seed0": 0 for name in smollm2_svamp.SEEDS
    }
    assert {config.distill.epochs for config in single.values()} == {0, 1}
