"""Batches for teacher forcing: every batch is a pure function of (seed, step).

Here the schedule meets the loss: w_j, the step mask (step >= c_i) and the answer's weight of 1 are
combined into one array, `loss_weights`. The train step is then a plain weighted cross entropy whose
shapes stay the same as c_i changes.

Letters: N examples, B rows of a batch, S tokens of a prompt, U tokens of a target.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import grain
import numpy as np

from kpod_jax.data import packing, pairs
from kpod_jax.data.buckets import batch_rows, length_buckets, padded
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet, in_rationale, step_starts
from kpod_jax.utils.errors import UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How examples are arranged in rows, and rows in batches.

    Attributes:
      batch_size: B, rows of a batch over all hosts.
      seed: seed of the epochs' order; at least 0.
      pad_id: token that pads `input_ids`, `decoder_input_ids` and `targets`.
      decoder_start_id: first token of `decoder_input_ids`.
      buckets: maximum number of batch shapes.
      pack_length: length of a row that packs several examples, for decoder-only students; batches
        then have a single shape and an array "segments". Examples that share a row do so in every
        epoch. 0: one example per row.
      input_steps: where the steps before c_i go: "decoder", as unsupervised context of the decoder;
        or "encoder", at the end of the encoder's input, before its EOS, as drawn in the paper. The
        latter makes inputs U tokens longer, whatever c_i is, so shapes stay the same.
      host: (index, count): this host builds only its part of each batch's rows; all parts together
        are the batch. The content of a batch does not depend on the count.
    """

    batch_size: int
    seed: int
    pad_id: int
    decoder_start_id: int
    buckets: int = 4
    pack_length: int = 0
    input_steps: Literal["decoder", "encoder"] = "decoder"
    host: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Supervision:
    """Which tokens are supervised and with what weight (Eq. 15). Default: all, with weight 1.

    Attributes:
      weights: w_j of every rationale token, N slices of `rationale_lengths`; None: 1.
      start_steps: maps a phase to c_i of every example, [N] integers; None: 0.
      phase_of_step: maps a training step to its phase; None: the step's epoch.
      step_starts: whether to also supervise the first token of each step before c_i in the decoder,
        where the student chooses between another step and the answer.
      example_weights: [N] float32 factors on all loss weights of an example; None: 1.
      groups: slices of at least two example indices. Rows 2 k and 2 k + 1 of a batch are then two
        examples of one slice, redrawn in each epoch; every slice occurs once per epoch. None: every
        row is an independent example.
      arrays: maps a batch's example indices, [B] with -1 for padding rows, and U to additional
        arrays of B rows, for a custom loss.
    """

    weights: Ragged | None = None
    start_steps: Callable[[int], np.ndarray] | None = None
    phase_of_step: Callable[[int], int] | None = None
    step_starts: bool = False
    example_weights: np.ndarray | None = None
    groups: Ragged | None = None
    arrays: Callable[[np.ndarray, int], Batch] | None = None


