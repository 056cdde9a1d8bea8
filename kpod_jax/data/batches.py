"""Batches for teacher forcing: every batch is a pure function of (seed, step).

Here the schedule meets the loss: w_j, the step mask (step >= c_i) and the answer's 1 become one
array, `loss_weights`, so that the train step is a plain weighted cross entropy whose shapes do not
change while c_i moves.

Letters: N examples, B rows of a batch, S tokens of a prompt, U of a target.
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
    """How examples become rows, and rows batches.

    Attributes:
      batch_size: B, rows of a batch over all hosts.
      seed: of the order of an epoch; not negative.
      pad_id: token that fills `input_ids`, `decoder_input_ids` and `targets`.
      decoder_start_id: first of `decoder_input_ids`.
      buckets: at most so many shapes of batches.
      pack_length: tokens of a row that packs several examples, for decoder-only students; batches
        then have one shape and an array "segments". 0: one example per row. The examples that
        share a row do so in every epoch.
      input_steps: where the steps before c_i stand: in the decoder, as context that is not
        supervised, or at the end of the encoder's input, before its EOS, as the paper draws it. The
        latter makes inputs U tokens longer, whatever c_i, so that shapes stay the same.
      host: (number, count): of every batch's rows only this host's part is made, all parts together
        being the batch. What a batch holds does not depend on the count.
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
    """What is learned of the examples, and how much it counts (Eq. 15). By default all, by 1.

    Attributes:
      weights: w_j of every rationale token, N slices of `rationale_lengths`; None is 1.
      start_steps: from a phase to c_i of every example, [N] integers; None is 0.
      phase_of_step: from a training step to its phase; None is the step's epoch.
      step_starts: whether the first token of a step before c_i is supervised, too, where it stands
        in the decoder: there the student goes on or answers.
      example_weights: [N] float32 that all of an example's loss weights are multiplied by; None: 1.
      groups: numbers of examples, two at least in each slice: rows 2 k and 2 k + 1 of a batch are
        then two examples of one slice, drawn anew in each epoch, and a slice occurs once an epoch.
        None: a row is an example by itself.
      arrays: from a batch's examples, [B] with -1 for padding rows, and U to further arrays of B
        rows for the batch, for a loss of one's own.
    """

    weights: Ragged | None = None
    start_steps: Callable[[int], np.ndarray] | None = None
    phase_of_step: Callable[[int], int] | None = None
    step_starts: bool = False
    example_weights: np.ndarray | None = None
    groups: Ragged | None = None
    arrays: Callable[[np.ndarray, int], Batch] | None = None


