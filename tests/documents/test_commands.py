"""Every command and every piece of code in the documents does what it is shown to do, cheaply.

Commands of this repository are parsed by their real flags, configurations loaded and checked,
launch scripts run dry, Python is executed. What is not has a reason in EXCEPTIONS.
"""

import ast
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags
from packaging.requirements import Requirement

import kpod_jax as kpod
from kpod_jax import main
from kpod_jax.aot import steps
from kpod_jax.cli import checks
from kpod_jax.sweep import runner
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT
from tests.documents.markdown import BLOCKS, Block
from tests.test_api import SHORT

# Programs that are not tried, each with its reason.
EXCEPTIONS = {
    "cd": "of a clone",
    "export": "it sets a key",
    "gcloud": "needs an account",
    "git": "needs a network",
    "llama/bin/python": "a server that is no requirement",
    "lm_eval": "lm-evaluation-harness is no requirement; tests/evaluation/test_harness.py runs it",
    "scancel": "ends a job of SLURM",
    "tail": "follows a log of SLURM",
    "vllm": "a server that is no requirement",
}
# Begins the table that the quickstart prints.
_TABLE = "method "
_SHELL = ("", "text", "sh", "bash", "shell")


def shell_commands() -> list[tuple[str, str]]:
    """(page, command) of all blocks that are of a shell."""
    found = []
    for block in BLOCKS:
        if block.language in _SHELL and not block.text.startswith(_TABLE):
            for line in block.commands():
                if not is_data(line):
                    found += [(block.page, part) for part in line.split(" && ")]
    return found


def is_data(line: str) -> bool:
    return line.startswith(("{", " "))


