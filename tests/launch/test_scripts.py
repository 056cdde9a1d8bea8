"""What holds for every launch script: shellcheck, help, dry runs, words that keep their form."""

import pathlib
import re
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.launch.conftest import Fakes

SCRIPTS = sorted(
    path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch")
)
KPOD = ("--config=configs/t5_base.py", "--workdir=gs://bucket/run")
# A whole command line of each script, and the tool that it calls.
LINES = {
    "tpu_vm.sh": ("run --name n --zone z-1a --type v6e-8", "gcloud"),
    "gke_xpk.sh": ("run --name n --cluster c --type v6e-8 --image i:1 --build", "xpk"),
    "slurm.sbatch": ("", "srun"),
}
HOSTILE = ("--a=two words", "--b='$HOME' \"$(id)\" `id` \\", "--c=x\ny\t!*?[a]{b,c}~;&|<>#", "")


def test_shellcheck_finds_nothing():
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    assert shellcheck.exists(), "pip install -r requirements-dev.txt"
    result = subprocess.run(
        [shellcheck, "--external-sources", *(f"launch/{name}" for name in SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert len(SCRIPTS) == 5


@pytest.mark.parametrize("script", LINES)
def test_help_names_every_option(fakes, script):
    result = fakes.run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: ")
    assert "set -euo" not in result.stdout
    text = (ROOT / "launch" / script).read_text()
    options = set(re.findall(r"^ +(--[a-z-]+)[ |)]", text, re.MULTILINE))
    assert {"--dry-run", "--help"} < options
    assert {option for option in options if option not in result.stdout} == set()


@pytest.mark.parametrize("script", LINES)
def test_dry_run_needs_no_tool_calls_none_and_prints_what_bash_reads_back(fakes, script):
    line = LINES[script][0].split()
    dry = fakes.run(script, *line, "--dry-run", "--", *KPOD, *HOSTILE)
    assert (dry.returncode, dry.stderr) == (0, "")
    before = sorted(path.name for path in fakes.home.iterdir())
    assert before == ["answers.json", "bin", "fake.py", "repository"]  # It wrote nothing either.
    # Pasted, the printed lines call the tools with just the arguments that the script would.
    tools = ("gcloud", "xpk", "docker", "srun", "install")
    printed = [line for line in dry.stdout.splitlines() if line.split()[0] in tools]
    (fakes.home / "bin" / "install").unlink()
    fakes.tool(*tools)
    (fakes.home / "pasted.sh").write_text("\n".join(printed))
    assert fakes.run(str(fakes.home / "pasted.sh")).returncode == 0
    assert len(fakes.calls()) == len(printed) > 0


@pytest.mark.parametrize("script", LINES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: [*line, "--nonsense"], "--nonsense: unknown"),
        (lambda line: [*line, "--dry-run", "--"], "nothing after --"),
        (lambda line: [*line, "--dry-run", "--", "--config=configs/t5_base.py"], "--workdir"),
        (lambda line: [*line, "--", *KPOD], "not"),  # The tool is not there.
    ],
)
def test_errors_exit_with_2_and_say_why(fakes, script, change, said):
    result = fakes.run(script, *change(LINES[script][0].split()), SLURM_JOB_ID="1")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("script", "line", "said"),
    [
        ("tpu_vm.sh", "", "no command"),
        ("tpu_vm.sh", "run --zone z-1a", "--name is missing"),
        ("tpu_vm.sh", "run --name", "--name needs a value"),
        ("tpu_vm.sh", "run --name n", "--zone is missing"),
        ("tpu_vm.sh", "run --name N_1 --zone z-1a", "--name N_1: expected"),
        ("tpu_vm.sh", "run --name n --zone z-1a", "--type is missing"),
        ("tpu_vm.sh", "run --name n --zone z-1a --type v9-8", "--runtime"),
        ("tpu_vm.sh", "run --name n --zone z-1a --type v6e-8 --poll soon", "--poll soon"),
        ("tpu_vm.sh", "run --name n --zone z-1a --type v6e-8 --env-file gone", "gone cannot be"),
        (
            "tpu_vm.sh",
            "run --name n --zone z-1a --type v6e-8 --repo https://me:secret@host/r -- --workdir=gs://b",
            "holds a password",
        ),
        (
            "tpu_vm.sh",
            "run --name n --zone z-1a --type v6e-8 -- --workdir=runs/x",
            "--workdir=runs/x (after --): expected gs://",
        ),
        ("gke_xpk.sh", "", "no command"),
        ("gke_xpk.sh", "run --name n", "--cluster is missing"),
        ("gke_xpk.sh", "run --name n --cluster c", "--type is missing"),
        ("gke_xpk.sh", "run --name n --cluster c --type v6e-8", "--image is missing"),
        ("slurm.sbatch", "--processes 8 -- --workdir=x", "expected gpu or node"),
        ("slurm.sbatch", "-- --workdir=x", "this is no SLURM job"),
    ],
)
def test_missing_and_wrong_arguments(fakes, script, line, said):
    fakes.tool("gcloud", "xpk", "srun")
    result = fakes.run(script, *line.split())
    assert result.returncode == 2
    assert said in result.stderr
    assert "secret" not in result.stderr
    assert fakes.calls() == []


words = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
    | st.text("$'\"\\(){}`! \n~ab#&", max_size=12),
    min_size=1,
    max_size=4,
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(words)
def test_quoted_words_are_read_back_as_they_were(given):
    def bash(*arguments: str) -> str:
        result = subprocess.run(["bash", "-c", *arguments], capture_output=True, check=True)
        return result.stdout.decode()

    quoted = bash(f'DRY=; source "{ROOT}/launch/common.sh"; quoted "$@"', "bash", *given)
    assert bash(f"printf '%s\\0' {quoted}").split("\0")[:-1] == given


@hypothesis.settings(
    max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(words)
@hypothesis.example(["a\n$$b'$(HOME)", "$$ $(HOME)", "\u2028é"])
def test_words_pass_through_xpk_and_kubernetes_as_they_were(tmp_path_factory, given):
    fakes = Fakes(tmp_path_factory.mktemp("xpk"))
    fakes.tool("xpk")
    line = "run --name n --cluster c --type v6e-8 --image i:1 -- --workdir=gs://b".split()
    assert fakes.run("gke_xpk.sh", *line, *given).returncode == 0
    (command,) = [word for word in fakes.calls()[0] if word.startswith("--command=")]
    command = command.removeprefix("--command=")
    assert re.fullmatch(r"[ -~]+", command)  # One line for YAML.
    # Kubernetes: $$ is $, $(NAME) a variable.
    expanded = re.sub(r"\$(\$|\(\w*\))", lambda m: "$" if m[1] == "$" else "VARIABLE", command)
    prefix = "python -u -m kpod_jax.main --workdir=gs://b "
    assert expanded.startswith(prefix)
    result = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {expanded.removeprefix(prefix)}"],
        capture_output=True,
        check=True,
    )
    assert result.stdout.decode().split("\0")[:-1] == given
