"""Loads data sets by name: built-in, published or custom."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.config.loading import section
from kpod_jax.data import arithmetic, asdiv, commonsense_qa, custom, gsm8k, rationales, svamp
from kpod_jax.data.published import SPLITS, DataSet, Splits
from kpod_jax.data.record_store import RecordStore, chunks
from kpod_jax.data.records import Loaded, Record, Rejected, check_rejected_fraction
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import files, plugins
from kpod_jax.utils.errors import UserError, one_of

PUBLISHED: dict[str, DataSet] = {
    module.DATA_SET.name: module.DATA_SET for module in (gsm8k, asdiv, svamp, commonsense_qa)
}
NAMES = ("arithmetic", *PUBLISHED, *custom.FORMATS)


def answer_kind(name: str, given: str = "") -> str:
    """Returns `given` if it is set, else the data set's answer kind, else "number"."""
    if given:
        return given
    data_set = PUBLISHED.get(name) or custom.class_of(name)
    return "number" if data_set is None else data_set.answer_kind


def note(name: str, splits: Splits) -> str:
    """Returns a note for the user about a data set's splits, or ""."""
    return PUBLISHED[name].notes.get(splits, "") if name in PUBLISHED else ""


def notes(settings: Config) -> list[str]:
    """Returns notes for the user about how the data set of `data` of a configuration is read.

    Raises:
      UserError: it cannot be read.
    """
    if settings.name in custom.FORMATS:
        return custom.notes(settings.name, settings.path, settings.columns.to_dict())
    return list(filter(None, [note(settings.name, settings.splits)]))


def input_files(name: str, path: str, splits: Splits) -> list[pathlib.Path]:
    """Returns the existing files of a folder that a data set is read from."""
    if _is_custom(name):
        return custom.files_of(name, path)
    if name not in PUBLISHED or not path:
        return []
    data_set, folder = PUBLISHED[name], files.expand(path)
    names = [*data_set.files.get(splits, ()), data_set.single_file]
    return [folder / name for name in names if (folder / name).is_file()]


def load_records(
    data: str | Config,
    split: str = "train",
    limit: int | None = None,
    *,
    need_rationales: bool = True,
    notes: list[str] | None = None,
    **changes: Any,
) -> tuple[list[Record], list[Rejected]]:
    """Loads one split of a data set.

    Args:
      data: `data` of a configuration; or a name, one of NAMES or package.module:Class
        (`CustomDataSet`), with defaults for all other settings.
      split: "train", "validation" or "test".
      limit: maximum number of questions, the first ones; 0: all; None: the configured number. The
        built-in task generates as many as requested.
      need_rationales: whether training records without a rationale are rejected; if False, they
        are returned without steps.
      notes: receives notes for the user.
      **changes: keys of `data` in a configuration, such as `path`, with values that override it.

    Returns:
      The records in source order, with all records for a question next to each other; and the
      rejected records, broken or left out, each with the reason.

    Raises:
      UserError: the name or split is unknown, a file is missing or unreadable, there are no
        records, or too many are broken; the message lists the first broken ones.
    """
    records, rejected = stream_records(
        data, split, limit, need_rationales=need_rationales, notes=notes, **changes
    )
    return list(records), rejected


def stream_records(
    data: str | Config,
    split: str = "train",
    limit: int | None = None,
    *,
    need_rationales: bool = True,
    notes: list[str] | None = None,
    **changes: Any,
) -> tuple[Iterator[Record], list[Rejected]]:
    """Loads one split as `load_records` does, but yields its records one by one."""
    settings = section("data", data, changes)
    name = settings.name
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}; {one_of(split, SPLITS)}.")
    limit = int(settings[f"{split}_examples"]) if limit is None else limit
    _check(name, limit)
    columns = settings.columns.to_dict()
    # `data.columns` names the columns of a custom file, else those of the teacher's file.
    is_file = name in custom.FORMATS
    teacher_source, separator = settings.rationales, settings.step_separator
    required = need_rationales and not teacher_source
    if name in PUBLISHED and split == "train" and required and not PUBLISHED[name].has_rationales:
        raise UserError(
            f"{PUBLISHED[name].title} has no rationales to train on. Set --config.data.rationales "
            'to a teacher\'s file with lines {"id", "question", "rationale", "answer"}; see '
            "docs/data.md."
        )
    if name == "arithmetic":
        loaded = _load_arithmetic(settings, split, limit, whole=bool(teacher_source))
    elif _is_custom(name):
        loaded = custom.load(
            name,
            split,
            settings.path,
            columns=columns if is_file else custom.COLUMNS,
            separator=separator,
            kind=answer_kind(name, settings.answer_kind),
            need_rationale=required,
            others=bool(teacher_source),
        )
    else:
        loaded = _load_published(settings, split, required, whole=bool(teacher_source))
    if teacher_source and split != "test":
        loaded = rationales.apply(
            loaded,
            teacher_source,
            split,
            kind=answer_kind(name, settings.answer_kind),
            columns=custom.COLUMNS if is_file else columns,
            separator=separator,
            source_id=PUBLISHED[name].source_id if name in PUBLISHED else str,
            per_question=settings.rationales_per_question,
        )
    if notes is not None:
        notes += loaded.notes
    rejected = loaded.broken + loaded.skipped
    check_rejected_fraction(
        loaded.broken, len(loaded.records) + len(rejected), settings.max_rejected_fraction
    )
    if not loaded.records:
        reasons = "; ".join(f"{bad.id}: {bad.reason}" for bad in rejected[:3])
        where = f" in {settings.path}" if settings.path else ""
        raise UserError(
            f"The {split} split of {name} has no records{where}"
            f"{f' that can be used: {reasons}' if reasons else ''}. Expected at least one."
        )
    records = itertools.islice(loaded.records, limit or None)
    if name == "arithmetic" and not teacher_source and split == "train":
        count, verbosity = max(1, settings.rationales_per_question), settings.arithmetic.verbosity
        groups = (arithmetic.rationales_per_question(r, count, verbosity) for r in records)
        return itertools.chain.from_iterable(groups), rejected
    extra = loaded.extra_rationales
    return (r for first in records for r in (first, *extra.get(first.id, ()))), rejected


