"""The contents of a GGUF file: metadata, and tensors that are read from disk when used."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class GGUFContents:
    """The contents of a GGUF file.

    Attributes:
      path: the file.
      fields: metadata by key: numbers, strings and lists of them.
      tensors: `gguf.gguf_reader.ReaderTensor` by name, still quantized.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Any]

    def field(self, key: str) -> Any:
        """Returns the value of a required field.

        Raises:
          UserError: the field is missing.
        """
        if key not in self.fields:
            raise UserError(f"{self.path} lacks the field {key}. Download or convert it again.")
        return self.fields[key]


def read_gguf(path: pathlib.Path) -> GGUFContents:
    """Reads a GGUF file, caching the last one read until it changes.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        status = os.stat(path)
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"Cannot read {path}: {error}. Download or copy it again.") from error


# A student's configuration, tokenizer and weights come from the same file, and parsing its
# vocabulary takes seconds.
@functools.lru_cache(maxsize=1)
def _read(path: pathlib.Path, modified_ns: int, size: int) -> GGUFContents:
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return GGUFContents(path, fields, {tensor.name: tensor for tensor in reader.tensors})
