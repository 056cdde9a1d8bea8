"""Files that are there in whole or not at all: written to a temporary name, then renamed.

Only open formats are written: text, JSON, JSON lines and NPZ without pickle.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
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
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; the result gets the permissions of an ordinary new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Nothing was changed there; free some "
            "space, mend the permissions or choose another --workdir, then run the same command again."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_npz(path: PathLike, **arrays: np.ndarray) -> None:
    """Writes named arrays; object arrays (which would need pickle) are refused."""
    for name, array in arrays.items():
        if np.asarray(array).dtype == object:
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
    except Exception as error:  # zipfile, zlib and NumPy each have their own errors for damage.
        raise UserError(f"Cannot read {path}: {error}. Delete it to have it made again.") from error


def digest(path: PathLike) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files under a directory."""
    path = pathlib.Path(path)
    result = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            result.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    result.update(block)
    return result.hexdigest()
