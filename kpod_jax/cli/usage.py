"""The text of `python -m kpod_jax.main --help`."""

import re
import shutil
import textwrap
from collections.abc import Iterable

from absl import flags

from kpod_jax.config import defaults
from kpod_jax.utils import config_dict

MODES = {
    "all": "Algorithm 1: run the stages from rationales to report, skipping those that are up to "
    "date (default)",
    "rationales": "read the data set and write its records",
    "weigh": "learn the token weights of the rationales (Eq. 2-7)",
    "score": "score the difficulty of each step for the student (Eq. 8)",
    "schedule": "cluster the questions and compute the schedule (Eq. 9-13)",
    "distill": "train the student (Eq. 15)",
    "eval": "evaluate the student on a split",
    "report": "write report.html, a self-contained page",
    "export": "write the student as a Hugging Face directory",
    "push": "upload the export to the Hugging Face hub",
    "heatmap": "show a run's token weights in the terminal and as a page",
    "teach": "request rationales from a teacher at any OpenAI-compatible endpoint",
    "sweep": "run the configurations of --sweep and compare the runs",
    "compare": "compare the runs of --runs question by question",
    "plan": "load, tokenize and count what a run will take: records, steps, FLOPs, hours, memory",
    "keys": "list the configuration keys with their defaults: --mode=keys [PATTERN]",
    "compile": "compile the steps for TPUs without having them: memory, FLOPs, collectives",
}

_HEAD = """\
usage: python -m kpod_jax.main --config=FILE --workdir=DIR [--mode=MODE] [--config.KEY=VALUE ...]

Distills the step-by-step reasoning of a large language model into a small one (KPOD).
The installed package also provides this command as kpod-jax.

Modes
"""
_EXAMPLES = """\

Examples
  python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/kpod
  python -m kpod_jax.main --config=configs/t5_base.py:scotd --workdir=runs/scotd
  python -m kpod_jax.main --config=configs/t5_base.py --workdir=runs/t5 --mode=export
  python -m kpod_jax.main --mode=compare --runs=runs/kpod,runs/scotd

The part after the colon is a method. Repeating a command resumes it where it stopped.

Configuration keys that matter most, with their defaults (--mode=keys lists all)
"""
# Keys that most users set.
KEYS = (
    "method",
    "data.name",
    "data.path",
    "data.rationales",
    "student.model",
    "student.dtype",
    "student.lora.rank",
    "weighting.answerer",
    "distill.learning_rate",
    "distill.epochs",
)
_TAIL = "  --helpfull\n      Show the flags of all libraries, too.\n"


def text(names: Iterable[str]) -> str:
    """Returns the help text: modes, examples, then the flags with these names."""
    width = min(100, shutil.get_terminal_size().columns)
    column = max(map(len, MODES)) + 4
    modes = [
        textwrap.fill(
            description,
            width,
            initial_indent=f"  {mode}".ljust(column),
            subsequent_indent=" " * column,
        )
        for mode, description in MODES.items()
    ]
    parts = []
    for name in names:
        meaning = re.sub(r"^<.*?>: ", "", str(flags.FLAGS[name].help))  # Drops an enum's values.
        meaning = textwrap.indent(textwrap.fill(meaning, width - 6), " " * 6)
        parts.append(f"  --{name}\n{meaning}\n")
    values = config_dict.flatten(defaults.get_config())
    keys = "".join(f"  --config.{key}={values[key]!r}\n" for key in KEYS)
    return "".join([_HEAD, "\n".join(modes), "\n", _EXAMPLES, keys, "\nFlags\n", *parts, _TAIL])
