"""What a jitted step computes and sends, read from its jaxpr and from its compiled text.

A compiler's own count (`cost_analysis`) takes the body of a loop once, however often it runs. Here
loops are multiplied out, where their length is known: scans over layers, chunks of logits and
micro-batches.
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
    """Floating-point operations of all matrix products, over all devices.

    Args:
      jaxpr: as of `jax.jit(f).trace(...).jaxpr`.
      once: counts the body of a scan once, as compilers do. That of a while loop, whose length
        nobody knows, is counted once in any case; of branches the costliest is.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [flops(part, once=once) for part in _parts(params)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += sum(inner) * (1 if once else params["length"])
        else:
            total += sum(inner)
    return total


def _parts(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield part


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often a step runs a kind of collective, and what it moves.

    Attributes:
      count: of executions by a device.
      bytes: of a device's larger side, what goes in or what comes out, over all of them.
    """

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of a compiled program, by kind.

    Args:
      text: `compiled.as_text()`. The body of a loop counts as often as its condition says, once
        where that is not a number; of branches each counts.
    """
    computations, entry = _computations(text)
    found: dict[str, Collective] = {}
    for name, times in _executions(computations, entry).items():
        shapes = {n: shape for n, shape, _, _ in computations[name]}
        for _, shape, opcode, rest in computations[name]:
            kind = opcode.removesuffix("-start")
            if kind not in _KINDS:
                continue
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            given = sum(_bytes(shapes.get(operand, "")) for operand in operands)
            # What starts a collective returns what it was given as well.
            made = _bytes(shape) - given * opcode.endswith("-start") * (kind != "all-reduce")
            before = found.get(kind, Collective(0, 0))
            size = max(given, made)
            found[kind] = Collective(before.count + times, before.bytes + times * size)
    return found


def sent_bytes(found: dict[str, Collective]) -> int:
    """What a device sends for them: a sum of all devices' arrays goes round twice, others once."""
    return sum(c.bytes * (2 if kind == "all-reduce" else 1) for kind, c in found.items())


_Instructions = list[tuple[str, str, str, str]]


def _computations(text: str) -> tuple[dict[str, _Instructions], str]:
    """Instructions (name, shape, opcode, rest) by computation, and the entry's name."""
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
    """How often each computation runs."""
    result: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        result[name] = result.get(name, 0) + times
        for _, _, opcode, rest in computations[name]:
            called = dict(_CALLED.findall(rest))
            branches = _BRANCHES.search(rest)
            names = [*called.values(), *re.findall(r"[\w.\-]+", branches[1] if branches else "")]
            loops = _length(computations[called["condition"]]) if opcode == "while" else 1
            for part in names:
                if part in computations and part != called.get("condition"):
                    visit(part, times * loops)

    visit(entry, 1)
    return result


def _length(condition: _Instructions) -> int:
    """How often a loop runs, by the one number that its counter is compared with; else 1."""
    numbers = [
        int(match[1])
        for _, shape, opcode, rest in condition
        if opcode == "constant"
        and shape.startswith("s32[]")
        and (match := re.match(r"(\d+)\)", rest))
    ]
    return numbers[0] if len(numbers) == 1 else 1


def _bytes(shape: str) -> int:
    """Of an array or a tuple of arrays, without padding."""
    return sum(
        _TYPE_BYTES.get(kind, int(re.sub(r"\D", "", kind) or 0) // 8)
        * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", shape))
    )
