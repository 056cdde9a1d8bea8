"""Replaces the rationales of a data set's records with a teacher's, read from a separate file."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from kpod_jax.data import answers, custom, tables
from kpod_jax.data.overlap import normalize_question
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.data.steps import split_steps
from kpod_jax.utils.errors import UserError


def apply(
    loaded: Loaded,
    source: str,
    split: str,
    *,
    kind: str,
    columns: Mapping[str, str],
    separator: str,
    source_id: Callable[[str], str] = str,
    per_question: int = 1,
) -> Loaded:
    """Replaces the records' rationales with the teacher's.

    A row has `id` (the record's id, or the id that the data set's source uses), `question` (equal
    to the record's up to whitespace and case), `rationale`, and `answer`, the answer that the
    rationale leads to. If a record has several usable rows, the first `per_question` distinct
    rationales are used.

    Args:
      loaded: one split.
      source: a JSONL or CSV file, or a Hugging Face data set, whose train split, or only split, has
        the rationales for all splits.
      split: name of the split. Training records without a usable rationale are left out; records
        of other splits, which need none, are kept unchanged.
      kind: kind of the answers.
      columns: names of the source's columns.
      separator: text that ends a step.
      source_id: returns the id that the data set's source uses for a record.
      per_question: maximum rationales per training record; 0: all. The second and later ones go
        to `Loaded.extra_rationales`, as records whose ids end in #2, #3, …. Other splits use one.

    Returns:
      The split with the teacher's rationales. Unreadable rows, and rows whose id or question
      matches no record, are broken; rows with a wrong answer, and surplus rows for a record, are
      rejected without being broken. Only the train split reports them.

    Raises:
      UserError: the source cannot be read.
    """
    names: dict[str, Record] = {source_id(record.id): record for record in loaded.records}
    names |= {record.id: record for record in loaded.records}
    unused = {
        name for id_ in loaded.other_split_ids for name in (id_, source_id(id_))
    } - names.keys()
    unused |= {bad.id for bad in [*loaded.broken, *loaded.skipped]} - names.keys()
    maximum = per_question if split == "train" else 1
    usable: dict[str, list[str]] = {}
    broken, absent, surplus, others = [], [], [], []
    for row in _rows(source):
        try:
            if row.values is None:
                raise ValueError(row.problem)
            id_ = custom.column(row.values, "id", columns)
            record = names.get(id_)
            if record is None and id_ in unused:
                others.append(id_)
                continue
            if record is None:
                raise ValueError(f"has the id {id_!r}, which no record has")
            if normalize_question(
                custom.column(row.values, "question", columns)
            ) != normalize_question(record.question):
                raise ValueError(f"has the id of {record.id}, but another question")
            rationale = custom.column(row.values, "rationale", columns)
            stated = custom.column(row.values, "answer", columns)
        except ValueError as error:
            broken.append(Rejected(row.place, f"{row.place} {error}"))
            continue
        if not answers.answers_equal(stated, record.answer, kind, record.question):
            reason = f"has the answer {stated!r}; the data set's answer is {record.answer!r}"
            absent.append(Rejected(row.place, f"{row.place} {reason}"))
        elif rationale in (kept := usable.setdefault(record.id, [])) or 0 < maximum <= len(kept):
            surplus.append(record.id)
        else:
            kept.append(rationale)
    if surplus:
        rule = {0: "they repeat others", 1: "only the first is used"}.get(
            maximum, f"only the first {maximum} are used"
        )
        reason = f"{len(surplus)} surplus rationales for {len(set(surplus))} records ({rule})"
        absent.append(Rejected(source, f"{source} has {reason}: {_examples(surplus)}"))
    if others:
        reason = f"{len(others)} rationales for records that are not in the train split"
        absent.append(Rejected(source, f"{source} has {reason}: {_examples(others)}"))
    records = [
        _with_rationale(r, usable[r.id][0], separator) if r.id in usable else r
        for r in loaded.records
    ]
    if split != "train":
        return dataclasses.replace(loaded, records=records)
    for record in loaded.records:
        if record.id not in usable:
            absent.append(Rejected(record.id, f"{source} has no usable rationale for it"))
    further = {
        record.id: [
            _with_rationale(record, rationale, separator, f"#{number}")
            for number, rationale in enumerate(usable[record.id][1:], 2)
        ]
        for record in records
        if len(usable.get(record.id, ())) > 1
    }
    return Loaded(
        [record for record in records if record.id in usable],
        loaded.broken + broken,
        loaded.skipped + absent,
        loaded.other_split_ids,
        further,
    )


def _with_rationale(record: Record, rationale: str, separator: str, suffix: str = "") -> Record:
    # Keypoints and hardness describe the old rationale only.
    steps = split_steps(rationale, separator)
    return dataclasses.replace(
        record, id=record.id + suffix, steps=steps, keypoints=None, hardness=None
    )


def _rows(source: str) -> Iterator[tables.Row]:
    path = pathlib.Path(source).expanduser()
    if not path.exists() and (path.is_absolute() or source.startswith((".", "~"))):
        raise UserError(
            f"Cannot read the teacher's rationales: {source} does not exist. Set "
            "--config.data.rationales to a JSONL or CSV file, or to a Hugging Face data set."
        )
    if path.suffix in (".csv", ".tsv"):
        return tables.csv_rows(path)
    if path.is_file() or path.suffix in (".jsonl", ".json"):
        return tables.json_lines(path)
    return tables.hub_rows(source, "train")[0]


def _examples(ids: Sequence[str]) -> str:
    unique = list(dict.fromkeys(ids))
    return ", ".join(unique[:3]) + (", …" if len(unique) > 3 else "")
