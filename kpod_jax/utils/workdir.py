"""One run's directory, and which of its stages are done, with which inputs.

Each stage leaves `.stages/NAME.json`: the configuration keys and the digests of the files that it
was made from.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kpod_jax.utils import files, renamed
from kpod_jax.utils.errors import UserError


class Workdir:
    """One run's directory."""

    def __init__(self, path: files.PathLike, siblings: Sequence[files.PathLike] = ()) -> None:
        """Makes the directory if it is missing.

        Args:
          path: of the run.
          siblings: other runs, whose outputs may be reused.

        Raises:
          UserError: it cannot be made or written to.
        """
        self.path = files.as_path(path)
        self._siblings = [files.as_path(sibling) for sibling in siblings]
        try:
            (self.path / ".stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make the work directory {self.path}: {error.strerror or error}. Choose "
                "another --workdir, or mend its permissions."
            ) from error

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    def fingerprint(
        self, settings: Mapping[str, object], inputs: Iterable[str], outside: Iterable[str] = ()
    ) -> dict[str, Any]:
        """What a stage depends on, as plain JSON.

        Args:
          settings: configuration keys and values.
          inputs: files of this directory.
          outside: files or directories elsewhere; names that are neither, such as a hub's, pass.
        """
        result: dict[str, Any] = dict(settings)
        for name in inputs:
            result[f"file {name}"] = files.digest(self.path / name)
        for name in outside:
            if name and os.path.exists(path := files.local(name)):
                result[f"file {name}"] = files.digest(path)
        return json.loads(json.dumps(result))  # As it will be read again, with lists for tuples.

    def stored(self, stage: str) -> dict[str, Any] | None:
        """The fingerprint that a stage was made with, or None."""
        path = self._stage_file(stage)
        return renamed.current(files.read_json(path)["fingerprint"]) if path.is_file() else None

    def done(self, stage: str, fingerprint: Mapping[str, Any], outputs: Iterable[str]) -> bool:
        """Whether the outputs are there and were made from just this."""
        path = self._stage_file(stage)
        if not path.is_file() or not all((self.path / name).exists() for name in outputs):
            return False
        return bool(files.read_json(path)["complete"]) and self.stored(stage) == fingerprint

    def difference(self, stage: str, fingerprint: Mapping[str, Any]) -> str:
        """What changed since a stage was made: the first few keys, with both values."""
        old = self.stored(stage) or {}
        changes = [
            f"{key} was {old.get(key)!r:.60} and is {fingerprint.get(key)!r:.60}"
            if not key.startswith("file ")
            else f"{key.removeprefix('file ')} changed"
            for key in sorted(old.keys() | fingerprint.keys())
            if old.get(key) != fingerprint.get(key)
        ]
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" * (len(changes) > 3))

    def mark(
        self,
        stage: str,
        fingerprint: Mapping[str, Any],
        *,
        complete: bool = True,
        seconds: tuple[float, float] | None = None,
    ) -> None:
        """Notes what a stage was, or is being, made from.

        Args:
          stage: its name.
          fingerprint: see there.
          complete: whether its outputs are whole.
          seconds: of time and of this process's processors, that it took since it last began; None
            where another run made it.
        """
        note: dict[str, Any] = {"fingerprint": fingerprint, "complete": complete}
        if seconds is not None:
            note["seconds"], note["processor_seconds"] = (round(value, 3) for value in seconds)
        files.write_json(self._stage_file(stage), note)

    def reuse(self, stage: str, fingerprint: Mapping[str, Any], outputs: Sequence[str]) -> bool:
        """Copies the stage's outputs from a sibling that made them from the very same."""
        for path in self._siblings:
            if not path.is_dir():  # It was not run yet.
                continue
            sibling = Workdir(path)
            if sibling.path == self.path or any((path / name).is_dir() for name in outputs):
                continue  # Directories, such as checkpoints, are not copied.
            if sibling.done(stage, fingerprint, outputs):
                for name in outputs:
                    with (
                        files.atomic_write(self.path / name) as target,
                        (sibling.path / name).open("rb") as source,
                    ):
                        shutil.copyfileobj(source, target)
                self.mark(stage, fingerprint)
                return True
        return False

    @staticmethod
    def note(path: files.PathLike, stage: str) -> dict[str, Any] | None:
        """What `mark` wrote of a stage of some directory, or None."""
        file = files.as_path(path) / ".stages" / f"{stage}.json"
        return files.read_json(file) if file.is_file() else None

    @staticmethod
    def running_stage(path: files.PathLike) -> str | None:
        """The stage of a directory of this machine that was begun last and is not complete."""
        begun = [
            file
            for file in (pathlib.Path(path) / ".stages").glob("*.json")
            if not files.read_json(file)["complete"]
        ]
        return max(begun, key=lambda file: file.stat().st_mtime).stem if begun else None

    def _stage_file(self, stage: str) -> pathlib.Path:
        return self.path / ".stages" / f"{stage}.json"
