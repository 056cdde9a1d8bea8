r"""The cost of Eq. 5: all prefixes of a rationale in one pass, against a loop over prefixes.

    python -m benchmarks.prefixes            # prints a table
    python -m benchmarks.prefixes --write    # and updates docs/token_weighting.md

Measures the gradient of Eq. 5 with respect to the masks of 8 rationales of 16 to 64 tokens, for a
random answerer of 4 layers and width 128, on a CPU.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import tables
from benchmarks.speed import interleaved
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import AnswererBatch
from tests.weighting import tiny

_ROWS, _QUESTION, _ANSWER, _RUNS = 8, 48, 4, 5
_LLAMA = LlamaConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
)
_T5 = T5Config(
    vocab_size=1024,
    d_model=128,
    d_kv=32,
    d_ff=384,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    dropout_rate=0.0,
)


def problems(length: int) -> AnswererBatch:
    """Returns random rows without padding."""
    rng = np.random.default_rng(0)

    def ids(width: int) -> jax.Array:
        return jnp.asarray(rng.integers(3, 1024, (_ROWS, width)), jnp.int32)

    def all_true(width: int) -> jax.Array:
        return jnp.ones((_ROWS, width), bool)

    return AnswererBatch(
        ids(_QUESTION), all_true(_QUESTION),
        ids(length), all_true(length), all_true(length),
        ids(_ANSWER), all_true(_ANSWER),
    )  # fmt: skip


def gradients(answerer: Answerer, rows: AnswererBatch) -> tuple[Any, Any]:
    """Returns two functions of parameters and masks: all prefixes at once, and one by one."""
    count = rows.rationale.shape[1]
    prefixes = jnp.broadcast_to(jnp.arange(1, count + 1), (_ROWS, count))

    @jax.jit
    def at_once(params: Any, keep: jax.Array) -> jax.Array:
        return jax.grad(lambda m: answerer.prefix_losses(params, rows, m, prefixes).sum())(keep)

    @jax.jit
    def single(params: Any, keep: jax.Array, k: jax.Array) -> jax.Array:
        length = jnp.full(_ROWS, k)
        return jax.grad(lambda m: answerer.losses(params, rows, m, length).sum())(keep)

    def loop(params: Any, keep: jax.Array) -> jax.Array:
        return sum((single(params, keep, jnp.array(k)) for k in range(1, count + 1)), 0 * keep)

    return at_once, loop


def _run_to_end(run: Callable[..., jax.Array], *arguments: Any) -> None:
    jax.block_until_ready(run(*arguments))


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    t5 = Answerer(T5(_T5, scan_layers=False), 2, 0, None, causal=True)
    kinds = {
        "decoder-only": Answerer(Llama(_LLAMA, scan_layers=False), 2, 1, None, causal=True),
        "T5, causal encoding": t5,
        "T5, bidirectional": dataclasses.replace(t5, eos_id=1, causal=False),
    }
    rows = [
        "| answerer | rationale tokens | at once, ms | loop, ms | loop / at once |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    for name, answerer in kinds.items():
        params = tiny.params(answerer.module)
        for length in (16, 32, 64):
            data = problems(length)
            keep = jax.random.uniform(jax.random.key(0), data.rationale.shape)
            sides = {
                side: functools.partial(_run_to_end, run, params, keep)
                for side, run in zip(("once", "loop"), gradients(answerer, data), strict=True)
            }
            seconds = interleaved.seconds(sides, _RUNS, warm_up=1, now=time.perf_counter)
            once, loop = (1000 * statistics.median(seconds[side]) for side in sides)
            ratio = interleaved.ratio(seconds["once"], seconds["loop"])
            spread = f"{ratio.median:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"
            rows.append(f"| {name} | {length} | {once:.0f} | {loop:.0f} | {spread} |")
            print(rows[-1], flush=True)
    if tables.WRITE.value:
        tables.put("docs/token_weighting.md", "prefixes", rows)


if __name__ == "__main__":
    app.run(main)
