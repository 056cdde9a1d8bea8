"""Exact FLOPs of the matrix products of a function, from its trace.

They are what a model needs: attention, logits and gradients are in them, what rematerialisation
computes again is not if the function is traced without it. Element-wise work is left out, as is
usual for the model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts a multiplication and an addition as two, and runs nothing.

    A loop whose length is not known before it runs counts once; of branches the dearest counts.

    Args:
      function: of JAX, traceable.
      args: arrays, or trees of jax.ShapeDtypeStruct.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            inner = math.prod(left[axis] for axis in contracted)
            out = equation.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            total += 2 * inner * math.prod(out)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_count, _inside(params.values())))
    return total


def _inside(values: Any) -> Iterator[Jaxpr]:
    """The traces among an equation's parameters."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inside(value)
