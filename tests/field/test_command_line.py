"""Wrong calls are one line and exit code 2; signals end a run that the same command resumes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

import kpod_jax as kpod
from kpod_jax import main, pipeline
from kpod_jax.config import defaults
from kpod_jax.evaluation import significance
from kpod_jax.sweep import comparison, runner
from kpod_jax.utils import signals
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT

QUICKSTART = "--config=configs/quickstart.py"


def said(capsys, *arguments: str) -> str:
    """What a wrong command prints: one line, with exit code 2."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", *arguments])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "_run", main._config)  # The checks, before any work.
            main.main(["main"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and not printed.out
    (line,) = printed.err.splitlines()
    return line


def key(text: str) -> tuple[str, str]:
    return QUICKSTART, f"--config.{text}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/quickstar.py"], "did you mean 'configs/quickstart.py'?"),
        (["--config=configs/t5-base.py"], "did you mean 'configs/t5_base.py'?"),
        (["--config=configs/quickstart"], "did you mean 'configs/quickstart.py'?"),
        (["--config=quickstart"], "did you mean 'configs/quickstart.py'?"),
        (["--config=elsewhere/zzz.py"], "there are configs/flan_t5_large.py, configs/"),
        (["--config="], "Missing --config, such as --config=configs/quickstart.py."),
        (["--config=configs/quickstart.py:kpot"], "'kpot'; expected one of kpod, scotd"),
        (["--config=configs/quickstart.py:skotd"], "(did you mean 'scotd'?)"),
        ([QUICKSTART, "--mode=repor"], "--mode=repor: expected one of all, rationales"),
        ([QUICKSTART, "--mode=Eval"], "(did you mean 'eval'?)"),
        ([QUICKSTART, "--mode", "exprt"], "(did you mean 'export'?)"),
        ([QUICKSTART, "--wrkdir=x"], "--wrkdir: no such flag (did you mean 'workdir'?)"),
        ([QUICKSTART, "--distill.epochs=3"], "did you mean --config.distill.epochs?"),
        ([QUICKSTART, "--parallel=two"], "--parallel=two: invalid literal"),
        ([QUICKSTART, "run"], "'run' is no flag"),
        (["run", QUICKSTART], "'run' is no flag"),
        ([QUICKSTART, QUICKSTART], "--config is given 2 times"),
        ([QUICKSTART, "--workdir=a", "--workdir", "b"], "--workdir is given 2 times"),
        ([*key("seed=1"), "--config.seed=2"], "--config.seed is given twice, as 1 and 2"),
        (key("distil.epochs=3"), "'distil.epochs' (did you mean 'distill.epochs'?)"),
        (key("distill.epoch=3"), "(did you mean 'distill.epochs'?)"),
        (key("distill.learning-rate=1"), "(did you mean 'distill.learning_rate'?)"),
        (key("epochs=3"), "(did you mean 'distill.epochs'?)"),
        (key("student.rank=3"), "(did you mean 'student.lora.rank'?)"),
        (key("zzz=3"), "No such configuration key: 'zzz'."),
        (key("distill=3"), "distill is a section of the configuration"),
        (key("distill.epochs"), "has no value; expected --config.distill.epochs=VALUE"),
        (key("distill.epochs=three"), "distill.epochs=three: expected an integer"),
        (key("distill.epochs=1.5"), "expected an integer"),
        (key("distill.epochs="), "expected an integer"),
        (key("distill.learning_rate=fast"), "expected a number"),
        (key("student.chat=maybe"), "expected True or False"),
        (key("data.arithmetic.operations=2,x"), "expected integers separated by commas"),
        (key("data.arithmetic.operations=(2,3,4)"), "expected a minimum and a maximum in 1 to 8"),
        (key("distill.epochs=-1"), "Invalid configuration: distill.epochs=-1: expected at least 0"),
        (key("distill.learning_rate=nan"), "distill.learning_rate=nan: expected at least"),
        (key("distill.learning_rate=inf"), "and finite"),
        (key("distill.learning_rate=0"), "distill.learning_rate=0.0: expected above 0"),
        (key("weighting.learning_rate=0"), "expected above 0"),
        (key("seed=99999999999"), "seed=99999999999: expected 0 to 2147483647"),
        (key("data.name=gsm8kk"), "(did you mean 'gsm8k'?)"),
        (key("data.name=GSM-8K"), "(did you mean 'gsm8k'?)"),
        (key("data.name=commonsenseqa"), "(did you mean 'commonsense_qa'?)"),
        (key("eval.ood=asdiv,svmap"), "(did you mean 'svamp'?)"),
        (key("schedule.curriculum=kpdo"), "(did you mean 'kpod'?)"),
        (key("weighting.weights=learnt"), "(did you mean 'learned'?)"),
        (key("distill.optimizer=AdamW"), "(did you mean 'adamw'?)"),
        ([*key("weighting.fit=fresh"), "--config.data.name=gsm8k"], "weighting.fit='fresh': only"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, expected, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = said(capsys, *arguments)
    assert line.startswith("error: ") and expected in line


BEGIN = "from kpod_jax.config import defaults\n\n\ndef get_config(method='kpod'):\n"
TREE = "    config = defaults.get_config()\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BEGIN + "    config = f(\n    return config\n", ", line 5: SyntaxError: '(' was never"),
        (BEGIN + TREE + "  return config\n", ", line 6: IndentationError: "),
        (BEGIN + TREE + "    config.seed = int('x')\n", ", line 6: ValueError: invalid literal"),
        (BEGIN + TREE + "    config.distil.epochs = 3\n", ", line 6: AttributeError: 'distil' Did"),
        (BEGIN + TREE + "    config.seed = '3'\n", ", line 6: TypeError: Could not override"),
        (BEGIN + TREE, "what get_config() returns is of type NoneType"),
        (BEGIN + "    return {'seed': 1}\n", "what get_config() returns is of type dict"),
        ("import nothing_here\n", ", line 1: ModuleNotFoundError: No module named 'nothing_here'"),
        ("import sys\nsys.exit(3)\n", ", line 2: SystemExit: 3"),
        ("config = 1\n", "does not define get_config"),
        ("", "does not define get_config"),
        ("def get_config():\n    return 1\n", "TypeError: get_config() takes 0 positional"),
    ],
)
def test_an_error_in_a_configuration_names_its_line(text, expected, capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    argument = ":scotd" if "takes 0" in expected else ""
    line = said(capsys, f"--config={path}{argument}")
    assert line.startswith(f"error: --config={path}") and expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_runs(argument):\n    return {}['a']\n", ", line 2: KeyError: a"),
        ("def get_runs(argument):\n    return {'a': 1}\n", "the run 'a' is of type int"),
        ("def get_runs(:\n", ", line 1: SyntaxError"),
        (None, "did you mean"),
    ],
)
def test_an_error_in_a_sweep_names_its_line(text, expected, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text or "")
    with pytest.raises(UserError, match=r"^--sweep=") as told:
        runner._load(str(path) if text else "configs/sweeps/quickstrat.py")
    assert expected in str(told.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("student.lora.targets", "q,v", ("q", "v")),
        ("student.lora.targets", "q", ("q",)),
        ("student.lora.targets", "('q', 'v')", ("q", "v")),
        ("student.lora.targets", "[q, v]", ("q", "v")),
        ("student.lora.targets", "all-linear", ("all-linear",)),
        ("eval.ood", "", ()),
        ("eval.ood_paths", ",runs/x", ("", "runs/x")),
        ("data.arithmetic.operations", "2,3", (2, 3)),
        ("baseline.format_weights", "1,2,3,4.5", (1.0, 2.0, 3.0, 4.5)),
        ("distill.learning_rate", "1e-4", 1e-4),
        ("distill.equal_tokens", "true", True),
        ("student.prompt", "{question}, please", "{question}, please"),
    ],
)
def test_a_value_is_read_as_its_keys_type(name, text, value, monkeypatch):
    monkeypatch.chdir(ROOT)
    forms = [[f"--config.{name}={text}"]] + [[f"--config.{name}", text]] * (text != "true")
    for arguments in forms:
        with flagsaver.flagsaver():
            main.parse_flags(["main", *arguments, QUICKSTART])  # In any order.
            config = flags.FLAGS.config
    block, _, last = name.rpartition(".")
    for part in block.split("."):
        config = config[part]
    assert config[last] == value and type(config[last]) is type(value)
    changed = kpod.load_config(**{name.replace(".", "__"): text if value != text else value})
    assert changed.to_dict() != defaults.get_config().to_dict() or value in ((), ("q", "v"))


