"""The package as it is installed: its version, its dependencies, its wheel."""

import ast
import email
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
from kpod_jax.utils import files
from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# Requirements files of the extras.
EXTRAS = {
    name: source["file"][0]
    for name, source in PYPROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"].items()
}
USERS_EXTRAS = EXTRAS.keys() - {"dev"}
# Requirements that no module imports: other libraries do, or choose them by name.
INDIRECT = {"tensorflow-metadata", "array-record"}
# Words of licences under which something may be depended on by a project under Apache-2.0.
LICENCES = re.compile(r"Apache|BSD|ISC|MIT|MPL-2\.0|PSF|Python Software Foundation|matplotlib")


def requirements(file: str) -> dict[str, str]:
    """Names of a requirements file, each with the comment above it or above its neighbours."""
    found, comment = {}, ""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("#"):
            comment = line.removeprefix("#").strip()
        elif line:
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
    known = {**known, "mlflow": ["mlflow"]}  # Also of mlflow-skinny, which is enough for tests.
    names = {m: {canonicalize_name(name) for name in known.get(m, [m])} for m in theirs}
    return {
        canonicalize_name(m) if canonicalize_name(m) in found else min(found)
        for m, found in names.items()
    }


def test_the_package_requires_what_it_imports_and_nothing_else():
    optional = {name for extra in USERS_EXTRAS for name in requirements(EXTRAS[extra])}
    required, found = requirements("requirements.txt").keys(), imported("kpod_jax")
    assert found - required - optional == set()
    assert required - found == INDIRECT


def test_every_requirement_has_its_reason():
    for file in ("requirements.txt", *EXTRAS.values()):
        found = requirements(file)
        assert found and all(len(why) > 5 for why in found.values())


def test_tests_use_the_releases_that_users_get():
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    for extra in ("gcs", "huggingface", "wandb", "trackio"):
        assert (ROOT / EXTRAS[extra]).read_text().splitlines()[-1] in lines


def test_style_is_checked_by_the_same_release_everywhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit")]
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert f"ruff=={revision.removeprefix('v')}" in lines


def test_continuous_integration_has_every_python_that_is_named_and_may_only_read():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert workflow["jobs"]["runtime"]["strategy"]["matrix"]["python"] == [named[0], named[-1]]
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(
        re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step
    )
    for step in steps:
        for target in re.findall(r"make ([\w-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == kpod_jax.__version__


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("configs/quickstart.py", "configs/quickstart.py"),
        ("configs/quickstart.py:scotd", "configs/quickstart.py:scotd"),
        ("configs/sweeps/table2.py:t5_base,seeds=3", "configs/sweeps/table2.py:t5_base,seeds=3"),
        ("configs/none.py:scotd", None),
        ("mine/quickstart.py", None),
    ],
)
def test_configurations_of_the_package_are_found_from_any_folder(
    name, found, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert files.config_file(name) == (str(ROOT / "kpod_jax" / found) if found else name)
    # One's own comes first.
    (tmp_path / name.partition(":")[0]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name.partition(":")[0]).touch()
    assert files.config_file(name) == name


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
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", *EXTRAS.values()):
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
        (pathlib.Path(below) / path.relative_to(ROOT)).as_posix()
        for below, folder in ((".", "kpod_jax"), ("kpod_jax", "configs"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == here
    assert {"kpod_jax/py.typed", "kpod_jax/assets/tiny_t5/model.safetensors"} <= names
    assert "kpod_jax/configs/sweeps/quickstart.py" in names


@pytest.mark.slow
def test_the_wheel_names_its_extras_and_addresses(installed):
    (wheel,) = installed.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras == {
        "cuda",
        "tpu",
        "gcs",
        "huggingface",
        "math",
        "wandb",
        "trackio",
        "mlflow",
        "dev",
    }
    required = metadata.get_all("Requires-Dist", [])
    assert any(re.match(r"pytest.*extra == .dev.", text) for text in required)
    assert any(re.match(r"jax<0.13,>=0.10$", text) for text in required)
    urls = [text.partition(",")[0] for text in metadata.get_all("Project-URL", [])]
    assert urls == ["Homepage", "Repository", "Issues", "Changelog"]


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
    # Nothing is beside it here: the configuration is the package's own.
    said = run(
        *(sys.executable, program, "--config=configs/quickstart.py:scotd", "--workdir=own"),
        *("--mode=rationales", "--config.data.train_examples=20", "--config.seed=3"),
    )
    assert "rationales: 20 train" in said
    code = (
        "from kpod_jax.sweep import runner\n"
        "print(*runner._load('configs/sweeps/quickstart.py:short'))\n"
    )
    assert run(sys.executable, "-c", code).split() == ["kpod-seed0", "scotd-seed0", "none-seed0"]
    # A file of the package is part of what a stage was made from, wherever one is.
    assert "file kpod_jax/assets/tiny_t5" in (tmp_path / "run/.stages/rationales.json").read_text()