class BatchSource:
    """Batches of a `TokenizedSet`, indexed by training step.

    Examples of similar length share batches: they are sorted into a few buckets, each with one
    shape [S, U], so the train step is compiled once per bucket. An epoch visits every example
    exactly once, in an order that depends only on (seed, epoch). Padding rows fill the last batch
    of a bucket; the batch's "divisor" keeps the weight of its tokens the same as elsewhere. If a
    phase leaves examples out (c_i > n_i), its steps are filled with the remaining ones, each about
    equally often, without padding rows.

    Attributes:
      start_steps: maps a phase to c_i of every example, [N] integers.
    """

    def __init__(
        self, tokenized: TokenizedSet, layout: Layout, supervision: Supervision | None = None
    ) -> None:
        """Assigns the N examples to buckets or packed rows; batches are built on request.

        Raises:
          UserError: there are no examples, a setting is out of range, the weights belong to other
            examples, or the hosts cannot divide a batch evenly.
        """
        supervision = supervision or Supervision()
        batch_size, pack_length, buckets = layout.batch_size, layout.pack_length, layout.buckets
        groups, input_steps = supervision.groups, layout.input_steps
        if len(tokenized) == 0:
            raise UserError(
                "There are no examples to train on. See records/rejected.jsonl for the rejected "
                "records and the reasons."
            )
        for name, setting, minimum in (
            ("batch_size", batch_size, 1),
            ("buckets", buckets, 1),
            ("seed", layout.seed, 0),
        ):
            if setting < minimum:
                raise UserError(f"Invalid {name}={setting}; expected at least {minimum}.")
        if (pack_length or input_steps == "encoder") and (
            groups is not None or supervision.arrays is not None
        ):
            raise UserError(
                "This method's loss depends on token positions, which distill.pack_length and "
                "distill.input_steps='encoder' change; expected 0 and decoder."
            )
        host, count = layout.host
        if groups is not None and batch_size % (2 * count):
            raise UserError(
                f"distill.batch_size={batch_size}: this method puts pairs of rows into a batch; "
                f"expected a multiple of {2 * count}."
            )
        if batch_size % count:
            raise UserError(
                f"Cannot divide a batch of {batch_size} rows evenly among {count} hosts. Make "
                f"distill.batch_size a multiple of {count}."
            )
        self._pack_length = pack_length
        self._host_rows = slice(host * batch_size // count, (host + 1) * batch_size // count)
        self._tokenized = tokenized
        self._batch_size = batch_size
        self._groups, self._arrays = groups, supervision.arrays
        self._items_of_batch = batch_size // (1 if groups is None else 2)
        self._seed = layout.seed
        self._pad_id = layout.pad_id
        self._decoder_start_id = layout.decoder_start_id
        self._weights = _target_weights(tokenized, supervision.weights, supervision.example_weights)
        self._input_steps = input_steps
        # A token is supervised as long as c_i does not exceed this.
        self._latest_start = tokenized.steps
        if supervision.step_starts and input_steps == "decoder":
            self._latest_start = _with_step_starts(tokenized)
        zeros_N = np.zeros(len(tokenized), np.int32)
        self.start_steps = supervision.start_steps or (lambda phase: zeros_N)
        self._phase_of_step = supervision.phase_of_step or (
            lambda step: step // self.steps_per_epoch
        )
        if pack_length:
            lengths_N = packing.sequence_lengths(tokenized)
            if lengths_N.max() > pack_length:
                longest = int(lengths_N.argmax())
                raise UserError(
                    f"Record {tokenized.records[longest].id} has {lengths_N[longest]} tokens, more "
                    f"than distill.pack_length={pack_length}. Increase it, or reduce "
                    "student.max_question_tokens and student.max_target_tokens."
                )
            self._bins = packing.pack_bins(lengths_N, pack_length)
            self._buckets = [(np.arange(len(self._bins)), np.array([0, pack_length]))]
        else:
            lengths_Nx2 = np.stack([tokenized.questions.lengths, tokenized.targets.lengths], axis=1)
            if groups is not None:
                lengths_Nx2 = pairs.max_lengths(lengths_Nx2, groups)
            self._buckets = length_buckets(lengths_Nx2, buckets, self._items_of_batch)
        # An item is the content of one row (an example, or a bin of packed examples), or of two
        # rows (a pair from a group).
        self._shape_of_item = np.zeros((sum(len(m) for m, _ in self._buckets), 2), np.int64)
        for members, shape in self._buckets:
            self._shape_of_item[members] = shape
        self._epochs: dict[tuple[int, bytes], np.ndarray] = {}
        # The last start steps requested, and their token counts.
        self._counted = np.zeros(0), np.zeros((0, 2), np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return sum(-(-len(members) // self._items_of_batch) for members, _ in self._buckets)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(S, U) of every bucket: the shapes the train step is compiled for."""
        longer = self._input_steps == "encoder"
        return [(int(s + longer * u), int(u)) for _, (s, u) in self._buckets]

    @property
    def padding_fraction(self) -> float:
        """Fraction of padding among the tokens of an epoch's batches, in [0, 1)."""
        data = self._tokenized
        used_N = data.questions.lengths + data.targets.lengths
        used = (
            used_N.sum() if self._groups is None else pairs.expected_lengths(used_N, self._groups)
        )
        batches = [-(-len(members) // self._items_of_batch) for members, _ in self._buckets]
        sizes = [int(shape.sum()) for _, shape in self._buckets]
        return 1 - float(used) / (self._batch_size * int(np.dot(batches, sizes)))

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of a training step, or this host's rows of it.

        Returns:
          input_ids [B, S] int32 and input_mask [B, S] bool;
          decoder_input_ids [B, U] int32 (targets shifted right) and targets [B, U] int32;
          loss_weights [B, U] float32: w_j for rationale tokens of steps from c_i on, 1 for the
            answer sentence and EOS, else 0;
          supervised [B, U] bool: the tokens in the loss;
          divisor [B] float32: divisor of the loss, the same in all rows and in all batches of an
            epoch and phase: the mean number of supervised tokens per batch of the epoch under the
            phase's c_i. A token thus has the same weight in a full batch as in one that is mostly
            padding rows. With groups it is the mean over all draws of pairs;
          index [B] int32: example index, -1 in padding rows, where nothing is supervised.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        start_steps_N = self._start_steps_at(step)
        epoch_rows = self._rows_at(step, start_steps_N)
        rows_B, shape = self._rows(step, epoch_rows)
        batch = self._batch(rows_B[self._host_rows], shape, start_steps_N)
        divisor = np.float32(self._mean_count(epoch_rows, start_steps_N))
        return batch | {"divisor": np.full(len(batch["index"]), divisor)}

    def supervised_tokens(self, steps: int) -> np.ndarray:
        """Counts the supervised rationale tokens and answer tokens (EOS included) of each step.

        Args:
          steps: number of steps, from the first one on.

        Returns:
          [steps, 2] int64, over all hosts and regardless of the token weights.
        """
        counts = np.zeros((steps, 2), np.int64)
        for step in range(steps):
            start_steps_N = self._start_steps_at(step)
            examples = self._examples(step, start_steps_N)
            counts[step] = self._counts(start_steps_N)[examples].sum(axis=0)
        return counts

    def record_ids(self, step: int) -> list[str]:
        """Returns the ids of the records in a training step's batch, over all hosts."""
        examples = self._examples(step, self._start_steps_at(step)).tolist()
        return list(dict.fromkeys(self._tokenized.records[i].id for i in examples))

    def _examples(self, step: int, start_steps_N: np.ndarray) -> np.ndarray:
        """Returns the examples in a training step's batch, over all hosts."""
        rows_B, _ = self._rows(step, self._rows_at(step, start_steps_N))
        rows = rows_B[rows_B >= 0]
        return np.concatenate([self._bins[i] for i in rows]) if self._pack_length else rows

    def iterate(
        self, start_step: int, total_steps: int, *, threads: int = 2, prefetch: int = 8
    ) -> grain.DatasetIterator:
        """Iterates over steps `start_step` ... `total_steps` - 1, prefetching in threads.

        Up to `prefetch` batches are built in advance. If `start_steps` depends on the student's
        losses, iterate over one phase at a time.

        Args:
          start_step: first step.
          total_steps: end of the range, exclusive.
          threads: number of threads that build batches.
          prefetch: maximum number of batches waiting.

        Returns:
          An iterator with `get_state()` and `set_state(state)`; states are only interchangeable
          between iterators with the same `start_step`.
        """
        return iter(
            grain.MapDataset.range(start_step, total_steps)
            .map(self.__getitem__)
            .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
        )

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yields every example exactly once, whole (c_i = 0), bucket by bucket, for scoring.

        Requires a source without packing and groups.

        Args:
          batch_size: B; None: that of training.
        """
        zeros_N = np.zeros(len(self._tokenized), np.int32)
        for members, shape in self._buckets:
            for rows_B in batch_rows(members, batch_size or self._batch_size):
                yield self._batch(rows_B, shape, zeros_N)

    def _start_steps_at(self, step: int) -> np.ndarray:
        """Returns c_i, [N], at a training step."""
        start_steps_N = np.asarray(self.start_steps(self._phase_of_step(step)))
        if start_steps_N.shape != (len(self._tokenized),):
            raise UserError(
                f"The schedule has start steps of shape {start_steps_N.shape}, expected "
                f"({len(self._tokenized)},); it was built from other records. Run "
                "--mode=schedule again."
            )
        return start_steps_N

    def _rows_at(self, step: int, start_steps_N: np.ndarray) -> np.ndarray:
        """Returns `_epoch_rows` of the step's epoch under its start steps."""
        return self._epoch_rows(step // self.steps_per_epoch, self._active_items(start_steps_N))

    def _rows(self, step: int, epoch_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples or bins in a step's batch, [B] with -1 for padding; its shape."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows_B = epoch_rows[place]
        shape = self._shape_of_item[rows_B[0]]  # The first row is never padding.
        if self._groups is not None:
            rows_B = pairs.draw_pairs(rows_B, self._groups, [self._seed, epoch])
        return rows_B, shape

    def _counts(self, start_steps_N: np.ndarray) -> np.ndarray:
        """Returns `_supervised_counts`, cached for the last start steps."""
        cached_N, counts_Nx2 = self._counted
        if not np.array_equal(cached_N, start_steps_N):
            counts_Nx2 = _supervised_counts(self._tokenized, self._latest_start, start_steps_N)
            self._counted = start_steps_N.copy(), counts_Nx2
        return counts_Nx2

    def _mean_count(self, rows: np.ndarray, start_steps_N: np.ndarray) -> float:
        """Returns the mean number of supervised tokens per batch of an epoch, at least 1."""
        counts = self._counts(start_steps_N).sum(axis=1)
        if (members := self._bins if self._pack_length else self._groups) is not None:
            counts = np.add.reduceat(counts[members.values], members.offsets[:-1])
            counts = counts if self._pack_length else 2 * counts / members.lengths
        times = np.bincount(rows[rows >= 0], minlength=len(counts))
        return max(1.0, float(times @ counts) / self.steps_per_epoch)

    def _active_items(self, start_steps_N: np.ndarray) -> np.ndarray:
        """Returns a bool mask of the items with supervised tokens; all True if none has any."""
        active = start_steps_N <= self._tokenized.num_steps
        members = self._bins if self._pack_length else self._groups
        if members is not None:
            active = np.logical_or.reduceat(active[members.values], members.offsets[:-1])
        return active if active.any() else ~active

    def _epoch_rows(self, epoch: int, active: np.ndarray) -> np.ndarray:
        """Returns an epoch's items, [steps per epoch, B] (B / 2 with groups), -1 for padding."""
        key = epoch, b"" if active.all() else active.tobytes()
        rows = self._epochs.get(key)
        if rows is not None:
            return rows
        generator, steps = np.random.default_rng([self._seed, epoch]), self.steps_per_epoch
        rows = []
        for members, _ in self._buckets:
            if active.all():
                rows.append(batch_rows(generator.permutation(members), self._items_of_batch))
            elif active[members].any():
                members = members[active[members]]
                size = -(-steps * len(members) // active.sum()) * self._items_of_batch
                rounds = [generator.permutation(members) for _ in range(-(-size // len(members)))]
                rows.append(np.concatenate(rounds)[:size].reshape(-1, self._items_of_batch))
        rows = generator.permutation(np.concatenate(rows))[:steps]
        # Prefetching alternates between an epoch and the next around their boundary.
        self._epochs = dict([*self._epochs.items()][-1:]) | {key: rows}
        return rows

    def _batch(self, rows_B: np.ndarray, shape: np.ndarray, start_steps_N: np.ndarray) -> Batch:
        size_S, size_U = shape
        if self._pack_length:
            rows = [self._bins[i] if i >= 0 else np.zeros(0, np.int64) for i in rows_B.tolist()]
            return packing.packed_batch(
                self._tokenized,
                self._weights,
                rows,
                self._pack_length,
                self._latest_start,
                start_steps_N,
                decoder_start_id=self._decoder_start_id,
                pad_id=self._pad_id,
            )
        data = self._tokenized
        input_ids, input_mask = padded(data.questions, rows_B, size_S, self._pad_id)
        targets, target_mask = padded(data.targets, rows_B, size_U, self._pad_id)
        latest_start, _ = padded(self._latest_start, rows_B, size_U, 0)
        weights, _ = padded(self._weights, rows_B, size_U, 0)
        supervised = target_mask & (latest_start >= start_steps_N[rows_B][:, None])
        if self._input_steps == "encoder":
            count_B = (target_mask & ~supervised).sum(axis=1)
            input_ids, input_mask = _append_steps(
                input_ids, input_mask, targets, count_B, self._pad_id
            )
            targets = _shift_left(targets, count_B, self._pad_id)
            weights = _shift_left(weights, count_B, 0)
            supervised = _shift_left(supervised, count_B, False)
        decoder_input_ids = np.full_like(targets, self._decoder_start_id)
        decoder_input_ids[:, 1:] = targets[:, :-1]
        extra = {} if self._arrays is None else self._arrays(rows_B, int(size_U))
        return extra | {
            "input_ids": input_ids,
            "input_mask": input_mask,
            "decoder_input_ids": decoder_input_ids,
            "targets": targets,
            "loss_weights": np.where(supervised, weights, np.float32(0)),
            "supervised": supervised,
            "index": rows_B.astype(np.int32),
        }


def _append_steps(
    input_ids: np.ndarray,
    input_mask: np.ndarray,
    targets: np.ndarray,
    count_B: np.ndarray,
    pad_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Inserts the first `count_B` target tokens before the EOS of each prompt.

    Returns:
      Prompts [B, S + U] and their mask.
    """
    size_S = input_ids.shape[1]
    eos_B1 = np.maximum(input_mask.sum(axis=1) - 1, 0)[:, None]
    place = np.arange(size_S + targets.shape[1])[None]
    end_B1 = eos_B1 + count_B[:, None]
    source = np.where(place < eos_B1, place, size_S + place - eos_B1)
    source = np.where(place == end_B1, eos_B1, source)
    mask = (place <= end_B1) & input_mask.any(axis=1, keepdims=True)
    values = np.take_along_axis(
        np.concatenate([input_ids, targets], axis=1), np.where(mask, source, 0), axis=1
    )
    return np.where(mask, values, pad_id).astype(input_ids.dtype), mask


def _shift_left(array_BxU: np.ndarray, count_B: np.ndarray, fill: float) -> np.ndarray:
    """Shifts each row left by `count_B`, filling its end."""
    place = np.arange(array_BxU.shape[1])[None] + count_B[:, None]
    inside = place < array_BxU.shape[1]
    values = np.take_along_axis(array_BxU, np.where(inside, place, 0), axis=1)
    return np.where(inside, values, np.asarray(fill, array_BxU.dtype))


def _target_weights(
    tokenized: TokenizedSet, weights: Ragged | None, example_weights: np.ndarray | None
) -> Ragged:
    """Returns float32 weights parallel to the targets: w_j, then 1 for answer sentence and EOS.

    All weights of an example are multiplied by its example weight.
    """
    targets = tokenized.targets
    values = np.broadcast_to(np.float32(1), len(targets.values))  # Takes no memory.
    if weights is not None:
        if not np.array_equal(weights.lengths, tokenized.rationale_lengths):
            raise UserError(
                f"The token weights cover {len(weights)} examples with {len(weights.values)} "
                f"rationale tokens, but the records have {len(tokenized)} with "
                f"{int(tokenized.rationale_lengths.sum())}; the weights were learned from other "
                "records or with another tokenizer. Run --mode=weigh again."
            )
        values = np.ones(len(targets.values), np.float32)
        values[in_rationale(tokenized)] = weights.values
    if example_weights is not None:
        values = values * np.repeat(example_weights.astype(np.float32), targets.lengths)
    return Ragged(values, targets.offsets)


def _with_step_starts(tokenized: TokenizedSet) -> Ragged:
    """Returns the step of each target token, with n_i at the first token of each step."""
    steps = tokenized.steps
    last = np.repeat(tokenized.num_steps, steps.lengths).astype(steps.values.dtype)
    return Ragged(np.where(step_starts(tokenized), last, steps.values), steps.offsets)


def _supervised_counts(
    tokenized: TokenizedSet, latest_start: Ragged, start_steps_N: np.ndarray
) -> np.ndarray:
    """Returns each example's supervised tokens in and after its rationale, [N, 2] int64."""
    targets, rationale = tokenized.targets, in_rationale(tokenized)
    supervised = latest_start.values >= np.repeat(start_steps_N, targets.lengths)
    counts = (
        np.add.reduceat(supervised & part, targets.offsets[:-1], dtype=np.int64)
        for part in (rationale, ~rationale)
    )
    return np.stack([*counts], axis=1)
