import importlib
import pathlib
import re

import pytest

from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.schedule import curricula
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def config_errors(**changes):
    config = defaults.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(UserError) as error:
        checks.check(config)
    return str(error.value)


def test_a_key_that_does_not_exist_is_no_new_one():
    with pytest.raises(AttributeError, match='Did you mean "epochs" instead of "epoch"'):
        defaults.get_config().distill.epoch = 5


def test_the_default_is_sound():
    checks.check(defaults.get_config())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule__solver": "greed"}, "schedule.solver='greed': expected one of greedy, ftgp"),
        (
            {"schedule__curriculum": "kpot"},
            "schedule.curriculum='kpot': expected one of kpod, full, icl, spl, acl, or package.",
        ),
        ({"schedule__growth": 0}, "schedule.growth=0: expected at least 1"),
        ({"method": "kpot"}, "method='kpot': expected one of kpod, scotd"),
        ({"distill__learning_rate": -1.0}, "distill.learning_rate=-1.0: expected at least 0"),
        ({"distill__batch_size": 0}, "distill.batch_size=0: expected at least 1"),
        ({"schedule__initial_fraction": 1.5}, "schedule.initial_fraction=1.5: expected 0 to 1"),
        ({"weighting__alpha": float("nan")}, "weighting.alpha=nan: expected at least 0"),
        ({"student__prompt": "Q:"}, "student.prompt='Q:': expected {question} exactly once"),
        ({"student__answer_template": "{answer}{answer}"}, "expected {answer} exactly once"),
        (
            {"distill__equal_tokens": True, "schedule__curriculum": "spl"},
            "distill.equal_tokens=True: expected schedule.curriculum kpod or icl, whose tokens",
        ),
        ({"distill__micro_batches": 3}, "distill.micro_batches=3: expected a divisor of"),
        ({"mesh__fsdp": -1}, "mesh: expected at most one axis of -1"),
        (
            {"weighting__fit": "fresh", "data__name": "gsm8k"},
            "weighting.fit='fresh': only the built-in task generates fresh problems, not gsm8k",
        ),
        ({"data__name": "jsonl"}, "data.path='': expected the folder"),
        (
            {"eval__ood": ("gsm9k",)},
            "eval.ood=('gsm9k',): expected distinct names out of arithmetic",
        ),
        ({"eval__ood": ("gsm8k",) * 2}, "expected distinct names out of arithmetic"),
        ({"eval__ood": ("jsonl",)}, "eval.ood=jsonl: expected the path of its test split in"),
        (
            {"eval__ood": ("gsm8k", "jsonl"), "eval__ood_paths": ("x",)},
            "eval.ood_paths=('x',): expected a folder, or '', for each of eval.ood=",
        ),
        ({"eval__checkpoint": "last"}, "eval.checkpoint='last': expected best, latest or"),
    ],
)
def test_each_fault_is_named_with_what_was_expected(changes, expected):
    message = config_errors(**changes)
    assert expected in message
    assert message.count("\n") == 1  # No other fault is seen.


def test_all_faults_are_in_one_message():
    message = config_errors(
        student__dtype="float16", distill__epochs=-1, eval__split="dev", student__prompt="{}"
    )
    for key in ("student.dtype", "distill.epochs", "eval.split", "student.prompt"):
        assert f"\n  {key}=" in message


@pytest.mark.parametrize("checkpoint", ["best", "latest", "120"])
def test_checkpoints_by_name_or_step(checkpoint):
    config = defaults.get_config()
    config.eval.checkpoint = checkpoint
    checks.check(config)


def test_methods_set_their_keys_and_no_others():
    plain = config_dict.flatten(defaults.get_config())
    for method, (_, keys) in defaults.METHODS.items():
        config = defaults.apply_method(defaults.get_config(), method)
        assert config_dict.flatten(config) == plain | keys | {"method": method}
    with pytest.raises(UserError, match="Unknown method 'kpot'; expected one of kpod, scotd"):
        defaults.apply_method(defaults.get_config(), "kpot")


def test_every_key_that_is_checked_exists():
    keys = config_dict.flatten(defaults.get_config()).keys()
    assert checks.CHOICES.keys() <= keys
    assert checks.RANGES.keys() <= keys


# Methods that need what only a teacher has.
_MCC = ("mcc_kd", "mcc_kd_control")
_TEACHERS = {"arithmetic": (), "jsonl": ("scott",), "gsm8k": ("scott", *_MCC)}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", ["", *defaults.METHODS])
def test_every_file_makes_a_sound_configuration_of_every_method(file, method):
    config = importlib.import_module(f"configs.{file}").get_config(*[method] * bool(method))
    if config.data.name == "jsonl":
        config.data.path = "folder"
    if method in _TEACHERS[config.data.name]:
        with pytest.raises(UserError, match="expected a"):  # Only a teacher has what these need.
            checks.check(config)
        config.baseline.counterfactuals = config.data.rationales = "teacher.jsonl"
    checks.check(config)
    assert config.method == (method or "kpod")
    # No file brings a key that the default tree does not have.
    assert config_dict.flatten(config).keys() == config_dict.flatten(defaults.get_config()).keys()
    flat = config_dict.flatten(config)
    # What a method sets no file sets again.
    for key, value in defaults.METHODS[method or "kpod"][1].items():
        assert flat[key] == value


@pytest.mark.parametrize("file", FILES)
def test_every_file_says_how_to_run_it(file):
    module = importlib.import_module(f"configs.{file}")
    assert f"python -m kpod_jax.main --config=configs/{file}.py" in (module.__doc__ or "")


def test_every_curriculum_that_is_checked_exists():
    assert tuple(curricula.CURRICULA) == checks.CHOICES["schedule.curriculum"]
    config = defaults.get_config()
    config.schedule.curriculum = "examples.longest_first:LongestFirst"
    checks.check(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system_prompt": "Be brief."}, "system_prompt='Be brief.': expected student.chat=True"),
        ({"system_prompt": "{question}", "chat": True}, "expected a text without {question}"),
        ({"chat_template_kwargs": "{1", "chat": True}, "is not valid JSON"),
        ({"chat_template_kwargs": "[1]", "chat": True}, "expected a JSON object"),
        (
            {"chat_template_kwargs": '{"messages": []}', "chat": True},
            "'messages' cannot be set here",
        ),
        (
            {"chat_template_kwargs": '{"eos_token": ""}', "chat": True},
            "'eos_token' cannot be set here",
        ),
        ({"chat_template_kwargs": '{"a": 1e999}', "chat": True}, "is not valid JSON"),
        ({"chat_template_kwargs": '{"a": "\\ud800"}', "chat": True}, "is not valid JSON"),
        ({"date": "today"}, "student.date='today': expected YYYY-MM-DD"),
    ],
)
def test_settings_of_chat_templates(changes, said):
    config = defaults.get_config()
    config.student.update(changes)
    with pytest.raises(UserError, match=re.escape(said)):
        checks.check(config)


def test_good_settings_of_chat_templates():
    config = defaults.get_config()
    config.student.update({"chat": True, "system_prompt": "Be brief.", "date": "2024-07-26"})
    config.student.chat_template_kwargs = '{"enable_thinking": false}'
    config.export.license = "cc-by-sa-4.0"
    checks.check(config)
    config.export.license = "MIT license"
    with pytest.raises(UserError, match=r"export.license='MIT license': expected an identifier"):
        checks.check(config)
