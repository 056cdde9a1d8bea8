"""The contents of a GGUF file: metadata, and tensors that are read from disk when used.

A model may be split into files NAME-00001-of-00003.gguf and so on. Each of these names stands for
the whole model; the first file has the metadata.
"""

import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

from kpod_jax.utils import gguf_fields, gguf_reader
from kpod_jax.utils.errors import UserError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class GGUFContents:
    """The contents of a GGUF file.

    Attributes:
      path: the file.
      fields: metadata by key: numbers, strings and lists of them.
      tensors: by name, still quantized.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, gguf_reader.Tensor]

    def field(self, key: str) -> Any:
        """Returns the value of a required field.

        Raises:
          UserError: the field is missing.
        """
        if key not in self.fields:
            raise UserError(f"{self.path} lacks the field {key}. Download or convert it again.")
        return self.fields[key]


def gguf_parts(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the model that a GGUF file holds or is a part of, in order."""
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [path]
    count = int(match[3])
    names = (f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))
    return [path.with_name(name) for name in names]


def read_gguf(path: pathlib.Path) -> GGUFContents:
    """Reads a GGUF file and its other parts, caching the last one read until it changes.

    Raises:
      UserError: the file or a part is missing or damaged.
    """
    parts = gguf_parts(path)
    missing = [part for part in parts if not part.is_file()]
    if len(parts) > len(missing) > 0:
        raise UserError(
            f"Cannot read {missing[0]}: {path.name} is one of {len(parts)} parts of a model, of "
            f"which {len(missing)} do not exist in this directory. Download them, too."
        )
    try:
        statuses = tuple((p, (s := os.stat(p)).st_mtime_ns, s.st_size) for p in parts)
        contents = _read(statuses)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Download or copy it again.") from error
    expected = contents.fields.get("split.tensors.count", len(contents.tensors))
    if contents.fields.get("split.count", 0) > len(parts) or expected != len(contents.tensors):
        raise UserError(
            f"{path} is a part of a model: it holds {len(contents.tensors)} of {expected} tensors. "
            "Put all parts into one directory, named as published (NAME-00001-of-00003.gguf)."
        )
    return contents


# A student's configuration, tokenizer and weights come from the same file, and parsing its
# vocabulary takes seconds.
@functools.lru_cache(maxsize=1)
def _read(statuses: tuple[tuple[pathlib.Path, int, int], ...]) -> GGUFContents:
    parts = [gguf_reader.read(path) for path, _, _ in statuses]
    path, fields = statuses[0][0], parts[0][0]
    gguf_fields.check(fields, path)
    tensors = {name: tensor for _, found in parts for name, tensor in found.items()}
    if len(tensors) < sum(len(found) for _, found in parts):
        raise ValueError("its parts have tensors of the same name")
    return GGUFContents(path, fields, tensors)
