"""Model files that are damaged or hostile: one line says what is wrong, or they load right."""

import pathlib
import resource
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kpod_jax.models import hub
from kpod_jax.models.student import load_student
from kpod_jax.utils.errors import UserError
from tests.chaos import gguf_cases, model_files
from tests.models import tiny

# Of a machine that does other things, too; each took a tenth of it alone.
SECONDS = 30
MEGABYTES = 2000


def named(cases: dict[str, tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize(("change", "said"), cases.values(), ids=list(cases))


@pytest.fixture
def bounded() -> Iterator[None]:
    """Bounds the time of a test, and how much more memory it takes than any before."""
    start, before = time.monotonic(), peak()
    yield
    assert time.monotonic() - start < SECONDS
    assert peak() - before < MEGABYTES


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("llama") / "model"
    model_files.write_llama(path)
    return path


@pytest.fixture
def model(llama, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(llama, tmp_path / "model"))


def read(path: pathlib.Path) -> Any:
    """The parameters of a model, its tokenizer read as well."""
    student = load_student(str(path))
    return hub.load_params(str(path), student.abstract(tiny.one_device()), student.config)


def check(said: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Checks that a function returns if nothing is `said`, else that it raises one short line."""
    if not said:
        return function(*args, **kwargs)
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    text = str(error.value)
    assert said in text
    assert text.isprintable() and len(text) < 1000
    return None


@named(model_files.CONFIGS)
def test_a_configuration(model, bounded, change, said):
    change(model)
    tokenizer = str(model_files.ASSETS)
    check(said, load_student, str(model), init="random", tokenizer=tokenizer)


@named(model_files.TENSORS)
def test_weights(model, bounded, change, said):
    change(model)
    check(said, read, model)
    assert not pathlib.Path("/tmp/kpod_jax_unpickled").exists()


@named(model_files.TOKENIZERS)
def test_a_tokenizer(model, bounded, change, said):
    change(model)
    check(said, load_student, str(model), init="random")


@named(gguf_cases.CASES)
def test_a_gguf_file(tmp_path, bounded, change, said):
    change(tmp_path / "tiny.gguf")
    check(said, read, tmp_path / "tiny.gguf")


@pytest.mark.slow
@named(model_files.TEMPLATES)
def test_a_chat_template(model, bounded, change, said):
    model_files.settings(chat_template=change)(model)

    def ask():
        return load_student(str(model), init="random", chat=True).resolve_prompt(QUESTION)

    expected = said.removeprefix("!")
    prompt = check(said and expected if said != expected else "", ask)
    assert prompt is None or prompt == expected


QUESTION = "Q: {question}"


def test_a_chat_template_is_rendered(model):
    template = "{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}"
    model_files.settings(chat_template=template)(model)
    student = load_student(str(model), init="random", chat=True)
    assert student.resolve_prompt(QUESTION) == f"[{QUESTION}]</s>"
    model_files.settings(chat_template="{{ 'x' * 10 ** 11 }}")(model)
    student = load_student(str(model), init="random", chat=True)
    check("too much memory", student.resolve_prompt, QUESTION)


def test_random_parameters_fit_into_memory(model):
    model_files.config(hidden_size=1 << 16, intermediate_size=1 << 20, num_hidden_layers=9)(model)
    student = load_student(str(model), init="random")
    check("GB of memory", student.load, tiny.one_device())


def test_a_gguf_file_is_read_right(tmp_path):
    path = tmp_path / "tiny.gguf"
    gguf_cases.write(path, {"general.a": gguf_cases.array(gguf_cases.I32, [-1, 2])}, fill=0.5)
    params = read(path)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    assert {(8, 16), (16,), (1, 16, 4, 4), (1, 16, 32)} <= shapes
    assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(params))
