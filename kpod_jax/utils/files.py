"""Files that are there in whole or not at all: written to a temporary name, then renamed.

Only open formats are written: text, JSON, JSON lines and NPZ without pickle. Paths may be of a
bucket, such as gs://BUCKET/run, where a file appears when it is closed. Of a run's processes the
first alone writes; in the others writing does nothing.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import fsspec
import fsspec.config
import numpy as np
from etils import epath

from kpod_jax.utils.errors import UserError

PathLike = str | os.PathLike[str]
# Of this process; see `set_writer`.
_is_writer = True


def set_writer(value: bool) -> None:
    """Says whether this process writes files, as the first of a run does."""
    global _is_writer
    _is_writer = value


def is_writer() -> bool:
    """Whether this process writes files: the first of a run, or the only one."""
    return _is_writer


def as_path(path: PathLike) -> pathlib.Path:
    """A path to work with: local, or of a bucket (gs://, s3://), which has the same methods."""
    if not is_remote(path):
        return pathlib.Path(path)
    scheme = os.fspath(path).partition(":")[0]
    # Another process may have written since a listing was fetched.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    try:
        found = epath.Path(path)
        fsspec.get_filesystem_class(scheme)  # Imports it, and asks nothing of the network.
    except ImportError as error:
        package = {"gs": "gcsfs", "s3": "s3fs"}.get(scheme, "the fsspec package of this scheme")
        raise UserError(
            f"{os.fspath(path)}: reading and writing there needs {package}: pip install {package}."
        ) from error
    return found  # pyright: ignore[reportReturnType]


def local(name: PathLike) -> pathlib.Path:
    """A local path; kpod_jax/assets/… is the package's own wherever the working directory is."""
    path = pathlib.Path(name).expanduser()
    if path.parts[:2] == ("kpod_jax", "assets") and not path.exists():
        return pathlib.Path(__file__).parents[2] / path
    return path


def config_file(name: str) -> str:
    """The path of a configuration file, which may have an argument behind a colon.

    configs/… is the package's own (kpod_jax/configs) where the working directory has no such file.
    """
    path, colon, argument = name.partition(":")
    own = pathlib.Path(__file__).parents[1] / path
    if pathlib.Path(path).is_file() or not path.startswith("configs/") or not own.is_file():
        return name
    return f"{own}{colon}{argument}"


def is_remote(path: PathLike) -> bool:
    """Whether a path is of a bucket, not of this machine."""
    return "://" in os.fspath(path)


def files_under(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files of a directory and of those in it; of a bucket, too, which knows no `**`."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files_under(path)
        else:
            yield path


def copy_folder(folder: PathLike, target: PathLike) -> None:
    """Copies the files of a local folder and of those in it, each in whole or not at all."""
    for path in files_under(pathlib.Path(folder)):
        name = path.relative_to(folder).as_posix()
        with atomic_write(as_path(target) / name) as file:
            file.write(path.read_bytes())


def remove(path: PathLike) -> None:
    """Removes a file or a directory with all that is in it, if it is there."""
    path = as_path(path)
    if not _is_writer:
        return
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    elif is_remote(path):
        path.rmtree(missing_ok=True)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it to `path` when the block succeeds.

    Raises:
      UserError: the disk is full, read-only or not ours; an older `path` stays as it was.
    """
    if not _is_writer:
        yield io.BytesIO()
        return
    path = as_path(path)
    try:
        with _uploading(path) if is_remote(path) else _renaming(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Nothing was changed there; free some "
            "space, mend the permissions or choose another --workdir, then run the same command "
            "again."
        ) from error


@contextlib.contextmanager
def _renaming(path: pathlib.Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.suppress(FileExistsError):  # Where it is a file, opening says so better.
            path.parent.mkdir(parents=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # It is gone where it was renamed.
            temporary.unlink()


@contextlib.contextmanager
def _uploading(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """An object of a bucket is there once all of it was sent, so it is sent when it is whole."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(file, target)


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text."""
    with atomic_write(path) as file:
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
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_json(path: PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or not JSON; the message names the place.
    """
    path = as_path(path)
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
        with as_path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
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
    path = as_path(path)
    try:
        if not path.is_dir():
            if is_remote(path):
                return _digest(path)
            state = os.stat(path)
            if state.st_size < _LARGE:
                return _digest(path)
            return _digest_once(path, state.st_size, state.st_mtime_ns)
        lines = [
            f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_under(path)
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
