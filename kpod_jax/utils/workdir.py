"""A run's work directory, and the status and fingerprints of its stages.

Each stage writes `.stages/NAME.json`, its mark: the configuration keys and file digests that it
depends on, and the digests of the files that it wrote, by which later damage is found.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kpod_jax.utils import config_dict, files
from kpod_jax.utils.errors import UserError


class Workdir:
    """A run's work directory."""

    def __init__(self, path: files.PathLike, siblings: Sequence[files.PathLike] = ()) -> None:
        """Creates the directory if it is missing.

        Args:
          path: the work directory.
          siblings: work directories of other runs, whose outputs may be reused.

        Raises:
          UserError: the directory cannot be created.
        """
        self.path = files.as_path(path)
        self.siblings = [files.as_path(sibling) for sibling in siblings]
        try:
            (self.path / ".stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot create the work directory {self.path}: {error.strerror or error}. Choose "
                "another --workdir, or fix the permissions."
            ) from error

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    def fingerprint(
        self, settings: Mapping[str, object], inputs: Iterable[str], external: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Returns the fingerprint of what a stage depends on, as JSON values.

        Args:
          settings: configuration keys and values.
          inputs: files in this directory.
          external: files or directories elsewhere; other names, such as hub ids, are ignored.
        """
        result: dict[str, Any] = dict(settings)
        for name in inputs:
            result[f"file {name}"] = files.digest(self.path / name)
        for name in external:
            if name and os.path.exists(path := files.local(name)):
                result[f"file {name}"] = files.digest(path)
        return json.loads(json.dumps(result))  # Normalized as if read back: tuples become lists.

    def stored(self, stage: str) -> dict[str, Any] | None:
        """Returns the fingerprint that a stage last ran with, or None."""
        note = self.note(self.path, stage)
        return None if note is None else config_dict.current(note["fingerprint"])

    def done(self, stage: str, fingerprint: Mapping[str, Any], outputs: Iterable[str]) -> bool:
        """Returns whether a stage is complete, with this fingerprint and all that it wrote."""
        note = self.note(self.path, stage)
        if note is None or not note["complete"] or self.missing(stage, outputs):
            return False
        return same(self.stored(stage), fingerprint)

    def missing(self, stage: str, outputs: Iterable[str] = ()) -> list[str]:
        """Returns the files that a complete stage wrote, or should have, and that do not exist."""
        names = dict.fromkeys([*outputs, *recorded(self.path, stage)])
        return [name for name in names if not (self.path / name).exists()]

    def difference(self, stage: str, fingerprint: Mapping[str, Any]) -> str:
        """Describes what changed since a stage ran: the first three keys, with both values."""
        old, new = _by_content(self.stored(stage) or {}), _by_content(fingerprint)
        changes = [
            _change(key, *(side.get(key, config_dict.ADDED.get(key)) for side in (old, new)))
            for key in _differing(old, new)
        ]
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" * (len(changes) > 3))

    def mark(
        self,
        stage: str,
        fingerprint: Mapping[str, Any],
        *,
        complete: bool = True,
        written: Iterable[str] = (),
        seconds: tuple[float, float] | None = None,
    ) -> None:
        """Records a stage's fingerprint and status.

        Args:
          stage: name of the stage.
          fingerprint: what its outputs depend on (see `fingerprint`).
          complete: whether its outputs are complete.
          written: the files that it wrote, whose digests are recorded.
          seconds: wall-clock time and this process's CPU time since it last started; None if the
            outputs were reused from another run.
        """
        if not files.is_writer():
            return
        note: dict[str, Any] = {"fingerprint": fingerprint, "complete": complete}
        if digests := {name: files.digest(self.path / name) for name in written}:
            note["outputs"] = digests
        if seconds is not None:
            note["seconds"], note["processor_seconds"] = (round(value, 3) for value in seconds)
        files.write_json(self._stage_file(stage), note)

    def reuse(self, stage: str, fingerprint: Mapping[str, Any], outputs: Sequence[str]) -> str:
        """Copies a stage's outputs from a sibling with the same fingerprint.

        A sibling whose outputs were changed since they were made is passed over.

        Returns:
          What was done, as a line for the user; "" if there is no such sibling.
        """
        for path in self.siblings:
            if not path.is_dir():  # Not started yet.
                continue
            sibling = Workdir(path)
            if sibling.path == self.path or any((path / name).is_dir() for name in outputs):
                continue  # Do not copy directories, such as checkpoints.
            if sibling.done(stage, fingerprint, outputs) and not changed(sibling.path, stage):
                for name in outputs:
                    with (
                        files.atomic_write(self.path / name) as target,
                        (sibling.path / name).open("rb") as source,
                    ):
                        shutil.copyfileobj(source, target)
                self.mark(stage, fingerprint, written=outputs)
                return "reused from another run with the same inputs"
        return ""

    @staticmethod
    def note(path: files.PathLike, stage: str) -> dict[str, Any] | None:
        """Returns what `mark` wrote for a stage in the work directory `path`, or None.

        Raises:
          UserError: it is damaged.
        """
        file = files.as_path(path) / ".stages" / f"{stage}.json"
        return _read_note(file) if file.is_file() else None

    @staticmethod
    def seconds(path: files.PathLike) -> float:
        """Returns the wall-clock time of all stages that ran in the work directory `path`."""
        notes = [_read_note(file) for file in (files.as_path(path) / ".stages").glob("*.json")]
        return sum(note.get("seconds") or 0.0 for note in notes)

    @staticmethod
    def running_stage(path: files.PathLike) -> str | None:
        """Returns the most recently started incomplete stage in a local work directory, or None."""
        running = [
            file
            for file in (pathlib.Path(path) / ".stages").glob("*.json")
            if not _read_note(file)["complete"]
        ]
        return max(running, key=lambda file: file.stat().st_mtime).stem if running else None

    def _stage_file(self, stage: str) -> pathlib.Path:
        return self.path / ".stages" / f"{stage}.json"


# Precedes the digest that stands for a setting's path.
_CONTENTS = "the contents of "


def same(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Returns whether two fingerprints agree, wherever the files outside the work directory are."""
    return old is not None and _by_content(old) == _by_content(new)


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which two fingerprints differ; see `same`."""
    return _differing(_by_content(old), _by_content(new))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def _by_content(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces every path among the settings that has a digest by that digest.

    Drops keys of `config_dict.ADDED` that have the value which earlier versions implied.
    """
    result, paths = {}, set()
    for key, value in fingerprint.items():
        if key in config_dict.ADDED and value == config_dict.ADDED[key]:
            continue
        if isinstance(value, str) and f"file {value}" in fingerprint:
            paths.add(f"file {value}")
            value = _CONTENTS + fingerprint[f"file {value}"]
        result[key] = _by_content(value) if isinstance(value, Mapping) else value
    return {key: value for key, value in result.items() if key not in paths}


def _change(key: str, old: Any, new: Any) -> str:
    if key.startswith("file "):
        return f"{key.removeprefix('file ')} changed"
    if all(isinstance(value, str) and value.startswith(_CONTENTS) for value in (old, new)):
        return f"{_CONTENTS}{key} changed"
    return f"{key} was {old!r:.60}, now {new!r:.60}"


def _read_note(file: pathlib.Path) -> dict[str, Any]:
    note = files.read_output(file, file.stem, {"fingerprint": dict, "complete": bool})
    if not isinstance(note.get("outputs", {}), dict):
        raise UserError(
            f"{file} is damaged: its outputs are not an object. {files.remedy(file.stem)}"
        )
    return note


def recorded(path: files.PathLike, stage: str) -> dict[str, str]:
    """Returns the digests of the files that a complete stage wrote, by name.

    It is empty for the stages of earlier versions, which recorded none.
    """
    note = Workdir.note(path, stage)
    return note.get("outputs", {}) if note and note["complete"] else {}


def changed(path: files.PathLike, stage: str, names: Iterable[str] | None = None) -> str | None:
    """Returns the first existing file that was changed since a stage wrote it, or None.

    Sizes and times do not tell flipped bits, so the contents are read.

    Args:
      path: the work directory.
      stage: the stage that wrote the files.
      names: the files to check; None: all.
    """
    root = files.as_path(path)
    for name, digest in recorded(root, stage).items():
        if (names is not None and name not in names) or not (root / name).exists():
            continue
        if files.digest(root / name) != digest:
            # Another process may be making the stage again, after it has changed the mark.
            return name if recorded(root, stage).get(name) == digest else None
    return None


def check_unchanged(path: files.PathLike, stage: str, names: Iterable[str] | None = None) -> None:
    """Raises a `UserError` if a file was changed since a stage wrote it; see `changed`."""
    if name := changed(path, stage, names):
        raise UserError(
            f"{files.as_path(path) / name} was changed after the {stage} stage wrote it. Nothing "
            f"was overwritten. {files.remedy(stage)}"
        )
