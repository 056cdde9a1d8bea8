"""Data sets by name: the built-in one, published ones, and a user's own."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.data import arithmetic, asdiv, commonsense_qa, gsm8k, own, rationales, svamp
from kpod_jax.data.published import SPLITS, DataSet, Splits
from kpod_jax.data.records import Loaded, Record, Rejected, check_bad_share
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

PUBLISHED: dict[str, DataSet] = {
    module.DATA_SET.name: module.DATA_SET for module in (gsm8k, asdiv, svamp, commonsense_qa)
}
NAMES = ("arithmetic", *PUBLISHED, *own.FORMATS)


def answer_kind(name: str, given: str = "") -> str:
    """The kind of a data set's answers: the one that is given, else its own, else number."""
    if given:
        return given
    kind = PUBLISHED.get(name) or own.class_of(name)
    return "number" if kind is None else kind.answer_kind


def note(name: str, splits: Splits) -> str:
    """What a user should know of a data set's splits; "" for nothing."""
    return PUBLISHED[name].notes.get(splits, "") if name in PUBLISHED else ""


def input_files(name: str, path: str, splits: Splits) -> list[pathlib.Path]:
    """The files of a folder that a data set is read from, of those that there are."""
    if _is_own(name):
        return own.files_of(name, path)
    if name not in PUBLISHED or not path:
        return []
    data_set, folder = PUBLISHED[name], pathlib.Path(path).expanduser()
    names = [*data_set.files.get(splits, ()), data_set.instead]
    return [folder / name for name in names if (folder / name).is_file()]


def load_records(
    name: str,
    split: str,
    *,
    path: str = "",
    splits: Splits = "paper",
    rationales: str = "",
    columns: Mapping[str, str] | None = None,
    kind: str = "",
    cache_dir: str = "",
    separator: str = "",
    limit: int = 0,
    max_bad_share: float = 0.01,
    need_rationales: bool = True,
    per_question: int = 1,
    task: arithmetic.Task | None = None,
) -> tuple[list[Record], list[Rejected]]:
    """Loads one split of a data set.

    Args:
      name: one of NAMES, or package.module:Class, an `own.OwnDataSet`.
      split: "train", "validation" or "test".
      path: where the data set's own files lie. Published ones: the folder of their original files;
        empty downloads them. A user's own: see `own.load`.
      splits: of a published data set: "paper", or "official", its own, whose validation split is a
        tenth of its train split.
      rationales: a teacher's rationales, see `rationales.apply`; empty: the data set's own.
      columns: names of the user's columns, by those of `own.COLUMNS`: of the data set if that is
        the user's own, else of `rationales`.
      kind: of the answers; empty: the data set's own.
      cache_dir: where prepared TFDS files go; empty: TFDS_DATA_DIR or ~/tensorflow_datasets.
      separator: that ends a step; empty: see `split_steps`. The built-in task knows its steps.
      limit: the first so many records only; 0 is all. The built-in task makes as many as are asked.
      max_bad_share: of the split's records that may be broken.
      need_rationales: whether a training record without a rationale is of no use; if not, it is
        returned without steps, for a teacher to be asked.
      per_question: most rationales of a training question, 0 for all of `rationales`; each is a
        record. The built-in task makes as many as are asked for; other data sets have one each.
      task: the knobs of the built-in task; None is the default task.

    Returns:
      The records, in the order of their source, those of one question side by side, and those that
      cannot be used: broken ones and those that are left out, each with its reason.

    Raises:
      UserError: an unknown name or split, files that are missing or unreadable, no records, or too
        many broken ones; the message names the first.
    """
    _check(name, split, limit)
    columns = own.COLUMNS | dict(columns or {})
    # Whether the names of columns are those of the data set: else they are the teacher's.
    theirs = name in own.FORMATS
    needed = need_rationales and not rationales
    if name in PUBLISHED and split == "train" and needed and not PUBLISHED[name].has_rationales:
        raise UserError(
            f"{PUBLISHED[name].title} has no rationales to train on. Set --config.data.rationales "
            'to a teacher\'s file: a line is {"id", "question", "rationale", "answer"}, as '
            "docs/data.md explains."
        )
    if name == "arithmetic":
        task = task or arithmetic.Task()
        loaded = _load_arithmetic(task, split, cache_dir, limit, whole=bool(rationales))
    elif _is_own(name):
        named = columns if theirs else own.COLUMNS
        loaded = own.load(
            name, split, path, columns=named, separator=separator, need_rationale=needed
        )
    else:
        loaded = _load_published(
            name, split, path, splits, cache_dir, separator, needed, whole=bool(rationales)
        )
    if rationales and split != "test":
        loaded = _taught(
            loaded,
            rationales,
            split,
            kind=answer_kind(name, kind),
            columns=own.COLUMNS if theirs else columns,
            separator=separator,
            own_id=PUBLISHED[name].own_id if name in PUBLISHED else str,
            per_question=per_question,
        )
    rejected = loaded.broken + loaded.absent
    check_bad_share(loaded.broken, len(loaded.records) + len(rejected), max_bad_share)
    if not loaded.records:
        reasons = "; ".join(f"{bad.id}: {bad.reason}" for bad in rejected[:3])
        raise UserError(
            f"The {split} split of {name} has no records{f' in {path}' if path else ''}"
            f"{f' that can be used: {reasons}' if reasons else ''}. Expected at least one."
        )
    records = loaded.records[: limit or None]
    if name == "arithmetic" and not rationales and split == "train":
        assert task is not None
        several = (
            arithmetic.rationales_per_question(r, max(1, per_question), task.verbosity)
            for r in records
        )
        return list(itertools.chain.from_iterable(several)), rejected
    return [r for first in records for r in (first, *loaded.further.get(first.id, ()))], rejected


