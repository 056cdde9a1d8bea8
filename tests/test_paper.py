import inspect
import re

import pytest

from configs import flan_t5_large, flan_t5_xl, llama_7b
from kpod_jax import configuration, paper


def test_every_setting_is_a_key_of_the_configuration():
    keys = configuration.flatten(configuration.default()).keys()
    assert paper.SETTINGS.keys() <= keys
    assert paper.SENSITIVITY.keys() <= paper.SETTINGS.keys()
    for student in paper.STUDENTS.values():
        assert student.settings.keys() <= keys
    for key, (low, high) in paper.SENSITIVITY.items():
        assert low <= paper.SETTINGS[key] <= high


def test_defaults_that_are_called_the_papers_are():
    source = inspect.getsource(configuration.default)
    found = re.findall(r"^    (\w+)\.(\w+) = .*\[paper\]$", source, re.MULTILINE)
    keys = [f"{room}.{key}" for room, key in found]
    assert "weighting.alpha" in keys and len(keys) >= 9
    defaults = configuration.flatten(configuration.default())
    for key in keys:
        assert paper.SETTINGS[key] == defaults[key], key


@pytest.mark.parametrize("file", [llama_7b, flan_t5_xl, flan_t5_large])
def test_the_papers_students_have_its_settings(file):
    config = file.get_config()
    theirs = paper.settings(config.student.model, "gsm8k")
    ours = configuration.flatten(config)
    for key in ("distill.learning_rate", "distill.epochs", "distill.batch_size"):
        assert ours[key] == theirs[key]
    assert ours["student.lora.rank"] == theirs.get("student.lora.rank", 0)
    found = paper.student(config.student.model)
    assert found is not None and found.name in (file.__doc__ or "")
    # The file's header and the table say the same.
    for method in ("kpod", "scotd", "none"):
        assert f"{found.table_1[method]['gsm8k']:.2f}" in (file.__doc__ or "")


def test_cells_of_the_three_tables():
    llama = "huggyllama/llama-7b"
    assert paper.accuracy(llama, "gsm8k", "kpod", "gsm8k") == 46.74
    assert paper.accuracy(llama, "svamp", "scotd", "svamp") == 62.67
    assert paper.accuracy(llama, "gsm8k", "spl", "gsm8k") == 42.94
    assert paper.accuracy(llama, "gsm8k", "kpod", "asdiv") == 57.96
    assert paper.accuracy("google/flan-t5-xl", "commonsense_qa", "kpod", "commonsense_qa") == 88.04
    for model, data, method, tested in (
        ("google/flan-t5-base", "gsm8k", "kpod", "gsm8k"),  # No student of the paper.
        ("google/flan-t5-xl", "gsm8k", "spl", "gsm8k"),  # Table 2 is of LLaMA-7B.
        (llama, "svamp", "spl", "svamp"),
        (llama, "gsm8k", "none", "asdiv"),
        (llama, "arithmetic", "kpod", "arithmetic"),
    ):
        assert paper.accuracy(model, data, method, tested) is None


def test_table_2_holds_methods_that_exist():
    assert paper.TABLE_2.keys() <= configuration.METHODS.keys()
    assert len(paper.TABLE_2) == 8


def test_names_are_the_same_wherever_they_are_from():
    assert not paper.differs("/models/flan-t5-large", "google/flan-t5-large")
    assert paper.differs("", "google/flan-t5-large")
    assert not paper.differs("vectors/glove.6B.300d.txt", "GloVe")
    assert not paper.differs(12, 12.0) and paper.differs(32, 4)
    assert paper.differs("", ".") and not paper.differs(".", ".")
    assert paper.differs("greedy", "ftgp")
