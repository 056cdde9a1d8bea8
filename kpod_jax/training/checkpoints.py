"""Checkpoints: Orbax behind one small interface, with every file's checksum.

A checkpoint is a directory named by its step. It is written in the background under a temporary
name and renamed when it is whole, so that a run killed at any moment leaves the checkpoints before.
Orbax notices a file that is cut off but not one whose bits have changed; so the SHA-256 of every
file is written into the checkpoint before the renaming and compared before anything is restored.
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
from kpod_jax.utils.errors import UserError

_CHECKSUMS = "checksums.json"
_STATE, _EXTRA = "state", "extra"

Which = int | Literal["latest", "best"]


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      state: like the abstract state that was asked for, on its shardings.
      extra: what was given to `save`.
      step: whose checkpoint it is, which need not be the one that was asked for first.
    """

    state: Any
    extra: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one training, in one directory.

    Every method but `steps`, `latest_step` and `best_step` must be called by all processes. Use it
    as a context manager, or call `close`: a save is done only when it has been waited for.
    """

    def __init__(
        self,
        directory: files.PathLike,
        *,
        max_to_keep: int = 2,
        best_metric: str | None = None,
        read_only: bool = False,
    ) -> None:
        """Opens the directory, making it if need be, and clears away saves that were cut short.

        Args:
          directory: holds these checkpoints and nothing else.
          max_to_keep: how many of the latest are kept.
          best_metric: the metric given to `save` whose largest value's checkpoint is kept as well.
          read_only: never write, not even to clear away; for readers beside a training that goes
            on. The directory must be there.

        Raises:
          UserError: the directory is missing (`read_only`) or cannot be written to.
        """
        directory = files.as_path(directory)
        self._directory = directory if files.is_remote(directory) else directory.absolute()
        self._read_only = read_only
        self._best_metric = best_metric
        self._saving: int | None = None
        if read_only and not self._directory.is_dir():
            raise UserError(
                f"There are no checkpoints at {self._directory}: no such directory. Run the stage "
                "that trains first, or give the --workdir where it ran."
            )
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
        with self._explained():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=options,
                item_handlers={
                    # Floats hardly shrink by compression, which takes most of the time of a save.
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
        try:  # What went wrong first is what the user must see.
            self.close()
        except Exception as error:
            logging.warning("The last checkpoint was not saved: %s", error)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, rising; one that is being saved counts."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The last step that has a checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step whose metric is best, of equal ones the latest; without metrics, the latest."""
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

        A step that has a checkpoint already keeps it.

        Args:
          step: of training, not negative.
          state: pytree of jax.Arrays, which may be donated or deleted as soon as this returns.
            Random keys are not stored: fold the step into the run's key instead.
          extra: what else is needed to go on, such as the data iterator's state; plain JSON.
          metrics: measured at this step. Of one without `best_metric`, or with a value that is not
            finite, it is not known how good it is; such a checkpoint is worse than any other.

        Raises:
          UserError: the disk is full or read-only; also when it was the save before that failed.
          ValueError: the checkpoints were opened as `read_only`.
        """
        if self._read_only:
            raise ValueError(f"the checkpoints of {self._directory} were opened to be read alone")
        if step in self.steps():
            return
        value = float((metrics or {}).get(self._best_metric or "", math.nan))
        with self._explained():
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
        """Reads the latest checkpoint to go on with it; all is as it was saved, to the bit.

        A damaged checkpoint is named in a warning, set aside under the name `damaged-STEP` (unless
        `read_only`), and the one before it is read.

        Args:
          abstract_state: the state's tree of jax.ShapeDtypeStruct with the shardings that are
            wanted, which may be of another mesh than that of the run that saved.

        Raises:
          UserError: there is no checkpoint, or none that is whole, or it holds other arrays than
            `abstract_state`; the message names them and both shapes.
        """
        step = self._whole("latest", set_aside=not self._read_only)
        self._check(step, abstract_state, partial=False)
        return self._read(step, abstract_state, partial=False)

    def restore_like(self, state: Any) -> Restored:
        """As `restore`, into arrays like those of a state."""
        return self.restore(
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
        )

    def restore_params(self, abstract_params: Any, which: Which = "best") -> Restored:
        """Reads the entry "params" of a state alone, for use without the optimiser's state.

        Nothing is set aside. A dtype other than the stored one is cast to.

        Args:
          abstract_params: as for `restore`.
          which: a step, of which alone a damaged checkpoint is an error, or "latest" or "best".

        Raises:
          UserError: as for `restore`.

        Returns:
          `state` of which is the parameters.
        """
        step = self._whole(which, set_aside=False)
        abstract_state = {"params": abstract_params}
        self._check(step, abstract_state, partial=True)
        restored = self._read(step, abstract_state, partial=True)
        return restored._replace(state=restored.state["params"])

    def wait(self) -> None:
        """Returns when the last save is done.

        Raises:
          UserError: it failed: the disk is full or read-only.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of threads; raises as `wait` does."""
        with self._explained():
            self._manager.close()

    def _score(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(str(self._best_metric))
        return -math.inf if value is None else value

    def _write_checksums(self) -> None:
        """Adds the checksums to a checkpoint that is whole but for its name.

        Orbax calls it in the first process, in the thread that saves.
        """
        names = [str(self._saving), f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*"]
        path = next(path for name in names for path in self._directory.glob(name))
        files.write_json(path / _CHECKSUMS, _checksums(path))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint's files, or None."""
        path = self._directory / str(step)
        try:
            expected = files.read_json(path / _CHECKSUMS)
            found = _checksums(path)
        except UserError as error:
            return str(error).rstrip(".")
        if missing := sorted(expected.keys() - found.keys()):
            return f"{missing[0]} is missing"
        if changed := [name for name in sorted(expected) if found[name] != expected[name]]:
            return f"{changed[0]} is not as it was written (its SHA-256 differs)"
        return None

    def _whole(self, which: Which, *, set_aside: bool) -> int:
        """The step of the first whole checkpoint, beginning with `which`."""
        self.wait()
        if self._read_only:
            self._manager.reload()  # Another process may have saved or deleted some.
        if isinstance(which, int):
            candidates = [step for step in self.steps() if step == which]
        else:
            candidates = self.steps()[::-1]
        if which == "best" and (best := self.best_step()) is not None:
            candidates = [best, *(step for step in candidates if step != best)]
        if not candidates:
            raise UserError(
                f"{self._directory} has no checkpoint"
                + (f" of step {which}; it has {self.steps()}." if isinstance(which, int) else ".")
                + " Run the stage that trains first, or give the --workdir where it ran."
            )
        damages = []
        for step in candidates:
            # All processes must take the same one, so the first looks and the others are told.
            damage = self._damage(step) if jax.process_index() == 0 else "the first process says so"
            if not multihost_utils.broadcast_one_to_all(np.int32(damage is not None)):
                return step
            damages.append(f"checkpoint {self._directory / str(step)} is damaged: {damage}")
            if not isinstance(which, int):
                logging.warning("%s. Trying the one before it.", damages[-1])
                if set_aside:
                    self._set_aside(step)
        raise UserError(
            f"No whole checkpoint: {'; '.join(damages)}. Restore {self._directory} from a copy, or "
            "delete it and train again."
        )

    def _set_aside(self, step: int) -> None:
        with self._explained():
            if jax.process_index() == 0:
                aside = self._directory / f"damaged-{step}"
                files.remove(aside)
                (self._directory / str(step)).rename(aside)
            multihost_utils.sync_global_devices(f"set aside checkpoint {step}")
            self._manager.reload()

    def _check(self, step: int, abstract_state: Any, *, partial: bool) -> None:
        """Compares names and shapes, and dtypes unless `partial`, with what is stored."""
        stored = _named(self._manager.item_metadata(step)[_STATE].tree)
        wanted = _named(abstract_state)
        problems = [f"{name} is not in it" for name in wanted.keys() - stored.keys()]
        if not partial:
            problems += [f"{name} is not expected" for name in stored.keys() - wanted.keys()]
        for name in wanted.keys() & stored.keys():
            (shape, dtype), (other_shape, other_dtype) = stored[name], wanted[name]
            if shape != other_shape or (dtype != other_dtype and not partial):
                problems.append(
                    f"{name} is {dtype}{list(shape)} in it, "
                    f"{other_dtype}{list(other_shape)} was expected"
                )
        if problems:
            raise UserError(
                f"Checkpoint {self._directory / str(step)} is of another model or optimiser: "
                + "; ".join(sorted(problems)[:5])
                + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
                + ". Use the configuration that it was made with, or another --workdir."
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
    def _explained(self) -> Iterator[None]:
        """Makes a UserError of what the disk refuses; other errors pass."""
        try:
            yield
        except Exception as error:
            if reason := _disk_error(error):
                raise UserError(
                    f"Cannot write checkpoints to {self._directory}: {reason}. Those saved before "
                    "are whole; free some space, mend the permissions or choose another "
                    "--workdir, then run the same command again: it goes on from the latest."
                ) from error
            raise


def _checksums(path: pathlib.Path) -> dict[str, str]:
    """SHA-256 by relative path of all files of a checkpoint's items."""
    items = (item for item in path.iterdir() if item.is_dir())
    paths = sorted(file for item in items for file in files.files_under(item))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # Hashing lets go of the GIL.
        digests = pool.map(files.digest, paths)
        return {
            file.relative_to(path).as_posix(): digest
            for file, digest in zip(paths, digests, strict=True)
        }


def _named(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every leaf by its path, `params/decoder/embedding`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _disk_error(error: BaseException | None) -> str | None:
    """What the operating system said, if `error` or what caused it comes from there."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        # TensorStore raises ValueErrors that hold "[os_error_code='28']" or "[OS error 28: ...".
        if found := re.search(r"\[(?:OS error |os_error_code=')(\d+)", str(error)):
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return None
