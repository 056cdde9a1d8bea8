"""What `python -m kpod_jax.main --help` says."""

import re
import shutil
import textwrap
from collections.abc import Iterable

from absl import flags

MODES = {
    "all": "Algorithm 1: the stages from rationales to report, each skipped while it is up to date "
    "(default)",
    "rationales": "reads the data set and writes its records",
    "weigh": "learns the weights of the rationales' tokens (Eq. 2-7)",
    "score": "scores how difficult each step is for the student (Eq. 8)",
    "schedule": "clusters the questions and makes the schedule (Eq. 9-13)",
    "distill": "trains the student (Eq. 15)",
    "eval": "asks the student every question of a split",
    "report": "writes report.html, one self-contained page",
    "export": "writes the student as a Hugging Face directory",
    "heatmap": "shows the token weights of a work directory, here and as a page",
    "teach": "asks a teacher for rationales, at any OpenAI-compatible endpoint",
    "sweep": "makes the runs that --sweep names, and their comparison",
    "compare": "compares the runs of --runs question by question",
    "compile": "compiles the steps for TPUs that are not there: memory, FLOPs, collectives",
}

_HEAD = """\
usage: python -m kpod_jax.main --config=FILE --workdir=DIR [--mode=MODE] [--config.KEY=VALUE ...]

Distils the step-by-step reasoning of a large language model into a small one (KPOD).
Installed, the command is also called kpod-jax.

Modes
"""
_EXAMPLES = """\

Examples
  python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/kpod
  python -m kpod_jax.main --config=configs/t5_base.py:scotd --workdir=runs/scotd
  python -m kpod_jax.main --config=configs/t5_base.py --workdir=runs/t5 --mode=export
  python -m kpod_jax.main --mode=compare --runs=runs/kpod,runs/scotd

What follows the colon is a method. Given again, a command goes on where it was stopped.
The keys of the configuration: python -m kpod_jax.cli.reference (docs/configuration.md).

Flags
"""
_TAIL = "  --helpfull\n      The flags of all libraries as well.\n"


def text(names: Iterable[str]) -> str:
    """The modes first, then examples, then the flags of these names."""
    width = min(100, shutil.get_terminal_size().columns)
    column = max(map(len, MODES)) + 4
    modes = [
        textwrap.fill(
            what,
            width,
            initial_indent=f"  {mode}".ljust(column),
            subsequent_indent=" " * column,
        )
        for mode, what in MODES.items()
    ]
    parts = []
    for name in names:
        meaning = re.sub(r"^<.*?>: ", "", str(flags.FLAGS[name].help))  # Of an enum: its values.
        meaning = textwrap.indent(textwrap.fill(meaning, width - 6), " " * 6)
        parts.append(f"  --{name}\n{meaning}\n")
    return _HEAD + "\n".join(modes) + "\n" + _EXAMPLES + "".join(parts) + _TAIL
