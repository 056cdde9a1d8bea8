"""Atomic file I/O: files are written under a temporary name, then renamed.

Formats are text, JSON, JSON Lines and NPZ without pickle. Paths may point to a bucket, such as
gs://BUCKET/run, where a file appears once it is closed. Only a run's first process writes; in the
others, writing does nothing.
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
from types import UnionType
from typing import IO, Any

import fsspec
import fsspec.config
import numpy as np
from etils import epath

from kpod_jax.utils.errors import UserError, why
from kpod_jax.utils.printable import not_utf8, printable

PathLike = str | os.PathLike[str]
# Whether this process writes files; see `set_writer`.
_is_writer = True


def set_writer(value: bool) -> None:
    """Sets whether this process writes files; only a run's first process should."""
    global _is_writer
    _is_writer = value


def is_writer() -> bool:
    """Returns whether this process writes files."""
    return _is_writer


# The package that reads each kind of bucket.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def expand(path: PathLike) -> pathlib.Path:
    """Returns a local path, with the home directory for ~ and ~USER.

    Raises:
      UserError: it cannot be a path of this program, whose files hold paths as UTF-8.
    """
    text = os.fspath(path)
    if "\0" in text or not_utf8(text):
        problem = "is not UTF-8 text" if not_utf8(text) else "contains a null character"
        raise UserError(f"The path {printable(text)} {problem}. Rename it, or give another path.")
    if is_remote(path):
        raise UserError(f"Cannot access {text}: expected a local path{_without_scheme(text)}.")
    return pathlib.Path(os.path.expanduser(path))  # Leaves ~ before what is no user.


def _without_scheme(path: str) -> str:
    local = path.removeprefix("file://")
    return f" (did you mean {local!r}?)" if local != path else ""


def as_path(path: PathLike) -> pathlib.Path:
    """Converts a local or bucket (gs://, s3://) path to an object with the methods of pathlib.

    Raises:
      UserError: the scheme is not that of a bucket, or its package is not installed; see `expand`.
    """
    if not is_remote(path):
        return expand(path)
    scheme = os.fspath(path).partition("://")[0]
    if scheme not in _PACKAGES:
        raise UserError(
            f"Cannot access {os.fspath(path)}: expected a local path, or a bucket, which starts "
            f"with {', '.join(f'{name}://' for name in _PACKAGES)}"
            f"{_without_scheme(os.fspath(path))}."
        )
    # Other processes may write at any time, so do not cache listings.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    try:
        remote_path = epath.Path(path)
        fsspec.get_filesystem_class(scheme)  # Imports the package without network access.
    except ImportError as error:
        package = _PACKAGES[scheme]
        raise UserError(
            f"Cannot access {os.fspath(path)}: {package} is not installed. Run pip install "
            f"{package}."
        ) from error
    return remote_path  # pyright: ignore[reportReturnType]


def local(name: PathLike) -> pathlib.Path:
    """Returns a local path; kpod_jax/assets/… resolves to the package from any directory."""
    path = pathlib.Path(os.path.expanduser(name))
    if path.parts[:2] == ("kpod_jax", "assets") and not path.exists():
        return pathlib.Path(__file__).parents[2] / path
    return path


def config_file(name: str) -> str:
    """Resolves a configuration file, which may carry an argument after a colon.

    configs/… falls back to the package's files (kpod_jax/configs) if the working directory has no
    such file.
    """
    name = str(os.path.expanduser(name))
    path, colon, argument = name.partition(":")
    packaged = pathlib.Path(__file__).parents[1] / path
    if pathlib.Path(path).is_file() or not path.startswith("configs/") or not packaged.is_file():
        return name
    return f"{packaged}{colon}{argument}"


def is_remote(path: PathLike) -> bool:
    """Returns whether a path points to a bucket."""
    return "://" in os.fspath(path)


