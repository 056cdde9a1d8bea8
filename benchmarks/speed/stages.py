r"""Whole KPOD beside whole SCoTD, stage by stage, from what two work directories say they took.

python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/kpod
python -m kpod_jax.main --config=configs/quickstart.py:scotd --workdir=runs/scotd
python -m benchmarks.speed --only=stages --kpod=runs/kpod --scotd=runs/scotd
"""

from collections.abc import Iterator

from kpod_jax.stages import STAGES
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir

HEADER = (
    "| stage | KPOD, s | SCoTD, s | KPOD / SCoTD |",
    "| --- " * 4 + "|",
)


def seconds(workdir: files.PathLike) -> dict[str, float]:
    """Processor seconds of the stages that a work directory made itself.

    Raises:
      UserError: it has none.
    """
    notes = {name: Workdir.note(workdir, name) for name in STAGES}
    found = {
        name: note["processor_seconds"]
        for name, note in notes.items()
        if note is not None and note["complete"] and "processor_seconds" in note
    }
    if not found:
        raise UserError(
            f"{workdir} holds no stage with its time; expected the work directory of a run, made "
            "by --mode=all."
        )
    return found


def table(kpod: files.PathLike, scotd: files.PathLike) -> Iterator[str]:
    """All lines. What only one of them does costs the other nothing."""
    yield from HEADER
    ours, other = seconds(kpod), seconds(scotd)
    for name in STAGES:
        if name not in ours and name not in other:
            continue
        a, b = ours.get(name, 0.0), other.get(name, 0.0)
        yield f"| {name} | {a:.1f} | {b:.1f} | {f'{a / b:.2f}' if b else ''} |"
    a, b = sum(ours.values()), sum(other.values())
    yield f"| all | {a:.1f} | {b:.1f} | {a / b:.2f} |"
