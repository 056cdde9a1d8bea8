"""docs/configuration.md is what the configuration and its comments make of it."""

from kpod_jax.cli import reference
from kpod_jax.config import defaults, paper
from kpod_jax.utils import config_dict


def test_the_page_is_up_to_date():
    page = reference.PAGE.read_text()
    assert page == reference.text(), "python -m kpod_jax.cli.reference --write"


def test_every_key_and_no_other_is_explained():
    blocks, keys = reference.explanations()
    assert sorted(keys) == sorted(config_dict.flatten(defaults.get_config()))
    assert {key: said for key, said in keys.items() if len(said) < 5} == {}
    assert blocks.keys() == {key.rpartition(".")[0] for key in keys} - {""}


def test_comments_of_every_kind_are_read():
    blocks, keys = reference.explanations()
    assert keys["schedule.p"] == "Exponent of the velocity (Eq. 10). [paper]"
    assert keys["teacher.base_url"].endswith("The API key is read from OPENAI_API_KEY only.")
    assert keys["baseline.formats"] == "specialized_kd: formats of the data. [paper: these four]"
    assert blocks["baseline"].startswith("Keys of individual methods")  # Above the block,
    assert blocks["monitoring"].startswith("Monitoring of the training")  # or behind it.


def test_a_row_has_what_is_allowed_and_the_papers_value():
    rows = {
        line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in reference.text().splitlines()
        if line.startswith("| `")
    }
    assert rows["schedule.beta"][1:4] == ["`12.0`", "float, at least 0", "`12.0`, (10 to 16)"]
    assert rows["schedule.solver"][2:4] == ["one of `greedy`, `ftgp`", "`ftgp`"]
    assert rows["student.lora.rank"][3] == "`64` (LLaMA-7B), `128` (FlanT5-XL)"
    theirs = {key for key, row in rows.items() if row[3]}
    assert theirs == paper.SETTINGS.keys() | {
        key for student in paper.STUDENTS.values() for key in student.settings
    } | {"distill.epochs"}
