"""What is in a GGUF file: its metadata, and its tensors, which stay on the disk until used."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class GGUFContents:
    """A GGUF file.

    Attributes:
      path: of the file.
      fields: metadata by key: numbers, texts and lists of them.
      tensors: `gguf.gguf_reader.ReaderTensor` by name, as they are quantised.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Any]

    def field(self, key: str) -> Any:
        """The value of a field that must be there.

        Raises:
          UserError: it is not.
        """
        if key not in self.fields:
            raise UserError(f"{self.path} lacks the field {key}. Fetch or convert it again.")
        return self.fields[key]


def read_gguf(path: pathlib.Path) -> GGUFContents:
    """Reads a GGUF file's metadata. The last file read is remembered for as long as it is the same.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        status = os.stat(path)
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"Cannot read {path}: {error}. Fetch or copy it again.") from error


# A student's configuration, tokenizer and weights are read one after another from the same file,
# and going through a vocabulary takes seconds.
@functools.lru_cache(maxsize=1)
def _read(path: pathlib.Path, modified_ns: int, size: int) -> GGUFContents:
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return GGUFContents(path, fields, {tensor.name: tensor for tensor in reader.tensors})
