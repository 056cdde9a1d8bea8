from absl import flags

from benchmarks import datasets
from kpod_jax.data.records import Record
from kpod_jax.data.tokenizers import load_tokenizer

flags.FLAGS.mark_as_parsed()


def test_a_row_counts_what_is_at_hand(shared_data, tmp_path):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "t5_spiece.model"))
    samples = datasets._folder_of("asdiv", str(shared_data))
    row = datasets.row("asdiv", samples, str(tmp_path), tokenizer)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == datasets.HEADER[0].count("|") - 1
    assert cells[:3] == [
        "ASDiv",
        "14 / 3 / 3 (20 available of 1462 / 313 / 314)",
        "1.0 (to 1)",
    ]
    assert cells[5:] == ["100.00%", "0", "20 of 20", "none"]


def test_an_answer_that_is_not_read_back_is_seen():
    record = Record("a", "q", ("So 5.",), "5")
    assert datasets.agrees(record, "Therefore, the answer is {answer}.", "number")
    assert not datasets.agrees(record, "Therefore, the answer is 6, not {answer}.", "number")
    choice = Record("a", "q", ("Not (A).",), "B")
    assert datasets.agrees(choice, "Therefore, the answer is {answer}.", "choice")
