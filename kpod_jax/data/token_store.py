"""Tokenized sets on disk: one memory-mapped array, and an index of the parts in it.

Processes on the same machine share the mapped memory, and records are tokenized only once.
"""

from collections.abc import Sequence

import numpy as np

from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_RAGGED = ("questions", "targets", "steps", "answers", "rationale_char_spans")
_PLAIN = ("num_steps", "rationale_lengths")
_WRITTEN = 1 << 22  # Values to write at a time.


def save(path: files.PathLike, tokenized: TokenizedSet) -> None:
    """Writes all values to `path`.npy as int32, and their positions to `path`.json.

    Args:
      path: path without a suffix.
      tokenized: the set to write; its records are not written.
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
    header = {"descr": "<i4", "fortran_order": False, "shape": (ends[-1],)}
    with files.atomic_write(f"{path}.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in map(np.ravel, parts.values()):
            for start in range(0, len(part), _WRITTEN):
                file.write(part[start : start + _WRITTEN].astype("<i4").tobytes())
    files.write_json(f"{path}.json", places)


def load(path: files.PathLike, records: Sequence[Record]) -> TokenizedSet:
    """Reads what `save` wrote, memory-mapped unless the file is in a bucket.

    Args:
      path: path without a suffix.
      records: the records that were tokenized.

    Raises:
      UserError: a file is missing or damaged, or belongs to other records.
    """
    places = files.read_json(f"{path}.json")
    array_path = files.as_path(f"{path}.npy")
    try:
        if files.is_remote(array_path):
            with array_path.open("rb") as file:
                flat = np.load(file, allow_pickle=False)
        else:
            flat = np.asarray(np.load(array_path, mmap_mode="r", allow_pickle=False))
        parts = {}
        for name in (*_PLAIN, *(f"{r}.{part}" for r in _RAGGED for part in ("values", "lengths"))):
            start, shape = places[name]["start"], places[name]["shape"]
            parts[name] = flat[start : start + int(np.prod(shape))].reshape(shape)
        if len(parts["num_steps"]) != len(records):
            raise ValueError(f"expected {len(records)} examples, got {len(parts['num_steps'])}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{array_path} does not match the records beside it: {error}. Delete it to tokenize "
            "them again."
        ) from error
    ragged = {
        name: Ragged.from_lengths(parts[f"{name}.values"], parts[f"{name}.lengths"])
        for name in _RAGGED
    }
    return TokenizedSet(records, **ragged, **{name: parts[name] for name in _PLAIN})
