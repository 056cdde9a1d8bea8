r"""Statistics of the published data sets as read by this package.

    python -m benchmarks.datasets --folder=FOLDER                  # prints a table
    python -m benchmarks.datasets --folder=FOLDER --write          # and updates docs/data.md

FOLDER holds the original files: gsm8k/train.jsonl and test.jsonl, optionally a teacher's
gsm8k/rationales.jsonl, and in samples/ (or a folder named after the data set) ASDiv.xml, SVAMP.json
and the files of CommonsenseQA. Without --folder they are downloaded. The tokenizer is --tokenizer,
else FOLDER/tokenizers/t5_spiece.model, else google/flan-t5-base.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks import tables
from kpod_jax.config import defaults
from kpod_jax.data import answers, overlap, sources, tokens
from kpod_jax.data.published import SPLITS
from kpod_jax.data.records import Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.utils.errors import UserError

_FOLDER = flags.DEFINE_string("folder", "", "Directory of the original files.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Tokenizer directory, hub id or SentencePiece file."
)
# Train, validation and test.
_PAPER = {
    "gsm8k": (7473, 660, 659),
    "asdiv": (1462, 313, 314),
    "svamp": (700, 150, 150),
    "commonsense_qa": (8520, 1221, 1221),
}
HEADER = [
    "| data set | train / validation / test | steps of a rationale | question's tokens | "
    "target's tokens | kept | rejected | answers read back | in two splits |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]


def row(name: str, path: str, cache: str, tokenizer: Any, teacher: str = "") -> str:
    """Returns a row of the table.

    Args:
      name: name of the data set.
      path: directory of its files; empty: they are downloaded.
      cache: directory for prepared files.
      tokenizer: the student's tokenizer.
      teacher: file of a teacher's rationales; empty: those of the data set.
    """
    by_split: dict[str, list[Record]] = {}
    rejected = 0
    for split in SPLITS:
        try:
            by_split[split], bad = sources.load_records(
                name,
                split,
                path=path,
                rationales=teacher,
                cache_dir=cache,
                max_rejected_fraction=1.0,
                need_rationales=sources.PUBLISHED[name].has_rationales,
            )
            rejected += len(bad)
        except UserError as error:
            if "has no records" not in str(error):
                raise
            by_split[split] = []
    counts = tuple(map(len, by_split.values()))
    sizes = " / ".join(map(str, counts))
    if sum(counts) + rejected < sum(_PAPER[name]):
        sizes = f"{sizes} ({sum(counts)} available of {' / '.join(map(str, _PAPER[name]))})"
    records = [record for part in by_split.values() for record in part]
    config = defaults.get_config().student
    template = config.answer_template
    target, kept, steps = "–", "–", "–"
    reasoned = [record for record in records if record.steps]
    if reasoned:
        tokenized, _ = tokens.tokenize(
            reasoned,
            tokenizer,
            prompt=config.prompt,
            answer_template=template,
            max_question_tokens=config.max_question_tokens,
            max_target_tokens=config.max_target_tokens,
        )
        unlimited, _ = tokens.tokenize(
            reasoned,
            tokenizer,
            prompt=config.prompt,
            answer_template=template,
            max_question_tokens=1 << 20,
            max_target_tokens=1 << 20,
        )
        target = _spread(unlimited.targets.lengths.tolist())
        kept = f"{100 * len(tokenized.records) / len(reasoned):.2f}%"
        steps = _spread([len(record.steps) for record in reasoned])
    prompts = tokens.tokenize_questions(records, tokenizer, prompt=config.prompt)
    kind = sources.answer_kind(name)
    read = sum(agrees(record, template, kind) for record in records)
    shared = overlap.overlaps(by_split)
    twice = ", ".join(f"{len(ids)} {a}/{b}" for (a, b), ids in shared.items()) or "none"
    title = sources.PUBLISHED[name].title + (", teacher's" if teacher else "")
    return (
        f"| {title} | {sizes} | {steps} | {_spread(prompts.lengths.tolist())} | {target} | {kept} "
        f"| {rejected} | {read} of {len(records)} | {twice} |"
    )


def agrees(record: Record, template: str, kind: str) -> bool:
    """Returns whether the answer extracted from rationale and answer sentence is correct."""
    text = f"{record.rationale} {template.replace('{answer}', record.answer)}"
    return answers.answers_equal(answers.extract_answer(text, kind), record.answer, kind)


def _spread(values: Sequence[int]) -> str:
    return f"{statistics.mean(values):.1f} (to {max(values)})"


def _folder_of(name: str, root: str) -> str:
    """Returns the directory of a data set's files; empty if they are to be downloaded."""
    if not root:
        return ""
    folder = pathlib.Path(root).expanduser()
    return str(next((folder / n for n in (name, "samples") if (folder / n).is_dir()), folder))


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    root = pathlib.Path(_FOLDER.value).expanduser()
    model = root / "tokenizers" / "t5_spiece.model"
    name = _TOKENIZER.value or (str(model) if model.is_file() else "google/flan-t5-base")
    tokenizer = load_tokenizer(name)
    rows = list(HEADER)
    print("\n".join(rows))
    with tempfile.TemporaryDirectory() as cache:
        for data_set in _PAPER:
            folder = _folder_of(data_set, _FOLDER.value)
            teacher = pathlib.Path(folder) / "rationales.jsonl"
            for file in ("", str(teacher)) if folder and teacher.is_file() else ("",):
                rows.append(row(data_set, folder, cache, tokenizer, file))
                print(rows[-1], flush=True)
    if tables.WRITE.value:
        tables.put("docs/data.md", "datasets", rows)


if __name__ == "__main__":
    app.run(main)
