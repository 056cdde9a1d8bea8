"""Parses the header of a GGUF file, believing none of the sizes in it.

Values are little-endian. A header is a sequence of fields (key, type, value), then one of tensors
(name, dimensions from the innermost on, type, offset in the data after the header).
"""

import itertools
import math
import pathlib
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# A vocabulary of 262144 tokens takes 9 MB and 1.3 million values.
_MAX_BYTES = 256 << 20
_MAX_VALUES = 1 << 23
_MAX_ENTRIES = 1 << 16
_MAX_NAME = 1024
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_TEXT, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_FLOATS = {"F16": "<f2", "F32": "<f4"}


class Tensor(NamedTuple):
    """A tensor, still quantized.

    Attributes:
      name: its name.
      tensor_type: its quantization.
      shape: sizes, outputs first.
      data: [..., values or bytes of a row], on disk.
    """

    name: str
    tensor_type: "GGMLQuantizationType"
    shape: tuple[int, ...]
    data: np.ndarray


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the fields and the tensors of a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, or holds what no model needs.
    """
    data = np.memmap(path, mode="r")
    header = _Header(data)
    if (magic := bytes(data[:4])) != b"GGUF":
        pointer = bytes(data[:15]) == b"version https:/"
        what = ", but is a pointer of Git LFS; run git lfs pull" if pointer else ""
        raise ValueError(f"its magic is {magic!r}; expected b'GGUF'{what}")
    header.place = 4
    if (version := header.scalar("<u4")) not in _VERSIONS:
        if version and not version & 0xFFFF:
            raise ValueError("it is big-endian; expected little-endian")
        raise ValueError(f"it has version {version} of the format; expected 2 or 3")
    num_tensors, num_fields = header.count("tensors"), header.count("fields")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        _add(fields, header.name(), header.value())
    alignment = fields.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{_ALIGNMENT} is {alignment!r:.80}; expected a power of two (alignment)")
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        _add(infos, header.name(), header.tensor())
    start = -(-header.place // alignment) * alignment
    return fields, _tensors(data, infos, start, alignment)


def _add(entries: dict[str, Any], name: str, value: Any) -> None:
    if name in entries:
        raise ValueError(f"it has {name} twice")
    entries[name] = value


class _Header:
    """The bytes of a header, read in order from `place` on."""

    def __init__(self, data: np.ndarray) -> None:
        self._bytes = data.data[:_MAX_BYTES]
        self._values = _MAX_VALUES
        self.place = 0

    def _take(self, size: int) -> int:
        """Returns where the next `size` bytes begin."""
        start = self.place
        if size > len(self._bytes) - start:
            raise ValueError(f"its header ends too early, or claims too much, at byte {start}")
        self.place = start + size
        return start

    def scalar(self, dtype: str) -> Any:
        kind = np.dtype(dtype)
        return np.frombuffer(self._bytes, kind, 1, self._take(kind.itemsize))[0].item()

    def length(self) -> int:
        return struct.unpack_from("<Q", self._bytes, self._take(8))[0]

    def count(self, what: str) -> int:
        if (count := self.length()) > _MAX_ENTRIES:
            raise ValueError(f"it claims {count} {what}; expected {_MAX_ENTRIES} at most")
        return count

    def text(self) -> str:
        size = self.length()
        start = self._take(size)
        try:
            return str(self._bytes[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"it has text that is not UTF-8 at byte {start}") from error

    def name(self) -> str:
        name = self.text()
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            raise ValueError(f"it has the name {name[:40]!r}; expected printable text")
        return name

    def value(self) -> Any:
        kind = self.scalar("<u4")
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"it has a field of type {kind}; expected 0 to 12")
        kind, count = self.scalar("<u4"), self.length()
        if kind == _ARRAY:
            raise ValueError("it has an array of arrays; expected texts or numbers")
        if kind != _TEXT and kind not in _SCALARS:
            raise ValueError(f"it has an array of type {kind}; expected 0 to 12")
        self._values -= count
        if self._values < 0:
            raise ValueError(f"its arrays claim {count} values and more; expected {_MAX_VALUES}")
        if kind == _TEXT:
            return [self.text() for _ in range(count)]
        dtype = np.dtype(_SCALARS[kind])
        start = self._take(count * dtype.itemsize)
        return np.frombuffer(self._bytes, dtype, count, start).tolist() if count else []

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """Returns a tensor's shape, outputs first, its type and its offset."""
        if not 1 <= (rank := self.scalar("<u4")) <= 4:
            raise ValueError(f"it has a tensor of {rank} dimensions; expected 1 to 4")
        shape = tuple(self.length() for _ in range(rank))[::-1]
        return shape, self.scalar("<u4"), self.length()


def _tensors(
    data: np.ndarray, infos: dict[str, tuple[tuple[int, ...], int, int]], start: int, alignment: int
) -> dict[str, Tensor]:
    """Returns the tensors, whose offsets begin at `start`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    result, ends, known = {}, [], {kind.value: kind for kind in GGML_QUANT_SIZES}
    for name, (shape, number, offset) in infos.items():
        if (kind := known.get(number)) is None:
            raise ValueError(f"the tensor {name} is of the unknown type {number}")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if min(shape) < 1 or shape[-1] % block:
            raise ValueError(
                f"the tensor {name} has shape {list(shape)}; expected rows of {kind.name}, whose "
                f"block is {block}"
            )
        row, begin = shape[-1] // block * size, start + offset
        end = begin + math.prod(shape[:-1]) * row
        if end > len(data):
            raise ValueError(f"the tensor {name} lies beyond the end of the file")
        if offset % alignment:
            raise ValueError(f"the tensor {name} has offset {offset}, which is not aligned")
        values = data[begin:end].reshape(*shape[:-1], row)
        dtype = _FLOATS.get(kind.name)
        result[name] = Tensor(name, kind, shape, values.view(dtype) if dtype else values)
        ends.append((begin, end, name))
    ends.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(ends):
        if begin < end:
            raise ValueError(f"the tensors {name} and {other} overlap")
    return result
