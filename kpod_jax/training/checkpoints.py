"""Checkpoints: a small interface to Orbax that adds a checksum for every file.

A checkpoint is a directory named after its step. It is written in the background under a temporary
name and renamed when complete, so an interrupted run leaves the earlier checkpoints intact.
Orbax detects truncated files but not flipped bits, so the SHA-256 of every file is stored in the
checkpoint before the rename and verified before a restore.
"""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, why

_CHECKSUMS = "checksums.json"
_STATE, _EXTRA, _METRICS = "state", "extra", "metrics"

Which = int | Literal["latest", "best"]


def how_to_remake(directory: pathlib.Path, step: int) -> str:
    """Returns what to do about a damaged or missing checkpoint.

    A training goes on from its latest checkpoint, so it makes an earlier one again only if those
    after that one are gone.
    """
    later = [str(other) for other in steps_in(directory) if other > step]
    others = f" and those after it ({', '.join(later)})" if later else ""
    return (
        f"Restore it from a copy; or delete it{others}, then run the training stage again, which "
        "goes on from the checkpoint before it, if there is one."
    )


def steps_in(directory: pathlib.Path) -> list[int]:
    """Returns the steps whose checkpoints are complete, ascending."""
    return sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdecimal())


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
      state: like the requested abstract state, with its shardings.
      extra: the `extra` passed to `save`.
      step: step of this checkpoint; not the latest one if that was damaged.
    """

    state: Any
    extra: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one training run, in one directory.

    All processes must call every method except `steps`, `latest_step` and `best_step`. Use it as a
    context manager, or call `close`: a save is complete only once it has been waited for.
    """

    def __init__(
        self,
        directory: files.PathLike,
        *,
        max_to_keep: int = 2,
        best_metric: str | None = None,
        read_only: bool = False,
    ) -> None:
        """Opens the directory, creating it if needed, and removes interrupted saves.

        Args:
          directory: holds only these checkpoints.
          max_to_keep: number of latest checkpoints to keep.
          best_metric: a metric passed to `save`; the checkpoint with its largest value is kept too.
          read_only: never write or clean up, for reading while a training run writes. The directory
            must exist.

        Raises:
          UserError: the directory does not exist (`read_only`) or is not writable, all of its
            checkpoints were damaged, or the metric of one is.
        """
        directory = files.as_path(directory)
        self._directory = directory if files.is_remote(directory) else directory.absolute()
        self._read_only = read_only
        self._best_metric = best_metric
        self._saving: int | None = None
        if read_only and not self._directory.is_dir():
            raise UserError(
                f"No checkpoints at {self._directory}: no such directory. Run the training stage "
                "first, or pass the --workdir that it used."
            )
        self._check_readable()
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            best_fn=self._score,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(max_to_keep),
                    policies.BestN(get_metric_fn=self._score, n=1 if best_metric else 0),
                ]
            ),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        with self._reporting_disk_errors():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=options,
                item_handlers={
                    # Compression barely shrinks floats and takes most of the save time.
                    _STATE: ocp.PyTreeCheckpointHandler(use_compression=False),
                    _EXTRA: ocp.JsonCheckpointHandler(),
                },
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        try:  # The original error is the one the user must see.
            self.close()
        except Exception as error:
            # It is written under a temporary name.
            text = re.sub(rf"{ocp.utils.TMP_DIR_SUFFIX}[\w.-]*", "", str(error))
            logging.warning("The last checkpoint was not saved: %s", text)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending, including one being saved."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the latest step that has a checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the latest step with the best metric; without metrics, the latest step."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        state: Any,
        *,
        extra: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves in the background; waits only for an earlier save and for the copy to the host.

        A step that already has a checkpoint is not saved again.

        Args:
          step: training step, nonnegative.
          state: pytree of jax.Arrays, which may be donated or deleted once this returns. Random
            keys are not stored: fold the step into the run's key instead.
          extra: anything else needed to resume, such as the data iterator's state; plain JSON.
          metrics: measured at this step. A checkpoint without `best_metric`, or with a non-finite
            value, ranks below all others.

        Raises:
          UserError: the disk is full or read-only, or was during the previous save.
          ValueError: the checkpoints were opened with `read_only`.
        """
        if self._read_only:
            raise ValueError(f"cannot save to {self._directory}: it was opened with read_only=True")
        if step in self.steps():
            return
        value = float((metrics or {}).get(self._best_metric or "", math.nan))
        with self._reporting_disk_errors():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.PyTreeSave(state),
                        _EXTRA: ocp.args.JsonSave(dict(extra or {})),
                    }
                ),
                metrics={str(self._best_metric): value} if math.isfinite(value) else {},
                force=True,
            )

    def restore(self, abstract_state: Any) -> Restored:
        """Restores the latest checkpoint, bit for bit, to resume from it.

        A damaged checkpoint is logged as a warning, renamed to `damaged-STEP` (unless `read_only`),
        and the one before it is restored. If all are damaged, none is renamed.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct with the desired shardings, which may be on a
            different mesh than that of the run that saved.

        Raises:
          UserError: there is no checkpoint, all are damaged, or the arrays differ from
            `abstract_state`; the message lists their names and both shapes.
        """
        step = self._latest_intact()
        self._check(step, abstract_state, partial=False)
        return self._read(step, abstract_state, partial=False)

    def restore_like(self, state: Any) -> Restored:
        """Restores as `restore` does, with the shapes, dtypes and shardings of `state`."""
        return self.restore(
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
        )

    def restore_params(self, abstract_params: Any, which: Which = "best") -> Restored:
        """Restores only the "params" entry of a state, without the optimizer state.

        Parameters are cast to the requested dtype. A damaged checkpoint is not replaced by another.

        Args:
          abstract_params: see `restore`.
          which: "latest", "best" or a step.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or the arrays differ.

        Returns:
          The checkpoint, with the parameters as its `state`.
        """
        step = self._intact(which)
        abstract_state = {"params": abstract_params}
        self._check(step, abstract_state, partial=True)
        restored = self._read(step, abstract_state, partial=True)
        return restored._replace(state=restored.state["params"])

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          UserError: the save failed because the disk is full or read-only.
        """
        with self._reporting_disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the threads; raises as `wait` does."""
        with self._reporting_disk_errors():
            self._manager.close()

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(str(self._best_metric))
        return -math.inf if value is None else value

    def _write_checksums(self) -> None:
        """Adds the checksums to a checkpoint that is complete but not yet renamed.

        Orbax calls this in the first process, on the thread that saves.
        """
        names = [str(self._saving), f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*"]
        path = next(path for name in names for path in self._directory.glob(name))
        files.write_json(path / _CHECKSUMS, _checksums(path))

    def _check_readable(self) -> None:
        """Checks what Orbax would stop at, or pass over, when it opens the directory.

        Raises:
          UserError: the metric of a checkpoint is damaged, so the best one is unknown; or there are
            damaged checkpoints alone, after which the training would start over.
        """
        if not self._directory.is_dir():
            return
        steps = steps_in(self._directory)
        for step in steps:
            path = self._directory / str(step)
            if damage := _metrics_damage(path):
                raise UserError(
                    f"Checkpoint {path} is damaged: {damage}, so the best checkpoint is unknown. "
                    f"{how_to_remake(self._directory, step)}"
                )
        aside = sorted(path.name for path in self._directory.glob("damaged-*"))
        if aside and not steps:
            raise UserError(
                f"{self._directory} has no checkpoint except damaged ones: {', '.join(aside)}. "
                "Restore it from a copy, or delete it to train from scratch."
            )

    def _damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint's files, or None."""
        path = self._directory / str(step)
        expected = _stored_checksums(path)
        if not expected:
            return f"{_CHECKSUMS} is missing or damaged"
        try:
            actual = _checksums(path)
        except UserError as error:
            return str(error).rstrip(".")
        if missing := sorted(expected.keys() - actual.keys()):
            return f"{missing[0]} is missing"
        if changed := [name for name in sorted(expected) if actual[name] != expected[name]]:
            return f"{changed[0]} is corrupt (its SHA-256 differs)"
        return None

    def _shared_damage(self, step: int) -> str | None:
        """Returns `_damage`, found by the first process for all, which must choose alike."""
        damage = self._damage(step) if jax.process_index() == 0 else "see the first process"
        is_damaged = multihost_utils.broadcast_one_to_all(np.int32(damage is not None))
        return damage if is_damaged else None

    def _current_steps(self) -> list[int]:
        """Returns the steps on disk, ascending.

        Raises:
          UserError: there are none.
        """
        self.wait()
        if self._read_only:
            self._manager.reload()  # Another process may have saved or deleted checkpoints.
        if not (steps := self.steps()):
            raise UserError(
                f"{self._directory} has no checkpoint. Run the training stage first, or pass the "
                "--workdir that it used."
            )
        return steps

    def _latest_intact(self) -> int:
        """Returns the latest undamaged step, and sets later ones aside."""
        damages: dict[int, str] = {}
        for step in reversed(self._current_steps()):
            if (damage := self._shared_damage(step)) is None:
                break
            damages[step] = damage
        else:
            named = [f"{self._directory / str(step)}: {text}" for step, text in damages.items()]
            raise UserError(
                f"No intact checkpoint: {'; '.join(named)}. Restore {self._directory} from a copy, "
                "or delete it to train from scratch."
            )
        for other, damage in damages.items():
            moved = "" if self._read_only else f" It was moved to {self._set_aside(other)}."
            logging.warning(
                "Checkpoint %d is damaged: %s.%s Using step %d.", other, damage, moved, step
            )
        return step

    def _intact(self, which: Which) -> int:
        """Returns the step of a checkpoint.

        Raises:
          UserError: there is none, or it is damaged.
        """
        steps = self._current_steps()
        best = self.best_step() if which == "best" else None
        step = which if isinstance(which, int) else steps[-1] if best is None else best
        if step not in steps:
            raise UserError(
                f"{self._directory} has no checkpoint for step {step}; it has {steps}. Run the "
                "training stage first, or pass the --workdir that it used."
            )
        if (damage := self._shared_damage(step)) is not None:
            path, others = self._directory / str(step), [other for other in steps if other != step]
            choice = f" Or read another: eval.checkpoint={others[-1]}." if others else ""
            raise UserError(
                f"Checkpoint {path} is damaged: {damage}. "
                f"{how_to_remake(self._directory, step)}{choice}"
            )
        return step

    def _set_aside(self, step: int) -> pathlib.Path:
        target = self._directory / f"damaged-{step}"
        with self._reporting_disk_errors():
            if jax.process_index() == 0:
                files.remove(target)
                (self._directory / str(step)).rename(target)
            multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
            self._manager.reload()
        return target

    def _check(self, step: int, abstract_state: Any, *, partial: bool) -> None:
        """Compares names, shapes and (unless `partial`) dtypes with what is stored.

        Raises:
          UserError: they differ.
        """
        stored = _leaf_specs(self._manager.item_metadata(step)[_STATE].tree)
        expected = _leaf_specs(abstract_state)
        problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
        if not partial:
            problems += [f"{name} is unexpected" for name in stored.keys() - expected.keys()]
        for name in expected.keys() & stored.keys():
            (shape, dtype), (expected_shape, expected_dtype) = stored[name], expected[name]
            if shape != expected_shape or (dtype != expected_dtype and not partial):
                problems.append(
                    f"{name} is {dtype}{list(shape)}, "
                    f"expected {expected_dtype}{list(expected_shape)}"
                )
        if problems:
            raise UserError(
                f"Checkpoint {self._directory / str(step)} does not match the model or optimizer: "
                + "; ".join(sorted(problems)[:5])
                + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
                + ". Use the configuration it was saved with, or another --workdir."
            )

    def _read(self, step: int, abstract_state: Any, *, partial: bool) -> Restored:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.PyTreeRestore(
                        abstract_state,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
                        partial_restore=partial,
                    ),
                    _EXTRA: ocp.args.JsonRestore(),
                }
            ),
        )
        return Restored(restored[_STATE], restored[_EXTRA], step)

    @contextlib.contextmanager
    def _reporting_disk_errors(self) -> Iterator[None]:
        """Turns disk errors into a UserError; other errors propagate."""
        try:
            yield
        except Exception as error:
            if reason := _disk_error(error):
                raise UserError(
                    f"Cannot write checkpoints to {self._directory}: {reason}. Earlier "
                    "checkpoints are intact. Free some space, fix the permissions or choose "
                    "another --workdir, then run the same command again to resume."
                ) from error
            raise


