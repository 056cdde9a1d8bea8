"""Files that are there in whole or not at all: written to a temporary name, then renamed.

Only open formats are written: text, JSON, JSON lines and NPZ without pickle.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from kpod_jax.errors import UserError

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it to `path` when the block succeeds.

    Raises:
      UserError: the disk is full, read-only or not ours; an older `path` stays as it was.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.suppress(FileExistsError):  # Where it is a file, opening says so better.
            path.parent.mkdir(parents=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Nothing was changed there; free some "
            "space, mend the permissions or choose another --workdir, then run the same command "
            "again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # It is gone where it was renamed.
            temporary.unlink()


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; NaN and infinities are refused."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_npz(path: PathLike, **arrays: np.ndarray) -> None:
    """Writes named arrays; object arrays (which would need pickle) are refused."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{path}: array {name} holds Python objects")
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_json(path: PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or not JSON; the message names the place.
    """
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an NPZ file, never unpickling.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, zlib and NumPy each have their own errors for damage.
        raise UserError(
            f"{path} is not a whole NPZ file: {error}. Delete it to have it made again."
        ) from error


def digest(path: PathLike) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files under a directory.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    path = pathlib.Path(path)
    try:
        if not path.is_dir():
            state = path.stat()
            if state.st_size < _LARGE:
                return _digest(path)
            return _digest_once(path, state.st_size, state.st_mtime_ns)
        lines = [
            f"{digest(file)}  {file.relative_to(path).as_posix()}\n"
            for file in path.rglob("*")
            if file.is_file()
        ]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Weights of many gigabytes are read through once a process, not once a stage.
_LARGE = 64 << 20


@functools.cache
def _digest_once(path: pathlib.Path, size: int, modified: int) -> str:
    """Of one file, whose versions are told apart by their size and time of change."""
    del size, modified
    return _digest(path)