def parse_main(arguments: list[str], monkeypatch) -> flags.FlagValues:
    """Flags of kpod_jax.main, parsed by its own definitions."""
    values = flags.FlagValues()
    for holder in main._FLAGS:
        if holder.name != "config":
            values[holder.name] = copy.deepcopy(flags.FLAGS[holder.name])
    config_flags.DEFINE_config_file("config", None, lock_config=True, flag_values=values)
    argv = ["main", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # The configuration's flag looks for its keys there.
    assert values(argv) == ["main"]
    return values


def check_main(arguments: list[str], monkeypatch) -> None:
    values = parse_main(arguments, monkeypatch)
    if values.mode == "sweep":
        assert runner._load(values.sweep)  # Checks each configuration.
    elif values.mode == "compare":
        assert len(values.runs) >= 2
    elif values.mode == "compile":
        assert re.fullmatch(r"v\w+:\d+x\d+(x\d+)?", values.topology)
        assert set(values.steps) <= set(steps.STEPS)
    elif values.mode != "heatmap":
        assert values.config is not None, "--config is missing"
    if values.config is not None:
        checks.check(values.config)
    assert values.workdir or values.mode in ("compare", "compile", "plan")


def check_module(name: str, arguments: list[str]) -> None:
    """Flags of a module that is run, as its source (and that of benchmarks.tables) defines them."""
    path = ROOT / (name.replace(".", "/") + ".py")
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    sources = [path.read_text()]
    if "import tables" in sources[0] or ", tables" in sources[0]:
        sources.append((ROOT / "benchmarks/tables.py").read_text())
    values = flags.FlagValues()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
            define = getattr(flags, ast.unparse(node.func).removeprefix("flags."))
            define(*map(ast.literal_eval, node.args), flag_values=values)
    assert len(values([name, *arguments])) == 1


def check_launch(script: str, arguments: list[str], monkeypatch) -> None:
    """Runs a script dry; what follows -- are flags of kpod_jax.main."""
    before, after = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        before, after = arguments[:place], arguments[place + 1 :]
        check_main(after, monkeypatch)
    done = subprocess.run(
        ["bash", script, *before, "--dry-run", *(["--", *after] if after else [])],
        cwd=ROOT,
        env=os.environ | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def check_pip(arguments: list[str]) -> None:
    words = iter(arguments)
    for word in words:
        if word == "-r":
            assert (ROOT / next(words)).is_file()
        elif word in (".", "--no-deps"):
            pass
        elif match := re.fullmatch(r"\.\[([\w,]+)\]", word):
            tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
            extras = tools["setuptools"]["dynamic"]["optional-dependencies"]
            assert set(match[1].split(",")) <= extras.keys()
        else:
            Requirement(word)


def check_command(command: str, monkeypatch) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, arguments = words[0], words[1:]
    if program == "..." or program.startswith("--config."):
        # The beginning of the command is left out: any that suits.
        program, arguments = "kpod-jax", arguments if program == "..." else words
        arguments = ["--config=configs/flan_t5_xl.py", "--workdir=x", *arguments]
    if program.rpartition("/")[2] in ("python", "python3") and "llama" not in program:
        assert arguments[0] == "-m"
        module, arguments = arguments[1], arguments[2:]
        if module == "kpod_jax.main":
            program = "kpod-jax"
        elif module == "pip":
            program, arguments = "pip", arguments
        elif module in ("venv", "pytest"):
            return
        else:
            check_module(module, arguments)
            return
    if program == "kpod-jax":
        check_main(arguments, monkeypatch)
    elif program.startswith("launch/"):
        check_launch(program, arguments, monkeypatch)
    elif program == "sbatch":
        place = next(i for i, word in enumerate(arguments) if word.startswith("launch/"))
        assert all(word.startswith("--") for word in arguments[:place])
        check_launch(arguments[place], arguments[place + 1 :], monkeypatch)
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        if shutil.which("make"):
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program.rpartition("/")[2] == "pip":
        assert arguments[0] == "install"
        check_pip(arguments[1:])
    elif program == "docker":
        docker(arguments, monkeypatch)
    elif program in ("ruff", "pyright", ".ci/run"):
        pass  # Continuous integration runs them.
    else:
        assert program in EXCEPTIONS, f"{command}: try it here, or add a reason to EXCEPTIONS"


def docker(arguments: list[str], monkeypatch) -> None:
    if arguments[0] == "build":
        text = (ROOT / arguments[arguments.index("--file") + 1]).read_text()
        assert f" AS {arguments[arguments.index('--target') + 1]}\n" in text
    else:
        assert arguments[0] == "run"
        image = next(i for i, word in enumerate(arguments) if word.startswith("kpod-jax:"))
        check_main(arguments[image + 1 :], monkeypatch)


@pytest.fixture
def at_the_root(monkeypatch, tmp_path):
    """The repository's root as the working directory, with modules that documents call theirs."""
    (block,) = (block for block in BLOCKS if "class LongestFirst" in block.text)
    (tmp_path / "my_file.py").write_text(block.text)
    (block,) = (block for block in BLOCKS if "def get_config" in block.text)
    (tmp_path / "mine.py").write_text(block.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


@pytest.mark.parametrize(("page", "command"), shell_commands())
def test_commands_are_accepted(page, command, at_the_root, monkeypatch):
    command = command.replace("--config=mine.py", f"--config={at_the_root / 'mine.py'}")
    check_command(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python -m kpod_jax.main --config=configs/t5_base.py --workdir=x --config.no.key=3",
        "python -m kpod_jax.main --config=configs/t5_base.py --workdir=x --no_flag=3",
        "python -m kpod_jax.main --config=configs/none.py --workdir=x",
        "python -m kpod_jax.main --config=configs/t5_base.py:kpot --workdir=x",
        "python -m kpod_jax.main --config=configs/t5_base.py --workdir=x --mode=wiegh",
        "python -m benchmarks.schedule --wirte",
        "launch/tpu_vm.sh run --nmae kpod -- --config=configs/t5_base.py --workdir=x",
        "make quickstrat",
        "pip install -r requirement.txt",
        "frobnicate --all",
    ],
)
def test_a_wrong_command_is_seen(command, at_the_root, monkeypatch):
    wrong = (
        AssertionError,
        OSError,
        KeyError,
        AttributeError,
        UserError,
        flags.Error,
        subprocess.CalledProcessError,
    )
    with pytest.raises(wrong):
        check_command(command, monkeypatch)


def test_inline_commands_of_modules_are_accepted(at_the_root, monkeypatch):
    """`python -m …` in the text: complete ones; others are the beginning of a command."""
    found = 0
    for page in sorted({block.page for block in BLOCKS}):
        text = re.sub(r"\s+", " ", (ROOT / page).read_text())
        for command in re.findall(r"(?<!`)`(python -m (?:benchmarks|kpod_jax)[^`]*)`", text):
            module, *arguments = shlex.split(command)[2:]
            if module != "kpod_jax.main":
                check_module(module, arguments)
                found += 1
    assert found >= 6


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=repr)
def test_python_runs(block: Block, monkeypatch, tmp_path):
    if "import lm_eval" in block.text:
        compile(block.text, block.page, "exec")
        pytest.skip(EXCEPTIONS["lm_eval"])
    space: dict[str, object] = {"__name__": "documents"}
    if "kpod.load_config" in block.text:  # The configuration is what takes minutes.
        config = kpod.load_config("configs/quickstart.py", **SHORT)
        monkeypatch.setattr(kpod, "load_config", lambda name: config, raising=False)
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    exec(compile(block.text, block.page, "exec"), space)
    if "get_config" in space:
        get_config: Any = space["get_config"]
        checks.check(get_config())
        assert get_config("scotd").method == "scotd"


def test_lines_of_data_are_json():
    found = 0
    for block in BLOCKS:
        if block.language in _SHELL and '{"' in block.text:
            text = block.text.replace(", …", "").replace("\n ", " ")
            for line in text.splitlines():
                if is_data(line):
                    assert {"question", "rationale"} <= json.loads(line).keys()
                    found += 1
    assert found >= 5


def test_no_exception_is_stale():
    programs = {shlex.split(command)[0] for _, command in shell_commands()}
    assert programs >= EXCEPTIONS.keys()


def test_every_language_is_known():
    assert {b.language for b in BLOCKS} <= {*_SHELL, "python", "yaml", "math", "json"}
