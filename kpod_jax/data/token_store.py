"""A tokenised set on disk: one array that is memory-mapped, and a table of what lies where.

Processes of one machine that read the same file share its memory, and no process tokenises twice.
"""

from collections.abc import Sequence

import numpy as np

from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_RAGGED = ("questions", "targets", "steps", "answers", "rationale_char_spans")
_PLAIN = ("num_steps", "rationale_lengths")


def save(path: files.PathLike, tokenized: TokenizedSet) -> None:
    """Writes `path`.npy, of all values as int32, and `path`.json, of their places there.

    Args:
      path: without a suffix.
      tokenized: its records are not written.
    """
    parts: dict[str, np.ndarray] = {name: getattr(tokenized, name) for name in _PLAIN}
    for name in _RAGGED:
        ragged: Ragged = getattr(tokenized, name)
        parts |= {f"{name}.values": ragged.values, f"{name}.lengths": ragged.lengths}
    ends = np.cumsum([part.size for part in parts.values()]).tolist()
    places = {
        name: {"start": end - part.size, "shape": list(part.shape)}
        for (name, part), end in zip(parts.items(), ends, strict=True)
    }
    with files.atomic_write(f"{path}.npy") as file:
        np.save(file, np.concatenate([part.ravel() for part in parts.values()]).astype(np.int32))
    files.write_json(f"{path}.json", places)


def load(path: files.PathLike, records: Sequence[Record]) -> TokenizedSet:
    """Reads what `save` wrote; its arrays are of the mapped file, unless that is in a bucket.

    Args:
      path: without a suffix.
      records: those that were tokenised.

    Raises:
      UserError: a file is missing or damaged, or was made of other records.
    """
    places = files.read_json(f"{path}.json")
    where = files.as_path(f"{path}.npy")
    try:
        if files.is_remote(where):
            with where.open("rb") as file:
                flat = np.load(file, allow_pickle=False)
        else:
            flat = np.asarray(np.load(where, mmap_mode="r", allow_pickle=False))
        parts = {}
        for name in (*_PLAIN, *(f"{r}.{part}" for r in _RAGGED for part in ("values", "lengths"))):
            start, shape = places[name]["start"], places[name]["shape"]
            parts[name] = flat[start : start + int(np.prod(shape))].reshape(shape)
        if len(parts["num_steps"]) != len(records):
            raise ValueError(f"{len(parts['num_steps'])} examples, not {len(records)}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} does not hold the tokens of the records beside it: {error}. Delete it to "
            "have it made again."
        ) from error
    ragged = {
        name: Ragged.from_lengths(parts[f"{name}.values"], parts[f"{name}.lengths"])
        for name in _RAGGED
    }
    return TokenizedSet(tuple(records), **ragged, **{name: parts[name] for name in _PLAIN})