@pytest.mark.parametrize("mode", ["report", "eval", "export", "score", "distill"])
def test_a_later_stage_begins_no_work_directory(mode, tmp_path):
    for root, what in ((tmp_path / "missing", "does not exist"), (tmp_path, "holds no run")):
        with pytest.raises(UserError, match=f"--mode={mode} reads .* {what}"):
            pipeline.run(defaults.get_config(), root, mode)
    assert not list(tmp_path.iterdir())


def test_runs_without_predictions_are_not_compared(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a/predictions/test.jsonl. Run --mode=eval"):
        significance.compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_no_training_is_no_distillation(tmp_path):
    config = kpod.load_config(distill__epochs=0)
    assert defaults.method_name(defaults.trained_method(config)) == "no distillation"
    plain = defaults.apply_method(defaults.get_config(), "scotd")
    labels = [label for label, _ in comparison._variants({"a": plain, "b": config}).values()]
    assert labels == ["SCoTD", "no distillation"]


@pytest.fixture
def handlers():
    """Signal handlers, as they were afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("looks", [0, 1])
def test_a_signal_in_a_loop_ends_it(number, looks, handlers):
    """Whether the loop looks again, and says what it saved, or not, as in the last validation."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup may have it ignored.
    signals.raise_on(signal.SIGINT, signal.SIGTERM)
    with pytest.raises(signals.Preempted) as told, signals.deferred() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        if looks and stop():
            raise signals.Preempted("saved")
    assert isinstance(told.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert told.value.exit_code == 128 + number
    what = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}[number]
    text = f"{what}{': saved' * looks}. Run the same command to resume."
    assert str(told.value) == text
    os.kill(os.getpid(), number)  # Delivered twice by a launcher: it does not end the saving.


def test_a_notebook_keeps_its_own_interrupt(handlers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # As under nohup.
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGINT)


# Small, and with a checkpoint before the last step.
SMALL = (
    QUICKSTART,
    "--config.data.train_examples=24",
    "--config.data.validation_examples=8",
    "--config.data.test_examples=6",
    "--config.weighting.answerer=",
    "--config.weighting.fit=same",
    "--config.weighting.fit_unmasked_steps=2",
    "--config.weighting.fit_masked_steps=2",
    "--config.weighting.steps=2",
    "--config.weighting.batch_size=8",
    "--config.weighting.min_gap=-99",
    "--config.weighting.allow_failed=True",
    "--config.weighting.prefixes=sampled",
    "--config.schedule.phase_steps=0",
    "--config.distill.epochs=2",
    "--config.distill.batch_size=8",
    "--config.distill.buckets=1",
    "--config.distill.checkpoint_every=2",
    "--config.eval.max_new_tokens=8",
)


def run(workdir: pathlib.Path, point: str = "", name: str = "SIGTERM") -> tuple[int, list[str]]:
    """Runs SMALL and sends a signal at a point; returns the code and the lines that tell of it."""
    command = [sys.executable, "-m", "tests.field.signalled", point, name, *SMALL]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if "Run the same" in line]


