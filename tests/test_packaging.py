"""The package as it is installed: its version, its dependencies, its wheel."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kpod_jax
from kpod_jax import main
from kpod_jax.cli import usage
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Requirements that no module imports: other libraries do, or choose them by name.
INDIRECT = {"tensorflow-metadata", "array-record"}
# Words of licences under which something may be depended on by a project under Apache-2.0.
LICENCES = re.compile(r"Apache|BSD|MIT|MPL-2\.0|PSF|Python Software Foundation|matplotlib")


def requirements(file: str) -> dict[str, str]:
    """Names of a requirements file, each with the comment above it or above its neighbours."""
    found, comment = {}, ""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("#"):
            comment = line.removeprefix("#").strip()
        elif line and not line.startswith("-r"):
            found[canonicalize_name(Requirement(line).name)] = comment
    return found


def imported(folder: str) -> set[str]:
    """Names of distributions whose modules are imported anywhere in a folder."""
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").partition(".")[0])
    known = importlib.metadata.packages_distributions()
    theirs = modules - set(sys.stdlib_module_names) - {"kpod_jax", "configs", "tests", "benchmarks"}
    # A module of several distributions, such as a namespace, is taken as that of its own name.
    names = {m: {canonicalize_name(name) for name in known.get(m, [m])} for m in theirs}
    return {
        canonicalize_name(m) if canonicalize_name(m) in found else min(found)
        for m, found in names.items()
    }


def test_the_package_requires_what_it_imports_and_nothing_else():
    optional = {
        canonicalize_name(Requirement(text).name)
        for extra in PROJECT["optional-dependencies"].values()
        for text in extra
    }
    required, found = requirements("requirements.txt").keys(), imported("kpod_jax")
    assert found - required - optional == set()
    assert required - found == INDIRECT


def test_every_requirement_has_its_reason():
    for file in ("requirements.txt", "requirements-dev.txt"):
        found = requirements(file)
        assert found and all(len(why) > 5 for why in found.values())


@pytest.mark.parametrize(
    "name", sorted({**requirements("requirements.txt"), **requirements("requirements-dev.txt")})
)
def test_licences_go_with_ours(name):
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("it is not installed")
    said = [
        *(value[:200] for value in metadata.get_all("License-Expression") or []),
        *(value[:200] for value in metadata.get_all("License") or []),
        *(c for c in metadata.get_all("Classifier") or [] if c.startswith("License")),
    ]
    assert LICENCES.search(" ".join(said)), said
    assert not re.search(r"\bA?GPL|Affero", " ".join(said))


def test_there_is_one_version():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+", kpod_jax.__version__)
    elsewhere = (ROOT / "CITATION.cff", ROOT / "README.md", ROOT / "pyproject.toml")
    assert not any(f'"{kpod_jax.__version__}"' in path.read_text() for path in elsewhere)
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_the_citation_is_of_the_paper():
    text = (ROOT / "CITATION.cff").read_text()
    cited = yaml.safe_load(text)
    paper = cited["preferred-citation"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert paper["title"] == "Keypoint-based Progressive Chain-of-Thought Distillation for LLMs"
    assert paper["authors"][0] == {"family-names": "Feng", "given-names": "Kaituo"}
    assert paper["year"] == 2024 and "2405.16064" in paper["identifiers"][0]["value"]


def test_help_explains_every_mode_then_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m kpod_jax.main --config=FILE")
    modes, flags = text.split("Modes\n")[1].split("Examples\n")
    assert re.findall(r"^  (\w+) ", modes, re.MULTILINE) == list(usage.MODES)
    source = (ROOT / "kpod_jax/main.py").read_text()
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    assert sorted(re.findall(r"^  --(\w+)$", flags, re.MULTILINE)) == sorted([*defined, "helpfull"])
    assert "<" not in flags  # Values of an enum stand above.


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """The package, built as a wheel from what is not ignored and installed into a folder."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    shutil.copytree(
        ROOT / "kpod_jax", source / "kpod_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--wheel-dir", str(folder)]
    try:  # Without a network, where what builds it is here.
        if int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77:
            options.append("--no-build-isolation")
    except importlib.metadata.PackageNotFoundError:
        pass
    subprocess.run([*pip, "wheel", *options, str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.slow
def test_the_wheel_holds_all_files_of_the_package_and_no_others(installed):
    (wheel,) = installed.glob("*.whl")
    assert wheel.name == f"kpod_jax-{kpod_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kpod_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == here
    assert {"kpod_jax/py.typed", "kpod_jax/assets/tiny_t5/model.safetensors"} <= names


@pytest.mark.slow
def test_an_installed_copy_works_anywhere(installed, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(installed / "installed"),
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    (tmp_path / "mine.py").write_text(
        "from kpod_jax.config import defaults\n\n\n"
        "def get_config(method='kpod'):\n"
        "    config = defaults.get_config()\n"
        "    config.data.train_examples = 20\n"
        "    return defaults.apply_method(config, method or 'kpod')\n"
    )
    # A curriculum of one's own, beside it.
    (tmp_path / "beside.py").write_text("class Mine:\n    pass\n")

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = (
        "import kpod_jax, pathlib\n"
        "from kpod_jax.models.hub import load_config\n"
        "from kpod_jax.data.tokenizers import load_tokenizer\n"
        "name = 'kpod_jax/assets/tiny_t5'\n"
        "assert len(load_tokenizer(name)) <= load_config(name).vocab_size\n"
        "print(pathlib.Path(kpod_jax.__file__).parent)\n"
    )
    where = run(sys.executable, "-c", code).strip()
    assert where == str(installed / "installed" / "kpod_jax")
    program = str(installed / "installed" / "bin" / "kpod-jax")
    assert run(sys.executable, program, "--help").startswith("usage: ")
    said = run(
        *(sys.executable, program, "--config=mine.py", "--workdir=run", "--mode=rationales"),
        "--config.schedule.curriculum=beside:Mine",
    )
    assert "rationales: 20 train" in said
    assert (tmp_path / "run" / "records" / "train.jsonl").is_file()
    # A file of the package is part of what a stage was made from, wherever one is.
    assert "file kpod_jax/assets/tiny_t5" in (tmp_path / "run/.stages/rationales.json").read_text()
