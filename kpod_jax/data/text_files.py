"""Opens text files as people have them: gzipped, from Windows or Excel, partly not UTF-8."""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from kpod_jax.utils.errors import UserError
from kpod_jax.utils.files import PathLike, as_path

# Byte order marks; UTF-32's begins with UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# What files of other kinds begin with.
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
    b"BZh": "compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip",
    b"ARROW1": "an Arrow file; set data.name=huggingface and data.path to its folder",
    b"PAR1": "a Parquet file; give it the suffix .parquet",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; run git lfs pull",
}
# Characters of a line or record, and of one text in it. Longer ones are not read whole.
MAX_RECORD = 1 << 24
MAX_TEXT = 1 << 22
# Whitespace characters in a row; tokenizers may take quadratic time for them.
MAX_SPACE = 2000
TOO_LONG = f"has more than {MAX_RECORD:,} characters, the maximum for one record"
_SPACE = re.compile(r"\s+")
# Bytes that are not UTF-8, as `errors="surrogateescape"` decodes them.
_ESCAPED = re.compile("[\udc80-\udcff]")


@contextlib.contextmanager
def open_text(path: PathLike, newline: str | None = None) -> Iterator[IO[str]]:
    """Opens a text file for reading, gzipped or not.

    The encoding is that of the byte order mark, which is left out, else UTF-8. Bytes that are not
    of it become lone surrogates (see `not_utf8`), so that they spoil their own record alone.

    Raises:
      UserError: the file cannot be read to its end, or is no text.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(as_path(path).open("rb"))
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            file.seek(0)
            start = file.read(32)
            file.seek(0)
            for magic, kind in _NO_TEXT.items():
                if start.startswith(magic):
                    raise UserError(f"Cannot read {path}: it is {kind}.")
            encoding = next(
                (e for mark, e in _MARKS.items() if start.startswith(mark)), "utf-8-sig"
            )
            yield stack.enter_context(
                io.TextIOWrapper(file, encoding, errors="surrogateescape", newline=newline)
            )
    except (EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path}: its gzip data is cut off or damaged.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Cannot read {path}: it is not whole {error.encoding} text.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def bounded_lines(file: IO[str]) -> Iterator[str]:
    """Yields the lines of a file; longer ones are cut after MAX_RECORD + 1 characters."""
    while line := file.readline(MAX_RECORD + 1):
        yield line
        while len(line) > MAX_RECORD and line[-1] != "\n":  # Skip the rest.
            line = file.readline(MAX_RECORD + 1) or "\n"


def has_endless_space(text: str) -> bool:
    """Returns whether a text has more than MAX_SPACE whitespace characters in a row."""
    return len(text) > MAX_SPACE and any(len(m[0]) > MAX_SPACE for m in _SPACE.finditer(text))


def not_utf8(text: str) -> re.Match[str] | None:
    """Returns the first byte of `text` that was not UTF-8, if there is one."""
    return _ESCAPED.search(text)
