import inspect
import re

import pytest

from configs import flan_t5_large, flan_t5_xl, llama_7b
from kpod_jax.config import defaults, paper
from kpod_jax.utils import config_dict


def test_every_setting_is_a_key_of_the_configuration():
    keys = config_dict.flatten(defaults.get_config()).keys()
    assert paper.SETTINGS.keys() <= keys
    assert paper.SENSITIVITY.keys() <= paper.SETTINGS.keys()
    for student in paper.STUDENTS.values():
        assert student.settings.keys() <= keys
    for key, (low, high) in paper.SENSITIVITY.items():
        assert low <= paper.SETTINGS[key] <= high


def test_defaults_that_are_called_the_papers_are():
    source = inspect.getsource(defaults.get_config)
    # A key's comment may go on in the lines below it.
    said = re.findall(r"^    (\w+\.\w+) = .*?(#.*(?:\n    #.*)*)", source, re.MULTILINE)
    marks = [(key, word) for key, c in said for word in re.findall(r"(\S+)\s+(?:# )?\[paper\]", c)]
    assert ("weighting.alpha", "7).") in marks and len(marks) >= 12
    values = config_dict.flatten(defaults.get_config())
    for key, word in marks:
        # Behind a sentence the mark is of the default, behind a word of that value.
        assert paper.SETTINGS[key] == (values[key] if word.endswith(".") else word), key


@pytest.mark.parametrize("file", [llama_7b, flan_t5_xl, flan_t5_large])
def test_the_papers_students_have_its_settings(file):
    config = file.get_config()
    theirs = paper.settings(config.student.model, "gsm8k")
    ours = config_dict.flatten(config)
    for key in ("distill.learning_rate", "distill.epochs", "distill.batch_size"):
        assert ours[key] == theirs[key]
    assert ours["student.lora.rank"] == theirs.get("student.lora.rank", 0)
    found = paper.student(config.student.model)
    assert found is not None and found.name in (file.__doc__ or "")
    # The file's header and the table say the same.
    for method in ("kpod", "scotd", "none"):
        assert f"{found.table_1[method]['gsm8k']:.2f}" in (file.__doc__ or "")


# Written down a second time: by student the rows of Table 1, which are GSM8K, ASDiv, SVAMP,
# CommonsenseQA; Table 2 and Table 3 are of LLaMA-7B.
TABLE_1 = {
    "LLaMA-7B": {
        "none": (11.00, 40.20, 32.80, 33.90), "scotd": (38.54, 63.38, 62.67, 71.33),
        "specialized_kd": (39.15, 64.01, 63.33, 72.32), "scott": (40.97, 62.74, 61.33, 74.45),
        "mcc_kd": (41.58, 65.76, 64.67, 76.41), "kpod": (46.74, 71.02, 68.67, 77.89),
    },
    "FlanT5-XL": {
        "none": (13.50, 20.70, 17.70, 72.70), "scotd": (21.85, 25.16, 26.67, 79.61),
        "specialized_kd": (23.22, 28.03, 25.33, 81.16), "scott": (21.09, 25.48, 24.67, 83.62),
        "mcc_kd": (24.28, 31.35, 30.00, 82.88), "kpod": (25.19, 33.76, 34.67, 88.04),
    },
    "FlanT5-Large": {
        "none": (6.90, 10.10, 6.80, 67.60), "scotd": (19.42, 20.06, 19.33, 76.58),
        "specialized_kd": (20.03, 23.25, 20.67, 77.23), "scott": (18.21, 21.66, 18.67, 77.48),
        "mcc_kd": (18.36, 23.89, 21.33, 78.13), "kpod": (22.46, 27.39, 25.33, 81.41),
    },
}  # fmt: skip
TABLE_2 = {
    "without_significance": 42.64, "without_significance_in_difficulty": 44.01,
    "without_progression": 43.25, "without_diversity": 44.16, "acl": 43.55, "spl": 42.94,
    "icl": 43.85, "kpod": 46.74,
}  # fmt: skip
TABLE_3 = {"scotd": (55.09, 45.33), "kpod": (57.96, 47.33)}
EPOCHS = {
    "LLaMA-7B": (20, 40, 40, 20), "FlanT5-XL": (100,) * 4, "FlanT5-Large": (100,) * 4
}  # fmt: skip


def test_every_cell_of_the_three_tables():
    models = {student.name: model for model, student in paper.STUDENTS.items()}
    assert models.keys() == TABLE_1.keys()
    for name, model in models.items():
        found = paper.STUDENTS[model].table_1
        assert found == {
            method: dict(zip(paper.DATA, row, strict=True)) for method, row in TABLE_1[name].items()
        }
        for data, epochs in zip(paper.DATA, EPOCHS[name], strict=True):
            assert paper.settings(model, data)["distill.epochs"] == epochs
    llama = models["LLaMA-7B"]
    assert paper.TABLE_2.keys() == TABLE_2.keys()
    for method, value in TABLE_2.items():
        assert paper.accuracy(llama, "gsm8k", method, "gsm8k") == value
    for method, row in TABLE_3.items():
        assert tuple(paper.accuracy(llama, "gsm8k", method, d) for d in ("asdiv", "svamp")) == row


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
    assert paper.TABLE_2.keys() <= defaults.METHODS.keys()
    assert len(paper.TABLE_2) == 8


def test_names_are_the_same_wherever_they_are_from():
    assert not paper.differs("/models/flan-t5-large", "google/flan-t5-large")
    assert paper.differs("", "google/flan-t5-large")
    assert not paper.differs("vectors/glove.6B.300d.txt", "GloVe")
    assert not paper.differs(12, 12.0) and paper.differs(32, 4)
    assert paper.differs("", ".") and not paper.differs(".", ".")
    assert paper.differs("greedy", "ftgp")
