"""Records of all splits, whole or turned down by name, and what their splits share."""

from kpod_jax.data import arithmetic, overlap, sources, token_store
from kpod_jax.data import records as records_io
from kpod_jax.data.published import SPLITS
from kpod_jax.run import TOKENS, Run, say
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def run_stage(run: Run) -> str:
    """Loads the data set; writes records/*.jsonl and the training records' tokens.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: data that cannot be read, too many bad records, or a split without any.
    """
    config, rejected, too_long, usable = run.config, [], [], {}
    if note := sources.note(config.data.name, config.data.splits):
        say(f"rationales: {note}")
    for split in SPLITS:
        # The built-in task is one data set, like any other: the run's seed does not change it.
        found, bad = sources.load_records(
            config.data.name,
            split,
            path=config.data.path,
            cache_dir=config.data.cache,
            splits=config.data.splits,
            rationales=config.data.rationales,
            columns=config.data.columns.to_dict(),
            kind=config.data.answer_kind,
            separator=config.data.step_separator,
            limit=config.data[f"{split}_examples"],
            max_bad_share=config.data.max_bad_share,
            per_question=config.data.rationales_per_question,
            task=arithmetic.Task(**config.data.arithmetic.to_dict()),
        )
        if split == "train":
            tokenized, too_long = run.tokenize(found)
            found, bad = list(tokenized.records), [*bad, *too_long]
            token_store.save(run.workdir / TOKENS, tokenized)
        if not found:
            raise UserError(
                f"The {split} split of {config.data.name} has no usable record: "
                + "; ".join(f"{r.id}: {r.reason}" for r in bad[:3])
                + ". Mend the data, or raise student.max_question_tokens and max_target_tokens."
            )
        rejected += [{"id": r.id, "split": split, "reason": r.reason} for r in bad]
        usable[split] = found
        records_io.write_records(run.workdir / f"records/{split}.jsonl", found)
    files.write_jsonl(run.workdir / "records/rejected.jsonl", rejected)
    # `load_records` has judged the data set's own faults; these are the student's limits.
    total = len(usable["train"]) + len(too_long)
    records_io.check_bad_share(too_long, total, config.data.max_bad_share)
    found = [f"{len(records)} {split}" for split, records in usable.items()]
    if shared := overlap.describe(usable):
        say(f"rationales: the splits overlap, so that accuracies may be too high:\n{shared}")
    else:
        found.append("no question in two splits")
    return ", ".join([*found, f"{len(rejected)} rejected"])
