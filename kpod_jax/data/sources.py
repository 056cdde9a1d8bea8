"""Data sets by name: the built-in one, published ones, and a user's own."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.data import arithmetic, asdiv, commonsense_qa, custom, gsm8k, rationales, svamp
from kpod_jax.data.published import SPLITS, DataSet, Splits
from kpod_jax.data.records import Loaded, Record, Rejected, check_rejected_fraction
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

PUBLISHED: dict[str, DataSet] = {
    module.DATA_SET.name: module.DATA_SET for module in (gsm8k, asdiv, svamp, commonsense_qa)
}
NAMES = ("arithmetic", *PUBLISHED, *custom.FORMATS)


def answer_kind(name: str, given: str = "") -> str:
    """The kind of a data set's answers: the one that is given, else its own, else number."""
    if given:
        return given
    kind = PUBLISHED.get(name) or custom.class_of(name)
    return "number" if kind is None else kind.answer_kind


def note(name: str, splits: Splits) -> str:
    """What a user should know of a data set's splits; "" for nothing."""
    return PUBLISHED[name].notes.get(splits, "") if name in PUBLISHED else ""


def input_files(name: str, path: str, splits: Splits) -> list[pathlib.Path]:
    """The files of a folder that a data set is read from, of those that there are."""
    if _is_own(name):
        return custom.files_of(name, path)
    if name not in PUBLISHED or not path:
        return []
    data_set, folder = PUBLISHED[name], pathlib.Path(path).expanduser()
    names = [*data_set.files.get(splits, ()), data_set.instead]
    return [folder / name for name in names if (folder / name).is_file()]


def load_records(
    data: str | Config,
    split: str = "train",
    limit: int | None = None,
    *,
    need_rationales: bool = True,
    **changes: Any,
) -> tuple[list[Record], list[Rejected]]:
    """Loads one split of a data set.

    Args:
      data: `data` of a configuration; or a name, one of NAMES or package.module:Class
        (`CustomDataSet`), with the defaults of all other settings.
      split: "train", "validation" or "test".
      limit: the first so many questions only; 0 is all; None is what the settings say. The built-in
        task makes as many as are asked.
      need_rationales: whether a training record without a rationale is of no use; if not, it is
        returned without steps, for a teacher to be asked.
      **changes: keys of `data` in a configuration, in place of its own values, such as `path`.

    Returns:
      The records, in the order of their source, those of one question side by side, and those that
      cannot be used: broken ones and those that are left out, each with its reason.

    Raises:
      UserError: an unknown name or split, files that are missing or unreadable, no records, or too
        many broken ones; the message names the first.
    """
    settings = _settings(data, changes)
    name = settings.name
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; expected one of {', '.join(SPLITS)}.")
    limit = int(settings[f"{split}_examples"]) if limit is None else limit
    _check(name, limit)
    columns = settings.columns.to_dict()
    # Whether the names of columns are those of the data set: else they are the teacher's.
    theirs = name in custom.FORMATS
    taught, separator = settings.rationales, settings.step_separator
    needed = need_rationales and not taught
    if name in PUBLISHED and split == "train" and needed and not PUBLISHED[name].has_rationales:
        raise UserError(
            f"{PUBLISHED[name].title} has no rationales to train on. Set --config.data.rationales "
            'to a teacher\'s file: a line is {"id", "question", "rationale", "answer"}, as '
            "docs/data.md explains."
        )
    if name == "arithmetic":
        loaded = _load_arithmetic(settings, split, limit, whole=bool(taught))
    elif _is_own(name):
        named = columns if theirs else custom.COLUMNS
        loaded = custom.load(
            name, split, settings.path, columns=named, separator=separator, need_rationale=needed
        )
    else:
        loaded = _load_published(settings, split, needed, whole=bool(taught))
    if taught and split != "test":
        loaded = rationales.apply(
            loaded,
            taught,
            split,
            kind=answer_kind(name, settings.answer_kind),
            columns=custom.COLUMNS if theirs else columns,
            separator=separator,
            own_id=PUBLISHED[name].own_id if name in PUBLISHED else str,
            per_question=settings.rationales_per_question,
        )
    rejected = loaded.broken + loaded.absent
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
    records = loaded.records[: limit or None]
    if name == "arithmetic" and not taught and split == "train":
        count, verbosity = max(1, settings.rationales_per_question), settings.arithmetic.verbosity
        several = (arithmetic.rationales_per_question(r, count, verbosity) for r in records)
        return list(itertools.chain.from_iterable(several)), rejected
    return [r for first in records for r in (first, *loaded.further.get(first.id, ()))], rejected


def fresh_records(config: Config) -> list[Record]:
    """New problems of the built-in task, for an answerer to be fit on (`weighting.fit=fresh`)."""
    if config.weighting.fit != "fresh":
        return []
    # A seed apart from that of a shipped answerer's training.
    count, task = config.weighting.fit_fresh_examples, config.data.arithmetic.to_dict()
    return arithmetic.generate("fresh", count, config.seed + 1, arithmetic.Task(**task))


def _settings(data: str | Config, changes: Mapping[str, Any]) -> Config:
    settings = defaults.get_config().data
    if isinstance(data, str):
        settings.name = data
    else:
        settings.update(data)
    if unknown := changes.keys() - settings.keys():
        raise UserError(
            f"A data set has no setting {min(unknown)!r}; expected some of {', '.join(settings)}."
        )
    settings.update(changes)
    return settings.lock()


def _is_own(name: str) -> bool:
    return name in custom.FORMATS or plugins.is_path(name)


def _check(name: str, limit: int) -> None:
    if name not in NAMES and not plugins.is_path(name):
        raise UserError(f"Unknown data set {name!r}; expected one of {', '.join(NAMES)}.")
    if limit < 0:
        raise UserError(f"A limit of {limit} records is not possible; expected 0 (all) or more.")


def _load_arithmetic(settings: Config, split: str, limit: int, whole: bool) -> Loaded:
    # TFDS takes a second to import, and a user's own file does without it.
    from kpod_jax.data import builders

    sizes = dict(builders.ARITHMETIC_SIZES)
    sizes[split] = max(limit, sizes[split])
    task = arithmetic.Task(**settings.arithmetic.to_dict())
    config = builders.ArithmeticConfig.of(sizes, task)
    builder = builders.prepared(builders.KpodArithmetic, config, settings.cache_dir)
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


def _load_published(settings: Config, split: str, need_rationale: bool, whole: bool) -> Loaded:
    """One split; with `whole` the ids of the others, too."""
    from kpod_jax.data import builders

    kind, separator = builders.PUBLISHED[settings.name], settings.step_separator
    config = kind.config_of(settings.splits, settings.path)
    builder = builders.prepared(kind, config, settings.cache_dir)
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
