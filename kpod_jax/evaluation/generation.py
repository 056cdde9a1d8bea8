"""Generation with continuous batching: queued prompts take rows of the batch as they become free.

A finished row is refilled while the others continue, so a few long generations do not hold up the
rest. Three functions are compiled once per prompt length: `start` creates an empty batch, `fill`
puts prompts into rows, and `decode` generates tokens in a loop on the device until enough rows are
free.

Letters: N prompts, B rows of the batch, R rows filled at a time from E prompts, S prompt tokens, G
maximum tokens of a generation, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kpod_jax.data import tokens
from kpod_jax.data.buckets import length_buckets, padded
from kpod_jax.data.records import Ragged, Record
from kpod_jax.models import layout
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding

# Refill once 1 / _REFILL of the batch is free, because each refill takes an encoder pass.
_REFILL = 4
# Axes of every cache array, in all model families.
_CACHE_AXES = ("batch", "heads", "length", "kv")


class Rows(NamedTuple):
    """The running batch; a row that is done is free.

    Attributes:
      cache: keys and values. Those of generated tokens are in a ring buffer of length G; at each
        step, all rows write to index `time` mod G, no matter when they started.
      mask: [B, S] bool, False for prompt padding.
      ids: [B] int32, last token of each row.
      age: [B] int32, number of tokens that each row has generated.
      done: [B] bool, whether each row is finished.
      number: [B] int32, index of the generation in each row.
      written: [B, G] int32, generated tokens.
      time: int32, number of steps so far.
    """

    cache: Any
    mask: jax.Array
    ids: jax.Array
    age: jax.Array
    done: jax.Array
    number: jax.Array
    written: jax.Array
    time: jax.Array


class Steps(NamedTuple):
    """The jitted functions of a `Generator`; `Rows` are donated.

    Attributes:
      prepare: parameters -> parameters for the other functions: adapters merged, layers unrolled,
        matrices cast to the compute dtype.
      start: (prepared, S) -> Rows, all free. S is static.
      fill: (prepared, Rows, ids [E, S], mask [E, S], slots [R], numbers [R], source [R]) -> Rows.
        Puts prompt `source[r]` into row `slots[r]`, or prompt r if `source` is None, with E = R.
        Slots of B or above are dropped.
      decode: (prepared, Rows, key, enough) -> Rows, of which at least `enough` are done.
      look: Rows -> done and written, replicated on every device.
    """

    prepare: Any
    start: Any
    fill: Any
    decode: Any
    look: Any


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Attributes:
      temperature: 0 for greedy decoding.
      top_p: sample only from the most likely tokens with this total probability, in (0, 1].
      seed: random seed. The tokens drawn for a generation depend only on the seed and the index of
        the generation, not on the batch.
      samples: generations per question, for an `Evaluator`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    samples: int = 1


class Generator:
    """Generates text with a student, greedily or by sampling."""

    def __init__(
        self,
        student: Student,
        mesh: Mesh,
        start_id: int,
        *,
        batch_size: int,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        buckets: int = 4,
    ) -> None:
        """Initializes the generator; compilation happens on the first call.

        Args:
          student: the student.
          mesh: the mesh of the parameters.
          start_id: first input of the decoder, see `Student.decoder_start`.
          batch_size: B.
          max_new_tokens: G.
          sampling: sampling settings; None for greedy.
          buckets: maximum number of padded prompt lengths, each of which is compiled.
        """
        self._mesh, self._batch_size, self._buckets = mesh, batch_size, buckets
        self._refill, self._parts = refill_rows(batch_size, mesh), sharding.row_parts(mesh)
        self._seed = (sampling or Sampling()).seed
        self._pad_id = student.tokenizer.pad_token_id
        self._max_new_tokens = max_new_tokens
        self._steps = make_steps(
            student, mesh, start_id, batch_size, max_new_tokens, sampling or Sampling()
        )

    def __call__(
        self,
        params: Any,
        prompts: Ragged,
        *,
        samples: int = 1,
        progress: Callable[[int], None] = lambda generations: None,
    ) -> np.ndarray:
        """Generates tokens for all prompts.

        Args:
          params: parameters of the student.
          prompts: N slices of int32.
          samples: generations per prompt.
          progress: called with the number of newly finished generations.

        Returns:
          [N, samples, G] int32, the generated tokens, including EOS and padding after it.
        """
        shape = (len(prompts) * samples, self._max_new_tokens)
        result = np.full(shape, self._pad_id, np.int32)
        with sharding.use(self._mesh):
            prepared = self._steps.prepare(params)
            lengths_Nx1 = prompts.lengths[:, None]
            for members, (size,) in length_buckets(lengths_Nx1, self._buckets, self._batch_size):
                # Generation n is sample n % samples of prompt n // samples.
                numbers = (members[:, None] * samples + np.arange(samples)).reshape(-1)
                for number, written in self._bucket(prepared, prompts, numbers, samples, int(size)):
                    result[number] = written
                    progress(len(number))
        return result.reshape(len(prompts), samples, self._max_new_tokens)

    def _bucket(
        self, prepared: Any, prompts: Ragged, numbers: np.ndarray, samples: int, size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the indices and tokens of generations as they finish."""
        steps, batch_size, key = self._steps, self._batch_size, jax.random.key(self._seed)
        rows, waiting = steps.start(prepared, size), numbers
        free, running = np.arange(batch_size), np.full(batch_size, -1)
        while True:
            while len(waiting) and len(free):
                count = min(len(waiting), len(free), self._refill)
                started, slots = waiting[:count], free[:count]
                waiting, free, running[slots] = waiting[count:], free[count:], started
                padding = (0, self._refill - count)
                needed = np.pad(started // samples, padding, constant_values=-1)
                needed, source = self._unique_prompts(needed, samples)
                ids, mask = padded(prompts, needed, size, self._pad_id)
                placed = sharding.place_global({"ids": ids, "mask": mask}, self._mesh)
                slots = np.pad(slots, padding, constant_values=batch_size).astype(np.int32)
                started = np.pad(started, padding).astype(np.int32)
                rows = steps.fill(
                    prepared, rows, placed["ids"], placed["mask"], slots, started, source
                )
            if not (running >= 0).any():
                return
            # If no prompts are waiting, run all rows to their end.
            idle = int((running < 0).sum())
            enough = min(batch_size, idle + self._refill) if len(waiting) else batch_size
            rows = steps.decode(prepared, rows, key, np.int32(enough))
            done, written = jax.device_get(steps.look(rows))
            ended = np.flatnonzero(done & (running >= 0))
            yield running[ended], written[ended]
            running[ended] = -1
            free = np.flatnonzero(running < 0)

    def _unique_prompts(
        self, needed_R: np.ndarray, samples: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Deduplicates prompts, so that the samples of a question share one encoder pass.

        Returns:
          (prompts, source): [E] the prompts, -1 for none, where E depends only on R and `samples`;
          and [R] the index of each row's prompt among them, or None if E is R.
        """
        # The rows are consecutive; those of the first and the last prompt may be incomplete.
        max_prompts = (self._refill - 2) // samples + 3
        count = -(-max_prompts // self._parts) * self._parts
        if samples == 1 or count >= self._refill:
            return needed_R, None
        prompts, source_R = np.unique(needed_R, return_inverse=True)
        padding = (0, count - len(prompts))
        return np.pad(prompts, padding, constant_values=-1), source_R.astype(np.int32)


def generate(
    student: Student,
    params: Any,
    questions: Sequence[str],
    mesh: Mesh | None = None,
    *,
    prompt: str = "",
    batch_size: int = 64,
    max_new_tokens: int = 0,
    sampling: Sampling | None = None,
) -> list[str]:
    """Generates a student's answers to questions.

    Args:
      student: model and tokenizer.
      params: its parameters, on the mesh.
      questions: texts to fill in for `{question}` in the prompt.
      mesh: device mesh; None for all devices.
      prompt: prompt template in the student's form (`Student.resolve_prompt`); empty for the
        student's own.
      batch_size: number of questions decoded at a time.
      max_new_tokens: maximum length of a generation; 0 for the student's maximum target length.
      sampling: sampling settings; None for greedy. Always generates one sample per question.
    """
    mesh, prompt = mesh or sharding.make_mesh(), prompt or student.prompt
    records = [Record(str(i), question, (), "") for i, question in enumerate(questions)]
    prompts = tokens.tokenize_questions(
        records, student.tokenizer, prompt=prompt, decoder_only=student.decoder_only
    )
    generator = Generator(
        student,
        mesh,
        student.decoder_start(prompt),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens or student.settings.max_target_tokens,
        sampling=sampling,
    )
    ids = generator(params, prompts)[:, 0]
    texts = student.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def refill_rows(batch_size: int, mesh: Mesh) -> int:
    """Returns R, the number of rows filled at a time, which the devices divide evenly."""
    parts = sharding.row_parts(mesh)
    return min(batch_size, -(-batch_size // _REFILL // parts) * parts or parts)


def make_steps(
    student: Student,
    mesh: Mesh,
    start_id: int,
    batch_size: int,
    max_new_tokens: int,
    sampling: Sampling,
) -> Steps:
    """Creates the jitted functions of a `Generator`."""
    lora, dtype = student.module.lora, student.module.dtype
    # Decode with one cache per layer, updated in place; stacked caches would be copied.
    module = student.module.clone(scan_layers=False, remat="none", lora=None)
    eos_id, pad_id = student.tokenizer.eos_token_id, student.tokenizer.pad_token_id
    rows_B = jnp.arange(batch_size)

    def apply(params: Any, method: str, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=method)

    @jax.jit
    def prepare(params: Any) -> Any:
        flat = layout.flatten(layout.unroll(layout.merge(params, lora)))
        # Cast the matrices once here, so that the loop does not cast them at every step.
        matrices = ("/kernel", "/embedding")
        cast = {k: v.astype(dtype) if k.endswith(matrices) else v for k, v in flat.items()}
        return layout.unflatten(cast)

    @functools.partial(jax.jit, static_argnums=1)
    def start(params: Any, size: int) -> Rows:
        def cache(params: Any) -> Any:
            ids = jnp.zeros((batch_size, size), jnp.int32)
            encoded = apply(params, "encode", ids, ids == 0)
            return apply(params, "start_cache", encoded, max_new_tokens)

        def empty(of: jax.ShapeDtypeStruct) -> jax.Array:
            return sharding.constrain(jnp.zeros(of.shape, of.dtype), *_CACHE_AXES)

        zeros = jnp.zeros(batch_size, jnp.int32)
        return Rows(
            cache=jax.tree.map(empty, jax.eval_shape(cache, params)),
            mask=jnp.zeros((batch_size, size), bool),
            ids=zeros,
            age=zeros,
            done=jnp.ones(batch_size, bool),
            number=zeros,
            written=jnp.full((batch_size, max_new_tokens), pad_id, jnp.int32),
            time=jnp.zeros((), jnp.int32),
        )

    @functools.partial(jax.jit, donate_argnums=1)
    def fill(
        params: Any,
        rows: Rows,
        ids_ExS: jax.Array,
        mask_ExS: jax.Array,
        slots_R: jax.Array,
        number_R: jax.Array,
        source_R: jax.Array | None,
    ) -> Rows:
        encoded = apply(params, "encode", ids_ExS, mask_ExS)
        mask_RxS = mask_ExS
        if source_R is not None:
            mask_RxS, encoded = jax.tree.map(lambda x: x[source_R], (mask_ExS, encoded))

        def put(array: jax.Array, value: Any) -> jax.Array:
            return array.at[slots_R].set(value, mode="drop")

        return Rows(
            cache=apply(params, "fill_cache", rows.cache, slots_R, encoded),
            mask=put(rows.mask, mask_RxS),
            ids=put(rows.ids, start_id),
            age=put(rows.age, 0),
            done=put(rows.done, ~mask_RxS.any(axis=1)),
            number=put(rows.number, number_R),
            written=put(rows.written, pad_id),
            time=rows.time,
        )

    def choose(logits_BxV: jax.Array, key: jax.Array, rows: Rows) -> jax.Array:
        if not sampling.temperature:
            return jnp.argmax(logits_BxV, axis=-1)
        logits_BxV = logits_BxV / sampling.temperature
        if sampling.top_p < 1:
            logits_BxV = nucleus(logits_BxV, sampling.top_p)
        fold_in = jax.vmap(jax.random.fold_in)
        keys_B = fold_in(fold_in(jnp.broadcast_to(key, batch_size), rows.number), rows.age)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BxV)

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(params: Any, rows: Rows, key: jax.Array, enough: jax.Array) -> Rows:
        def write_token(rows: Rows) -> Rows:
            hidden, cache = apply(
                params, "decode_step", rows.ids, rows.time, rows.age, rows.mask, rows.cache
            )
            ids = choose(apply(params, "logits", hidden), key, rows).astype(jnp.int32)
            ids = jnp.where(rows.done, pad_id, ids)
            age = rows.age + ~rows.done
            return rows._replace(
                cache=cache,
                ids=ids,
                age=age,
                done=rows.done | (ids == eos_id) | (age == max_new_tokens),
                # A row that is done writes padding, or nothing if it is full.
                written=rows.written.at[rows_B, rows.age].set(ids, mode="drop"),
                time=rows.time + 1,
            )

        return jax.lax.while_loop(lambda rows: rows.done.sum() < enough, write_token, rows)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def look(rows: Rows) -> tuple[jax.Array, jax.Array]:
        return rows.done, rows.written

    return Steps(prepare, start, fill, decode, look)


def nucleus(logits_BxV: jax.Array, top_p: float) -> jax.Array:
    """Sets all logits to -inf except those of the most likely tokens that together reach `top_p`.

    The token that crosses the threshold is kept, as in transformers' `TopPLogitsWarper`.
    """
    sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
    p_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
    before_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV
    min_B = jnp.min(sorted_BxV, axis=-1, where=before_BxV < top_p, initial=jnp.inf)
    return jnp.where(logits_BxV < min_B[:, None], -jnp.inf, logits_BxV)
