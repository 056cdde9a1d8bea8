"""Stand-ins for gcloud, xpk, srun and the like: they note their calls and answer as told."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# What the scripts may call besides; the real gcloud and the like of a machine are out of reach.
_SYSTEM = (
    "bash cat chmod dirname env git grep gzip hostname install mkdir mktemp mv nohup rm sed seq "
    "setsid sleep tail tar"
).split()
_FAKE = r"""
import json, os, pathlib, subprocess, sys, time

home = pathlib.Path(os.environ["FAKE_HOME"])
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps(argv) + "\n")
answers = json.loads((home / "answers.json").read_text())
for number, (words, replies) in enumerate(answers):
    if all(any(word in argument for argument in argv) for word in words.split()):
        count = home / f"count-{number}"
        index = int(count.read_text()) if count.exists() else 0
        count.write_text(str(index + 1))
        reply = replies[min(index, len(replies) - 1)]
        break
else:
    reply = {}
sys.stdout.write(reply.get("out", ""))
sys.stderr.write(reply.get("err", ""))
sys.stdout.flush()
time.sleep(reply.get("sleep", 0))
if reply.get("exec"):  # As ssh does: the remote shell reads the command once more.
    (command,) = [word[10:] for word in argv if word.startswith("--command=")]
    sys.exit(subprocess.run(["bash", "-c", command], cwd=home).returncode)
sys.exit(reply.get("code", 0))
"""


class Fakes:
    """A PATH of stand-ins and what they were told."""

    def __init__(self, home: pathlib.Path) -> None:
        self.home, self._bin, self._answers = home, home / "bin", []
        self._bin.mkdir()
        for name in _SYSTEM:
            found = shutil.which(name)
            assert found, f"{name} is missing on this machine"
            (self._bin / name).symlink_to(found)
        (home / "fake.py").write_text(f"#!{sys.executable} -ES\n{_FAKE}")
        (home / "fake.py").chmod(0o755)
        (home / "answers.json").write_text("[]")
        # tpu_vm.sh asks git about the repository that it is in, which locks it.
        shutil.copytree(ROOT / "launch", home / "repository/launch")

    def tool(self, *names: str) -> None:
        for name in names:
            (self._bin / name).symlink_to(self.home / "fake.py")

    def answer(self, words: str, *replies: dict) -> None:
        """Calls with all of these words get these replies in turn, the last one from then on."""
        self._answers.append((words, replies))
        (self.home / "answers.json").write_text(json.dumps(self._answers))

    def calls(self) -> list[list[str]]:
        path = self.home / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        launch = self.home / "repository/launch"
        return subprocess.Popen(
            ["env", "--default-signal=INT,TERM", "bash", str(launch / script), *arguments],
            env={
                **{key: os.environ[key] for key in ("LANG", "LC_ALL") if key in os.environ},
                "PATH": str(self._bin),
                "HOME": str(self.home),
                "FAKE_HOME": str(self.home),
                "TMPDIR": str(self.home),
                "GIT_AUTHOR_NAME": "a",
                "GIT_AUTHOR_EMAIL": "a@b",
                "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a@b",
                **environment,
            },
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **environment: str):
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)