# `rationales` is a name of the interface.
_taught = rationales.apply


def _is_own(name: str) -> bool:
    return name in own.FORMATS or plugins.is_path(name)


def _check(name: str, split: str, limit: int) -> None:
    if name not in NAMES and not plugins.is_path(name):
        raise UserError(f"Unknown data set {name!r}; expected one of {', '.join(NAMES)}.")
    if limit < 0:
        raise UserError(f"A limit of {limit} records is not possible; expected 0 (all) or more.")
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; expected one of {', '.join(SPLITS)}.")


def _load_arithmetic(
    task: arithmetic.Task, split: str, cache_dir: str, limit: int, whole: bool
) -> Loaded:
    # TFDS takes a second to import, and a user's own file does without it.
    from kpod_jax.data import builders

    sizes = dict(builders.ARITHMETIC_SIZES)
    sizes[split] = max(limit, sizes[split])
    config = builders.ArithmeticConfig.of(sizes, task)
    builder = builders.prepared(builders.KpodArithmetic, config, cache_dir)
    loaded = Loaded()
    for row in _rows(builder, split, 0 if whole else limit):
        keypoints = tuple((int(start), int(end)) for start, end in row["keypoints"])
        loaded.records.append(
            Record(
                id=row["id"],
                question=row["question"],
                steps=tuple(step.decode() for step in row["steps"]),
                answer=row["answer"],
                keypoints=keypoints,
                hardness=tuple(map(float, row["hardness"])),
            )
        )
    return loaded


def _load_published(
    name: str,
    split: str,
    path: str,
    splits: Splits,
    cache_dir: str,
    separator: str,
    need_rationale: bool,
    whole: bool,
) -> Loaded:
    """One split; with `whole` the ids of the others, too."""
    from kpod_jax.data import builders

    kind = builders.PUBLISHED[name]
    builder = builders.prepared(kind, kind.config_of(splits, path), cache_dir)
    loaded = Loaded()
    for bad, broken in builder.rejected(split):
        (loaded.broken if broken else loaded.absent).append(bad)
    for part in builder.info.splits:
        if part != split and not whole:
            continue
        for row in _rows(builder, part):
            id_, own_steps = row["id"], split_steps(row["rationale"], separator)
            if part != split:
                loaded.elsewhere.add(id_)
            elif own_steps or split != "train" or not need_rationale:
                loaded.records.append(Record(id_, row["question"], own_steps, row["answer"]))
            elif row["problem"]:
                reason = f"no rationale can be made for it: {row['problem']}"
                loaded.absent.append(Rejected(id_, reason))
            else:
                loaded.broken.append(Rejected(id_, "its rationale is empty"))
    return loaded


def _rows(builder: Any, split: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a prepared split, texts decoded."""
    source = builder.as_data_source(split)
    for row in source.__getitems__(range(min(limit or len(source), len(source)))):
        yield {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