@pytest.mark.parametrize("module", ["jax._src.api", "numpy.linalg", "absl.flags"])
def test_an_interrupted_import_is_one_line(module, tmp_path):
    told = run(tmp_path / "run", f"import:{module}", "SIGINT")
    assert told == (130, ["Interrupted. Run the same command to resume."])
    assert not (tmp_path / "run").exists()


LEARN, ADVICE = "kpod_jax.weighting.learn", ". Run the same command to resume."


@pytest.mark.slow
def test_signals_at_the_last_moment_are_obeyed_and_change_no_bit(tmp_path):
    assert run(tmp_path / "whole") == (0, [])
    for point, name, line in (
        (f"{LEARN}:make_fit_step:4", "SIGTERM", "Terminated: saved the answerer at step 4"),
        (f"{LEARN}:make_learn_step:2", "SIGINT", "Interrupted: saved the generator at step 2"),
        ("kpod_jax.parallel.processes:barrier:4", "SIGTERM", "Terminated"),  # Between stages.
        ("kpod_jax.pipeline:make_validation:1", "SIGTERM", "Terminated"),
    ):
        code = 128 + getattr(signal, name)
        assert run(tmp_path / "ended", point, name) == (code, [line + ADVICE])
        if "barrier" in point:
            shutil.copytree(tmp_path / "ended", tmp_path / "last")
    step = ("kpod_jax.training.loop:make_train_step:6", "SIGINT")
    told = "Interrupted: saved the student at step 6" + ADVICE
    assert run(tmp_path / "last", *step) == (130, [told])
    for workdir in (tmp_path / "ended", tmp_path / "last"):
        assert not (workdir / "results.json").exists()
        assert run(workdir) == (0, [])
        assert results(workdir) == results(tmp_path / "whole")


def results(workdir: pathlib.Path) -> list[object]:
    """Weights, losses, validation, predictions and results of a run."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "validation_accuracy", "answer_loss")
    files = ("token_weights.npz", "predictions/test.jsonl", "results.json")
    values = [[row[name] for row in rows if name in row] for name in names]
    return [*values, *((workdir / file).read_bytes() for file in files)]