def _checksums(path: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of all files of a checkpoint's items, by relative path."""
    items = (item for item in path.iterdir() if item.is_dir())
    paths = sorted(file for item in items for file in files.files_under(item))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # Hashing releases the GIL.
        digests = pool.map(files.digest, paths)
        return {
            file.relative_to(path).as_posix(): digest
            for file, digest in zip(paths, digests, strict=True)
        }


def _stored_checksums(path: pathlib.Path) -> dict[str, str]:
    """Returns the checksums that were stored in a checkpoint, or {} if they are damaged."""
    try:
        stored = files.read_json(path / _CHECKSUMS)
    except UserError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _metrics_damage(path: pathlib.Path) -> str | None:
    """Returns what is wrong with the metrics of a checkpoint, or None."""
    name = f"{_METRICS}/{_METRICS}"
    expected = _stored_checksums(path).get(name)
    try:
        if expected is not None:
            is_damaged = files.digest(path / name) != expected
        else:  # The checksums are damaged, or there is no metric.
            is_damaged = (path / name).exists() and not isinstance(
                files.read_json(path / name), dict
            )
    except UserError:
        is_damaged = path.is_dir()  # Else another process has just deleted the checkpoint.
    return f"{name} is missing or corrupt" if is_damaged else None


def _leaf_specs(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns each leaf's shape and dtype by path, such as `params/decoder/embedding`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _disk_error(error: BaseException | None) -> str | None:
    """Returns the operating system's message if `error`, or its cause, comes from there."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno or why(error) != str(error)):
            return why(error)
        # TensorStore raises ValueErrors containing "[os_error_code='28']" or "[OS error 28: ...".
        if match := re.search(r"\[(?:OS error |os_error_code=')(\d+)", str(error)):
            return os.strerror(int(match[1]))
        error = error.__cause__ or error.__context__
    return None