def fresh_records(config: Config) -> list[Record]:
    """Generates new problems of the built-in task to fit an answerer on (`weighting.fit=fresh`)."""
    if config.weighting.fit != "fresh":
        return []
    # Differs from the seed used to train the shipped answerers.
    count, task = config.weighting.fit_fresh_examples, config.data.arithmetic.to_dict()
    return arithmetic.generate("fresh", count, config.seed + 1, arithmetic.Task(**task))


def _is_custom(name: str) -> bool:
    return name in custom.FORMATS or plugins.is_path(name)


def _check(name: str, limit: int) -> None:
    if name not in NAMES and not plugins.is_path(name):
        raise UserError(f"Unknown data set {name!r}; {one_of(name, NAMES)}.")
    if limit < 0:
        raise UserError(f"Expected a limit of 0 (all) or more records, got {limit}.")


def _load_arithmetic(settings: Config, split: str, limit: int, whole: bool) -> Loaded:
    # Importing TFDS takes a second, and custom files do not need it.
    from kpod_jax.data import builders

    sizes = dict(builders.ARITHMETIC_SIZES)
    sizes[split] = max(limit, sizes[split])
    task = arithmetic.Task(**settings.arithmetic.to_dict())
    config = builders.ArithmeticConfig.of(sizes, task)
    builder = builders.prepare_builder(builders.KpodArithmetic, config, settings.cache_dir)
    return Loaded(
        RecordStore(
            Record(
                id=row["id"],
                question=row["question"],
                steps=tuple(step.decode() for step in row["steps"]),
                answer=row["answer"],
                keypoints=tuple((int(start), int(end)) for start, end in row["keypoints"]),
                hardness=tuple(map(float, row["hardness"])),
            )
            for row in _rows(builder, split, 0 if whole else limit)
        )
    )


def _load_published(settings: Config, split: str, need_rationale: bool, whole: bool) -> Loaded:
    """Loads one split and, with `whole`, the ids of the other splits."""
    from kpod_jax.data import builders

    builder_type, separator = builders.PUBLISHED[settings.name], settings.step_separator
    config = builder_type.config_of(settings.splits, settings.path)
    builder = builders.prepare_builder(builder_type, config, settings.cache_dir)
    store = RecordStore()
    loaded = Loaded(store)
    for bad, broken in builder.rejected(split):
        (loaded.broken if broken else loaded.skipped).append(bad)
    for part in filter(lambda part: part != split, builder.info.splits if whole else ()):
        for row in _rows(builder, part):
            loaded.other_split_ids.add(row["id"])
            loaded.other_split_questions.append(row["question"])

    def records() -> Iterator[Record]:
        for row in _rows(builder, split) if split in builder.info.splits else ():
            id_, steps = row["id"], split_steps(row["rationale"], separator)
            if steps or split != "train" or not need_rationale:
                yield Record(id_, row["question"], steps, row["answer"])
            elif row["problem"]:
                reason = f"no rationale can be derived for it: {row['problem']}"
                loaded.skipped.append(Rejected(id_, reason))
            else:
                loaded.broken.append(Rejected(id_, "its rationale is empty"))

    store.extend(records())
    return loaded


def _rows(builder: Any, split: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the rows of a prepared split, with bytes decoded."""
    source = builder.as_data_source(split)
    for places in chunks(range(min(limit or len(source), len(source)))):
        for row in source.__getitems__(places):
            yield {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