def files_under(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields all files under a directory, recursively. Buckets do not support `**`."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files_under(path)
        else:
            yield path


def files_at(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a file, or all files under a directory."""
    return list(files_under(path)) if path.is_dir() else [path]


def copy_folder(folder: PathLike, target: PathLike) -> None:
    """Copies a local folder recursively, each file atomically."""
    for path in files_under(pathlib.Path(folder)):
        name = path.relative_to(folder).as_posix()
        with atomic_write(as_path(target) / name) as file:
            file.write(path.read_bytes())


def remove(path: PathLike) -> None:
    """Removes a file or directory, if it exists."""
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
      UserError: the disk is full or read-only, or permission is denied. An existing `path` is
        left unchanged.
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
            f"Cannot write {path}: {why(error)}. Existing files were not changed. "
            "Free some space, fix the permissions or choose another --workdir, then run the "
            "command again."
        ) from error


@contextlib.contextmanager
def _renaming(path: pathlib.Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # If the parent is a file, opening `temporary` fails with a clearer error.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # Already gone if renamed.
            temporary.unlink()


@contextlib.contextmanager
def _uploading(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Buffers the file locally and uploads it when it is complete."""
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
    """Writes `value` as indented JSON. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line. Raises ValueError for NaN and infinity."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_npz(path: PathLike, **arrays: np.ndarray) -> None:
    """Writes named arrays. Raises TypeError for object arrays, which would need pickle."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{path}: array {name} has dtype object, which cannot be saved")
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def remedy(stage: str) -> str:
    """Returns what to do about a damaged output of a stage."""
    others = "" if stage in ("all", "export") else " or --mode=all"  # It leaves out the export.
    return f"Delete it, then run --mode={stage}{others} to make it again."


def read_json(path: PathLike, stage: str = "") -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      stage: the stage that makes it again if it is damaged; "": none.

    Raises:
      UserError: the file is missing or is not JSON; the message gives the position.
    """
    path = as_path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        advice = f" {remedy(stage)}" if stage else ""
        raise UserError(f"{path} is not valid JSON: {error}.{advice}") from error


def read_output(path: PathLike, stage: str, keys: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """Reads a JSON object that a stage wrote.

    Args:
      path: the file.
      stage: see `read_json`.
      keys: the keys that it must have, with the types of their values.

    Raises:
      UserError: the file is missing or damaged.
    """
    value = read_json(path, stage)
    if not isinstance(value, dict):
        problem = f"expected an object, got {type(value).__name__}"
    elif wrong := [key for key, kind in keys.items() if not isinstance(value.get(key), kind)]:
        problem = f"{wrong[0]!r} is {value.get(wrong[0])!r:.60}"
    else:
        return value
    raise UserError(f"{path} is damaged: {problem}. {remedy(stage)}")


def read_npz(path: PathLike, stage: str = "", names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reads all arrays of an NPZ file, without unpickling.

    Args:
      path: the file.
      stage: see `read_json`.
      names: arrays that it must have.

    Raises:
      UserError: the file is missing or damaged.
    """
    advice = remedy(stage) if stage else "Delete it, then run the command again."
    try:
        with as_path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, zlib and NumPy raise different errors for damaged files.
        raise UserError(f"{path} is not a valid NPZ file: {error}. {advice}") from error
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"{path} has no array {missing[0]!r}, but {sorted(arrays)}. {advice}")
    return arrays


def digest(path: PathLike) -> str:
    """Returns the SHA-256 of a file, or of the names and contents of all files in a directory.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    path = as_path(path)
    try:
        if not path.is_dir():
            if is_remote(path):
                return _digest(path)
            stat = os.stat(path)
            if stat.st_size < _CACHE_BYTES:
                return _digest(path)
            return _cached_digest(path, stat.st_size, stat.st_mtime_ns)
        lines = [
            f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_under(path)
        ]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Larger files, such as weights, are hashed once per process rather than once per stage.
_CACHE_BYTES = 64 << 20


@functools.cache
def _cached_digest(path: pathlib.Path, size: int, modified: int) -> str:
    """Returns a file's digest, cached until its size or modification time changes."""
    del size, modified
    return _digest(path)
