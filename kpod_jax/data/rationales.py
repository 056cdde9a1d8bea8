"""Replaces the rationales of a data set's records with a teacher's, read from a separate file."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kpod_jax.data import answers, custom, jsonl, matching, tables
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import files
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

    A row has `id` (the record's id, or the id that the data set's source uses) or `question` (the
    record's, as `matching` compares them) or both; `rationale`; and `answer`, the answer that the
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
      The split with the teacher's rationales, and a note that counts the matches. Unreadable rows,
      rows that match no record or several, and rows whose question is not that of the record with
      their id, are broken; rows with a wrong answer, and surplus rows for a record, are rejected
      without being broken. Only the train split reports them.

    Raises:
      UserError: the source cannot be read.
    """
    match = _Matcher(loaded, source_id)
    maximum = per_question if split == "train" else 1
    usable: dict[str, list[str]] = {}
    broken, absent, surplus, others = [], [], [], []
    total = 0
    for row in _rows(source):
        total += 1
        try:
            if row.values is None:
                raise ValueError(row.problem)
            record, id_ = match(row.values, columns)
            if record is None:
                others.append(id_)
                continue
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
    matched = ", ".join(f"{count} by {how}" for how, count in match.counts.items())
    unmatched = total - sum(match.counts.values()) - len(others)
    note = (
        f"{total} rationales in {source}: matched to questions {matched}; {len(others)} of other "
        f"splits; {unmatched} not matched"
    )
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
        extra_rationales=further,
        notes=[*loaded.notes, note],
    )


class _Matcher:
    """Finds the record of a row.

    Attributes:
      counts: number of rows matched by "id and text", "id alone" and "text alone".
    """

    def __init__(self, loaded: Loaded, source_id: Callable[[str], str]) -> None:
        self.counts = dict.fromkeys(("id and text", "id alone", "text alone"), 0)
        self._records = {record.id: record for record in loaded.records}
        self._names = {source_id(id_): id_ for id_ in self._records}
        self._names |= {id_: id_ for id_ in self._records}
        others = {n for id_ in loaded.other_split_ids for n in (id_, source_id(id_))}
        others |= {bad.id for bad in [*loaded.broken, *loaded.skipped]}
        self._others = others - self._names.keys()
        self._questions = matching.Questions((r.id, r.question) for r in loaded.records)
        self._other_questions = matching.Questions(
            ("", question) for question in loaded.other_split_questions
        )

    def __call__(
        self, row: Mapping[str, Any], columns: Mapping[str, str]
    ) -> tuple[Record | None, str]:
        """Returns the record, or None if it is in another split, and its name for the user.

        Raises:
          ValueError: the row matches no record or several, or has the id of one with another
            question.
        """
        has_id = row.get(columns.get("id", "id")) not in (None, "")
        question = _question(row, columns, required=not has_id)
        given = custom.column(row, "id", columns) if has_id else ""
        found = self._questions.find(question) if question else []
        id_ = self._names.get(given)
        if id_ is not None:
            if question and id_ not in found:
                raise ValueError(f"has the id of {id_}, but another question")
            self.counts["id and text" if question else "id alone"] += 1
        elif given in self._others:
            return None, given
        elif len(found) == 1:
            id_ = found[0]
            self.counts["text alone"] += 1
        elif found:
            raise ValueError(f"has the question of several records: {_examples(found)}")
        elif question and self._other_questions.find(question):
            return None, given or f"{question:.40}"
        else:
            what = f"id {given!r}" if given else f"question {question!r:.80}"
            raise ValueError(f"has the {what}, which no record has")
        return self._records[id_], id_


def _question(row: Mapping[str, Any], columns: Mapping[str, str], *, required: bool) -> str:
    """Returns the question of a row, also if it is divided as SVAMP, ASDiv or CommonsenseQA do."""
    name = columns.get("question", "question")
    if isinstance(value := row.get(name), Mapping):
        return jsonl.text_column(value, "stem", required=required)
    parts = [row.get(part) for part in ("Body", "Question")]
    if name in ("question", "Question") and all(isinstance(part, str) for part in parts):
        return " ".join(map(str, parts)).strip()
    return custom.column(row, "question", columns, required=required)


def _with_rationale(record: Record, rationale: str, separator: str, suffix: str = "") -> Record:
    # Keypoints and hardness describe the old rationale only.
    steps = split_steps(rationale, separator)
    return dataclasses.replace(
        record, id=record.id + suffix, steps=steps, keypoints=None, hardness=None
    )


def _rows(source: str) -> Iterator[tables.Row]:
    path = files.expand(source)
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
