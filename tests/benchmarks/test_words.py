import pathlib

import numpy as np
import pytest

from benchmarks import words
from kpod_jax.data.records import Ragged, Record
from kpod_jax.report.run import Run
from kpod_jax.utils.errors import UserError

STEPS = ("Now Anna has twice 3.5 pens, so 7 + 2 = 9.", " The sum Anna got is 9!", " Anna can sing.")


def run_of(weigh):
    """A run of one record, a token a word, weighed by its text."""
    record = Record("a", "What?", STEPS, "9")
    text = record.rationale
    pieces = text.replace(".5", "_5").replace(".", " .").replace(",", " ,").replace("!", " !")
    spans, start = [], 0
    for piece in pieces.replace("_5", ".5").split():
        start = text.index(piece, start)
        spans.append((start, start + len(piece)))
        start += len(piece)
    weights = [weigh(text[a:b]) for a, b in spans]
    return Run(
        pathlib.Path("run"),
        records=(record,),
        weights=Ragged.from_list([np.array(weights, np.float32)]),
        spans=Ragged.from_list([np.array(spans)]),
    )


def test_words_are_counted_by_their_kind():
    kinds = words.by_kind(run_of(len))
    numbers, operators, units, equals, arithmetic, names, light, plain, marks = kinds.values()
    assert numbers == [3, 1, 1, 1, 1]
    assert (operators, units, equals) == ([1], [], [1])
    assert arithmetic == [5, 3]  # twice, sum
    assert names == [4, 4, 4]  # The last one begins a sentence.
    assert light == [3, 3]  # got, can
    assert plain == [3, 3, 4, 2, 3, 2, 4]  # Now has pens so The is sing
    assert len(marks) == 4


def test_the_table_says_how_often_a_kind_is_above_ordinary_words():
    rows = words.table(run_of(lambda text: 0.9 if text[0].isdigit() else 0.1))
    assert "| number | 5 | 0.90 | 1.00 |" in rows
    assert "| name | 3 | 0.10 | 0.50 |" in rows
    assert "| ordinary word | 7 | 0.10 | - |" in rows


def test_a_run_without_weights_is_turned_down():
    with pytest.raises(UserError, match="--mode=weigh"):
        words.table(Run(pathlib.Path("run")))
