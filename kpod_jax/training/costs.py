"""FLOPs and communication of a jitted step, from its jaxpr and its compiled text.

The compiler's count (`cost_analysis`) includes a loop body once, however often it runs. Here loops
of known length are multiplied out: scans over layers, chunks of logits and micro-batches.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend import core

_TYPE_BYTES = {"pred": 1, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(body|condition|calls|to_apply|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


def flops(jaxpr: Any, *, once: bool = False) -> float:
    """Counts the floating-point operations of all matrix products, over all devices.

    Args:
      jaxpr: from `jax.jit(f).trace(...).jaxpr`.
      once: count the body of a scan once, as compilers do. The body of a while loop, whose length
        is unknown, always counts once; of several branches, only the costliest counts.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [flops(part, once=once) for part in _inner_jaxprs(params)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            contracted_size = math.prod(left[axis] for axis in contracted)
            total += 2.0 * contracted_size * math.prod(equation.outvars[0].aval.shape)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += sum(inner) * (1 if once else params["length"])
        else:
            total += sum(inner)
    return total


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield part


@dataclasses.dataclass(frozen=True)
class Collective:
    """Executions and size of one kind of collective in a step.

    Attributes:
      count: executions per device.
      bytes: the larger of a device's input and output, summed over all executions.
    """

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Collective]:
    """Returns the collectives of a compiled program, by kind.

    Args:
      text: `compiled.as_text()`. A loop body counts as often as the loop's condition says, or once
        if that is not a constant; all branches count.
    """
    computations, entry = _computations(text)
    result: dict[str, Collective] = {}
    for name, times in _executions(computations, entry).items():
        shapes = {n: shape for n, shape, _, _ in computations[name]}
        for _, shape, opcode, rest in computations[name]:
            kind = opcode.removesuffix("-start")
            if kind not in _KINDS:
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            input_bytes = sum(_bytes(shapes.get(operand, "")) for operand in operands)
            # An asynchronous start returns its operands as well.
            output_bytes = _bytes(shape) - input_bytes * opcode.endswith("-start") * (
                kind != "all-reduce"
            )
            previous = result.get(kind, Collective(0, 0))
            size = max(input_bytes, output_bytes)
            result[kind] = Collective(previous.count + times, previous.bytes + times * size)
    return result


def sent_bytes(found: dict[str, Collective]) -> int:
    """Returns the bytes that a device sends: an all-reduce sends its array twice, others once."""
    return sum(c.bytes * (2 if kind == "all-reduce" else 1) for kind, c in found.items())


_Instructions = list[tuple[str, str, str, str]]


def _computations(text: str) -> tuple[dict[str, _Instructions], str]:
    """Returns each computation's instructions (name, shape, opcode, rest), and the entry's name."""
    result: dict[str, _Instructions] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            result[name] = []
            entry = name if header[1] else entry
        elif name and (match := _INSTRUCTION.match(line)):
            result[name].append((match[1], match[2], match[3], match[4]))
    return result, entry


def _executions(computations: dict[str, _Instructions], entry: str) -> dict[str, int]:
    """Returns how often each computation runs."""
    result: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        result[name] = result.get(name, 0) + times
        for _, _, opcode, rest in computations[name]:
            called = dict(_CALLED.findall(rest))
            branches = _BRANCHES.search(rest)
            names = [*called.values(), *re.findall(r"[\w.\-]+", branches[1] if branches else "")]
            loops = _trip_count(computations[called["condition"]]) if opcode == "while" else 1
            for part in names:
                if part in computations and part != called.get("condition"):
                    visit(part, times * loops)

    visit(entry, 1)
    return result


def _trip_count(condition: _Instructions) -> int:
    """Returns how often a loop runs: the one number its condition compares with, else 1."""
    numbers = [
        int(match[1])
        for _, shape, opcode, rest in condition
        if opcode == "constant"
        and shape.startswith("s32[]")
        and (match := re.match(r"(\d+)\)", rest))
    ]
    return numbers[0] if len(numbers) == 1 else 1


def _bytes(shape: str) -> int:
    """Returns the size of an array or a tuple of arrays, without padding."""
    return sum(
        _TYPE_BYTES.get(kind, int(re.sub(r"\D", "", kind) or 0) // 8)
        * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", shape))
    )