class BatchSource:
    """Batches of a `TokenizedSet`, by number of the training step.

    Examples of like lengths share batches: they are put into a few buckets, each of one shape
    [S, U], so that a train step is compiled once a bucket. An epoch has every example exactly once;
    its order comes from (seed, epoch) alone. The last batch of a bucket is filled up with padding
    rows; its tokens count as much as all others, by the batch's "divisor". Where a phase leaves
    examples out (c_i > n_i), its steps are filled with the others, each about equally often, and
    without padding rows.

    Attributes:
      start_steps: from a phase to c_i of every example, [N] integers.
    """

    def __init__(
        self, tokenized: TokenizedSet, layout: Layout, supervision: Supervision | None = None
    ) -> None:
        """Lays out the N examples; batches are made when they are asked for.

        Raises:
          UserError: no examples, a setting out of range, weights of other examples, or a batch that
            cannot be divided between the hosts.
        """
        learned = supervision or Supervision()
        batch_size, pack_length, buckets = layout.batch_size, layout.pack_length, layout.buckets
        groups, input_steps = learned.groups, layout.input_steps
        if len(tokenized) == 0:
            raise UserError(
                "There are no examples to make batches of. See records/rejected.jsonl for records "
                "that were turned down, and why."
            )
        for name, setting, least in (
            ("batch_size", batch_size, 1),
            ("buckets", buckets, 1),
            ("seed", layout.seed, 0),
        ):
            if setting < least:
                raise UserError(f"{name}={setting} is not possible; expected at least {least}.")
        if (pack_length or input_steps == "encoder") and (
            groups is not None or learned.arrays is not None
        ):
            raise UserError(
                "This method's loss looks at places of a row, which distill.pack_length and "
                "distill.input_steps='encoder' move; expected 0 and decoder."
            )
        number, count = layout.host
        if groups is not None and batch_size % (2 * count):
            raise UserError(
                f"distill.batch_size={batch_size}: this method puts pairs of rows into a batch; "
                f"expected a multiple of {2 * count}."
            )
        if batch_size % count:
            raise UserError(
                f"A batch of {batch_size} rows cannot be divided between {count} hosts. Make "
                f"distill.batch_size a multiple of {count}."
            )
        self._pack_length = pack_length
        self._host_rows = slice(number * batch_size // count, (number + 1) * batch_size // count)
        self._tokenized = tokenized
        self._batch_size = batch_size
        self._groups, self._arrays = groups, learned.arrays
        self._items_of_batch = batch_size // (1 if groups is None else 2)
        self._seed = layout.seed
        self._pad_id = layout.pad_id
        self._decoder_start_id = layout.decoder_start_id
        self._weights = _target_weights(tokenized, learned.weights, learned.example_weights)
        self._input_steps = input_steps
        # A token is supervised while c_i is not above this.
        self._latest_start = tokenized.steps
        if learned.step_starts and input_steps == "decoder":
            self._latest_start = _with_step_starts(tokenized)
        none = np.zeros(len(tokenized), np.int32)
        self.start_steps = learned.start_steps or (lambda phase: none)
        self._phase_of_step = learned.phase_of_step or (lambda step: step // self.steps_per_epoch)
        if pack_length:
            lengths_N = packing.sequence_lengths(tokenized)
            if lengths_N.max() > pack_length:
                longest = int(lengths_N.argmax())
                raise UserError(
                    f"Record {tokenized.records[longest].id} has {lengths_N[longest]} tokens, more "
                    f"than a row of distill.pack_length={pack_length}. Raise it, or lower "
                    "student.max_question_tokens and student.max_target_tokens."
                )
            self._bins = packing.bins(lengths_N, pack_length)
            self._buckets = [(np.arange(len(self._bins)), np.array([0, pack_length]))]
        else:
            lengths_Nx2 = np.stack([tokenized.questions.lengths, tokenized.targets.lengths], axis=1)
            if groups is not None:
                lengths_Nx2 = pairs.longest(lengths_Nx2, groups)
            self._buckets = length_buckets(lengths_Nx2, buckets, self._items_of_batch)
        # An item is what a row holds: an example, or a bin of them; of groups, what two rows hold.
        self._shape_of_item = np.zeros((sum(len(m) for m, _ in self._buckets), 2), np.int64)
        for members, shape in self._buckets:
            self._shape_of_item[members] = shape
        self._epochs: dict[tuple[int, bytes], np.ndarray] = {}
        # Start steps that were asked for last, and the counts under them.
        self._counted = np.zeros(0), np.zeros((0, 2), np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(members) // self._items_of_batch) for members, _ in self._buckets)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(S, U) of every bucket: the shapes that a train step is compiled for."""
        longer = self._input_steps == "encoder"
        return [(int(s + longer * u), int(u)) for _, (s, u) in self._buckets]

    @property
    def padding_share(self) -> float:
        """Share of the tokens of an epoch's batches that are padding, in [0, 1)."""
        data = self._tokenized
        used_N = data.questions.lengths + data.targets.lengths
        used = used_N.sum() if self._groups is None else pairs.expected(used_N, self._groups)
        batches = [-(-len(members) // self._items_of_batch) for members, _ in self._buckets]
        sizes = [int(shape.sum()) for _, shape in self._buckets]
        return 1 - float(used) / (self._batch_size * int(np.dot(batches, sizes)))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a training step, or this host's rows of it.

        Returns:
          input_ids [B, S] int32 and input_mask [B, S] bool;
          decoder_input_ids [B, U] int32 (targets shifted right) and targets [B, U] int32;
          loss_weights [B, U] float32: w_j for rationale tokens of steps from c_i on, 1 for the
            answer sentence and EOS, else 0;
          supervised [B, U] bool: tokens that the loss is about;
          divisor [B] float32, of the loss, the same in all rows, and in all batches of an epoch and
            phase: the mean number of supervised tokens of the epoch's batches under the stage's
            c_i. So a token counts the same in whatever batch it is, be that full or mostly padding
            rows. Of groups it is the mean over all draws of pairs;
          index [B] int32: the example's number, -1 in padding rows, where nothing is supervised.
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
        """Tokens of rationales, and of answers with EOS, that the first steps supervise.

        Args:
          steps: their number.

        Returns:
          [steps, 2] int64, of all hosts and whatever the tokens' weights.
        """
        found = np.zeros((steps, 2), np.int64)
        for step in range(steps):
            start_steps_N = self._start_steps_at(step)
            rows_B, _ = self._rows(step, self._rows_at(step, start_steps_N))
            rows = rows_B[rows_B >= 0]
            examples = np.concatenate([self._bins[i] for i in rows]) if self._pack_length else rows
            found[step] = self._counts(start_steps_N)[examples].sum(axis=0)
        return found

    def iterate(
        self, start_step: int, total_steps: int, *, threads: int = 2, prefetch: int = 8
    ) -> grain.DatasetIterator:
        """Iterates over steps `start_step` ... `total_steps` - 1, made ahead by threads.

        Up to `prefetch` batches are made before they are asked for. So where `start_steps` follows
        the student's losses, iterate over one phase at a time.

        Args:
          start_step: the first step.
          total_steps: the step that is not made any more.
          threads: that make batches.
          prefetch: batches that may be waiting.

        Returns:
          An iterator with `get_state()` and `set_state(state)`; a state is one of an iterator with
          the same `start_step`.
        """
        return iter(
            grain.MapDataset.range(start_step, total_steps)
            .map(self.__getitem__)
            .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
        )

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every example exactly once, whole (c_i = 0), by bucket: for scoring, unpacked, ungrouped.

        Args:
          batch_size: B; None is that of training.
        """
        whole_N = np.zeros(len(self._tokenized), np.int32)
        for members, shape in self._buckets:
            for rows_B in batch_rows(members, batch_size or self._batch_size):
                yield self._batch(rows_B, shape, whole_N)

    def _start_steps_at(self, step: int) -> np.ndarray:
        """[N] c_i at a training step."""
        start_steps_N = np.asarray(self.start_steps(self._phase_of_step(step)))
        if start_steps_N.shape != (len(self._tokenized),):
            raise UserError(
                f"The schedule has start steps of shape {start_steps_N.shape} for "
                f"{len(self._tokenized)} examples; it was made for other records. Run "
                "--mode=schedule again."
            )
        return start_steps_N

    def _rows_at(self, step: int, start_steps_N: np.ndarray) -> np.ndarray:
        """`_epoch_rows` of a step's epoch, with those that take part at its start steps."""
        return self._epoch_rows(step // self.steps_per_epoch, self._taking_part(start_steps_N))

    def _rows(self, step: int, epoch_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B] what the rows of a step's batch hold, examples or bins, -1 for padding; its shape."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows_B = epoch_rows[place]
        shape = self._shape_of_item[rows_B[0]]  # The first row is never padding.
        if self._groups is not None:
            rows_B = pairs.drawn(rows_B, self._groups, [self._seed, epoch])
        return rows_B, shape

    def _counts(self, start_steps_N: np.ndarray) -> np.ndarray:
        """[N, 2] int64 supervised tokens of each example: its rationale's, its answer's and EOS."""
        last, counts_Nx2 = self._counted
        if not np.array_equal(last, start_steps_N):
            counts_Nx2 = _supervised_counts(self._tokenized, self._latest_start, start_steps_N)
            self._counted = start_steps_N.copy(), counts_Nx2
        return counts_Nx2

    def _mean_count(self, rows: np.ndarray, start_steps_N: np.ndarray) -> float:
        """Mean number of supervised tokens of the batches of an epoch's rows, 1 at least."""
        counts = self._counts(start_steps_N).sum(axis=1)
        if (held := self._bins if self._pack_length else self._groups) is not None:
            counts = np.add.reduceat(counts[held.values], held.offsets[:-1])
            counts = counts if self._pack_length else 2 * counts / held.lengths
        times = np.bincount(rows[rows >= 0], minlength=len(counts))
        return max(1.0, float(times @ counts) / self.steps_per_epoch)

    def _taking_part(self, start_steps_N: np.ndarray) -> np.ndarray:
        """Which items have something to learn, bool; all, where none has."""
        part = start_steps_N <= self._tokenized.num_steps
        examples = self._bins if self._pack_length else self._groups
        if examples is not None:
            part = np.logical_or.reduceat(part[examples.values], examples.offsets[:-1])
        return part if part.any() else ~part

    def _epoch_rows(self, epoch: int, part: np.ndarray) -> np.ndarray:
        """[steps per epoch, B] items of an epoch's batches, -1 for padding; of groups B / 2."""
        key = epoch, b"" if part.all() else part.tobytes()
        rows = self._epochs.get(key)
        if rows is not None:
            return rows
        generator, steps = np.random.default_rng([self._seed, epoch]), self.steps_per_epoch
        rows = []
        for members, _ in self._buckets:
            if part.all():
                rows.append(batch_rows(generator.permutation(members), self._items_of_batch))
            elif part[members].any():
                members = members[part[members]]
                size = -(-steps * len(members) // part.sum()) * self._items_of_batch
                rounds = [generator.permutation(members) for _ in range(-(-size // len(members)))]
                rows.append(np.concatenate(rounds)[:size].reshape(-1, self._items_of_batch))
        rows = generator.permutation(np.concatenate(rows))[:steps]
        # Batches are made ahead: at its end an epoch and the next one are asked for in turn.
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
            moved_B = (target_mask & ~supervised).sum(axis=1)
            input_ids, input_mask = _with_steps(
                input_ids, input_mask, targets, moved_B, self._pad_id
            )
            targets = _from(targets, moved_B, self._pad_id)
            weights, supervised = _from(weights, moved_B, 0), _from(supervised, moved_B, False)
        decoder_input_ids = np.full_like(targets, self._decoder_start_id)
        decoder_input_ids[:, 1:] = targets[:, :-1]
        further = {} if self._arrays is None else self._arrays(rows_B, int(size_U))
        return further | {
            "input_ids": input_ids,
            "input_mask": input_mask,
            "decoder_input_ids": decoder_input_ids,
            "targets": targets,
            "loss_weights": np.where(supervised, weights, np.float32(0)),
            "supervised": supervised,
            "index": rows_B.astype(np.int32),
        }


def _with_steps(
    input_ids: np.ndarray,
    input_mask: np.ndarray,
    targets: np.ndarray,
    moved_B: np.ndarray,
    pad_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """[B, S + U] prompts with the first `moved_B` target tokens before their EOS, and the mask."""
    size_S = input_ids.shape[1]
    eos_B1 = np.maximum(input_mask.sum(axis=1) - 1, 0)[:, None]
    place = np.arange(size_S + targets.shape[1])[None]
    end_B1 = eos_B1 + moved_B[:, None]
    source = np.where(place < eos_B1, place, size_S + place - eos_B1)
    source = np.where(place == end_B1, eos_B1, source)
    mask = (place <= end_B1) & input_mask.any(axis=1, keepdims=True)
    values = np.take_along_axis(
        np.concatenate([input_ids, targets], axis=1), np.where(mask, source, 0), axis=1
    )
    return np.where(mask, values, pad_id).astype(input_ids.dtype), mask


def _from(array_BxU: np.ndarray, start_B: np.ndarray, fill: float) -> np.ndarray:
    """Each row from its start on, filled up at its end."""
    place = np.arange(array_BxU.shape[1])[None] + start_B[:, None]
    inside = place < array_BxU.shape[1]
    values = np.take_along_axis(array_BxU, np.where(inside, place, 0), axis=1)
    return np.where(inside, values, np.asarray(fill, array_BxU.dtype))


def _target_weights(
    tokenized: TokenizedSet, weights: Ragged | None, example_weights: np.ndarray | None
) -> Ragged:
    """float32 weights parallel to the targets: w_j, then 1 for the answer sentence and EOS.

    All of an example's are multiplied by its own weight.
    """
    targets = tokenized.targets
    values = np.ones(len(targets.values), np.float32)
    if weights is not None:
        if not np.array_equal(weights.lengths, tokenized.rationale_lengths):
            raise UserError(
                f"Token weights of {len(weights)} examples with {len(weights.values)} rationale "
                f"tokens do not fit the records' {len(tokenized)} with "
                f"{int(tokenized.rationale_lengths.sum())}; they were made for other records or "
                "another tokenizer. Run --mode=weigh again."
            )
        values[in_rationale(tokenized)] = weights.values
    if example_weights is not None:
        values *= np.repeat(example_weights.astype(np.float32), targets.lengths)
    return Ragged(values, targets.offsets)


def _with_step_starts(tokenized: TokenizedSet) -> Ragged:
    """The steps of the targets' tokens, but n_i at the first token of each."""
    steps = tokenized.steps
    last = np.repeat(tokenized.num_steps, steps.lengths).astype(steps.values.dtype)
    return Ragged(np.where(step_starts(tokenized), last, steps.values), steps.offsets)


def _supervised_counts(
    tokenized: TokenizedSet, latest_start: Ragged, start_steps_N: np.ndarray
) -> np.ndarray:
    """[N, 2] int64 supervised tokens of each example, in its rationale and after it."""
    targets, thought = tokenized.targets, in_rationale(tokenized)
    supervised = latest_start.values >= np.repeat(start_steps_N, targets.lengths)
    kinds = np.stack([supervised & thought, supervised & ~thought], axis=1).astype(np.int64)
    return np.add.reduceat(kinds, targets.offsets[:-1])
