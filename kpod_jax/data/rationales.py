"""A teacher's rationales for the records of a data set, from a file of its own."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from kpod_jax.data import answers, custom, tables
from kpod_jax.data.overlap import normalised
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
    own_id: Callable[[str], str] = str,
    per_question: int = 1,
) -> Loaded:
    """Gives records the teacher's rationales in place of their own.

    A row has `id` (a record's, or the one that its source has for it), `question` (the record's, up
    to white space and case), `rationale`, and `answer`, the one that the rationale leads to. Of
    several good rows for a record the first `per_question` that differ count.

    Args:
      loaded: a split.
      source: a JSONL or CSV file, or a Hugging Face data set, whose train split, or only one, has
        the rationales for all splits.
      split: its name. Training records that the teacher has no good rationale for are left out;
        those of other splits, of which none is needed, stay as they are.
      kind: of the answers.
      columns: names of the source's columns.
      separator: that ends a step.
      own_id: the id that the data set's source has for a record.
      per_question: most rationales of a training record; 0: all. The second and later ones are
        `Loaded.further`, as records whose ids end in #2, #3, …. Other splits get one.

    Returns:
      The split with them. Of the source's rows, those that cannot be read, fit no record or have
      another question are broken; those with another answer than the gold one, and all further
      rows for a record, are rejected without being broken. The train split reports for all.

    Raises:
      UserError: the source cannot be read at all.
    """
    names: dict[str, Record] = {own_id(record.id): record for record in loaded.records}
    names |= {record.id: record for record in loaded.records}
    unused = {name for id_ in loaded.elsewhere for name in (id_, own_id(id_))} - names.keys()
    unused |= {bad.id for bad in [*loaded.broken, *loaded.absent]} - names.keys()
    most = per_question if split == "train" else 1
    found: dict[str, list[str]] = {}
    broken, absent, more, others = [], [], [], []
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
            if normalised(custom.column(row.values, "question", columns)) != normalised(
                record.question
            ):
                raise ValueError(f"has another question than {record.id}, its id")
            rationale = custom.column(row.values, "rationale", columns)
            stated = custom.column(row.values, "answer", columns)
        except ValueError as error:
            broken.append(Rejected(row.place, f"{row.place} {error}"))
            continue
        if not answers.answers_equal(stated, record.answer, kind):
            reason = f"has the answer {stated!r} where the data set's is {record.answer!r}"
            absent.append(Rejected(row.place, f"{row.place} {reason}"))
        elif rationale in (kept := found.setdefault(record.id, [])) or 0 < most <= len(kept):
            more.append(record.id)
        else:
            kept.append(rationale)
    if more:
        counts = {0: "they repeat others", 1: "the first counts"}.get(
            most, f"the first {most} count"
        )
        reason = f"{len(more)} further rationales, for {len(set(more))} records; {counts}"
        absent.append(Rejected(source, f"{source} has {reason}: {_some(more)}"))
    if others:
        reason = f"{len(others)} rationales for records that are not in the train split"
        absent.append(Rejected(source, f"{source} has {reason}: {_some(others)}"))
    records = [_given(r, found[r.id][0], separator) if r.id in found else r for r in loaded.records]
    if split != "train":
        return dataclasses.replace(loaded, records=records)
    for record in loaded.records:
        if record.id not in found:
            absent.append(Rejected(record.id, f"{source} has no usable rationale for it"))
    further = {
        record.id: [
            _given(record, rationale, separator, f"#{number}")
            for number, rationale in enumerate(found[record.id][1:], 2)
        ]
        for record in records
        if len(found.get(record.id, ())) > 1
    }
    return Loaded(
        [record for record in records if record.id in found],
        loaded.broken + broken,
        loaded.absent + absent,
        loaded.elsewhere,
        further,
    )


def _given(record: Record, rationale: str, separator: str, mark: str = "") -> Record:
    # What is known of the old rationale does not hold for the new one.
    steps = split_steps(rationale, separator)
    return dataclasses.replace(
        record, id=record.id + mark, steps=steps, keypoints=None, hardness=None
    )


def _rows(source: str) -> Iterator[tables.Row]:
    path = pathlib.Path(source).expanduser()
    if not path.exists() and (path.is_absolute() or source.startswith((".", "~"))):
        raise UserError(
            f"There is no {source} to read a teacher's rationales from; set "
            "--config.data.rationales to a JSONL or CSV file, or to a Hugging Face data set."
        )
    if path.suffix in (".csv", ".tsv"):
        return tables.csv_rows(path)
    if path.is_file() or path.suffix in (".jsonl", ".json"):
        return tables.json_lines(path)
    return tables.hub_rows(source, "train")[0]


def _some(ids: Sequence[str]) -> str:
    kinds = list(dict.fromkeys(ids))
    return ", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else "")
