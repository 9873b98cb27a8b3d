"""What the devices send each other in a compiled program, read from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from jax.stages import Compiled

__all__ = ["Collective", "collectives", "total_sent"]

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The result's shape may be a tuple, so everything between "=" and the name of the operation belongs to it.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")


class Collective(NamedTuple):
    """All collectives of one kind among groups of one size.

    Attributes:
        kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
        group: devices that take part together.
        runs: how often it runs in one call of the program, rounds of loops included.
        bytes: of the whole (not split) arrays of one device, summed over the runs: what an all-gather makes, a
            reduce-scatter takes, and the others take and make.
        sent: bytes that one device sends in a ring, summed likewise: ``(n - 1) / n`` of ``bytes`` for n devices,
            twice that for an all-reduce, ``bytes`` for a permutation.
    """

    kind: str
    group: int
    runs: int
    bytes: int
    sent: int


def _size(shapes: str) -> int:
    """Bytes of all arrays named in the text of a result."""
    total = 0
    for dtype, dims in _SHAPE.findall(shapes):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
        count = 1
        for n in dims.split(","):
            count *= int(n or 1)
        total += count * bits // 8
    return total


def _group_size(line: str, devices: int) -> int:
    """Devices of one group, from any of the forms in which XLA writes them."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=@?mesh\[(.*?)\][^{]*\{(.*?)\}", line):
        # Axes by name, or 'axis':(1)2 for a part of an axis of that size.
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", match[1]))
        parts = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    return devices


def _multiplicity(text: str) -> dict[str, int]:
    """Number of runs of each computation, loops of unknown length counted once."""
    calls: dict[str, list[tuple[str, int]]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            calls[current] = []
            entry = current if match[1] else entry
        elif current:
            names = _CALL.findall(line)
            if branches := _BRANCHES.search(line):
                names += re.findall(r"%([\w.\-]+)", branches[1])
            trips = _TRIPS.search(line)
            calls[current] += [(name, int(trips[1]) if trips else 1) for name in names]
    runs = dict.fromkeys(calls, 0)

    def visit(name: str, times: int) -> None:
        runs[name] = runs.get(name, 0) + times
        for callee, trips in calls.get(name, ()):
            visit(callee, times * trips)

    visit(entry, 1)
    return runs


def _found(text: str) -> Iterator[Collective]:
    """Every line with a collective, with the number of its runs."""
    header = re.search(r"num_partitions=(\d+)", text) or re.search(r"replica_count=(\d+)", text)
    devices = int(header[1]) if header else 1
    runs, current = _multiplicity(text), ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        kind, group, size = match[2], _group_size(line, devices), _size(match[1])
        if kind == "reduce-scatter":
            size *= group
        elif match[3] and kind == "all-gather":  # the result of a start also holds the operands, 1/n of the gathered
            size = size * group // (group + 1)
        elif match[3] and kind == "collective-permute":  # likewise, and counters
            size //= 2
        sent = size if kind == "collective-permute" else size * (group - 1) // group
        sent *= 2 if kind == "all-reduce" else 1
        times = runs.get(current, 0)
        yield Collective(kind, group, times, times * size, times * sent)


def collectives(program: str | Compiled) -> list[Collective]:
    r"""Count what the devices send each other in one call of a compiled program.

    A collective inside a loop counts as often as the loop runs, if the compiler knows how often that is, and
    otherwise once.

    Args:
        program: the result of ``jitted.lower(...).compile()``, or its text (after partitioning: a program that
            was only lowered has no collectives yet).

    Returns:
        One entry for each kind and size of group that occurs, in the order of ``KINDS``; none on one device.

    Raises:
        ValueError: the text is not that of a compiled program.

    Example:
        >>> collectives("HloModule m, num_partitions=8\nENTRY %main () -> f32[4] {\n"
        ...             "  %r = f32[4]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add\n}")
        [Collective(kind='all-reduce', group=2, runs=1, bytes=16, sent=16)]
    """
    text = program if isinstance(program, str) else program.as_text() or ""
    if not text.startswith("HloModule"):
        raise ValueError(
            f"a compiled program starts with HloModule; got {text[:40]!r}: pass jitted.lower(...).compile()"
        )
    sums: dict[tuple[str, int], Collective] = {}
    for one in _found(text):
        old = sums.get((one.kind, one.group), Collective(one.kind, one.group, 0, 0, 0))
        sums[one.kind, one.group] = Collective(
            one.kind, one.group, old.runs + one.runs, old.bytes + one.bytes, old.sent + one.sent
        )
    return sorted(sums.values(), key=lambda c: (KINDS.index(c.kind), c.group))


def total_sent(table: list[Collective]) -> int:
    """Bytes that one device sends in one call, all kinds together."""
    return sum(row.sent for row in table)
