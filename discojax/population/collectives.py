"""What the devices say to one another in a compiled program: read from its text, told by mesh axis."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

__all__ = ["Collective", "collectives"]


class Collective(NamedTuple):
    """One communication of a program.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`, `collective-permute`, ...
      axes: the mesh axes along which the devices that take part differ.
      bytes: of its result on one device.
      times: it is met in one run of the program: the turns of the loops it is in, where the text says
        them (a counter compared with a constant); a loop that does not counts once.
    """

    kind: str
    axes: frozenset[str]
    bytes: int
    times: int = 1


_KINDS = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    "collective-broadcast|send|recv"
)
_LINE = re.compile(rf"= (?P<result>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\((?P<rest>.*)")
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\((?P<order>[^)]*(?:\([^)]*\))?)\))?"
    r" \{(?P<along>[^}]*)\}"
)
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
_LOOP = re.compile(r" while\(.*\bcondition=%?(?P<condition>[\w.-]+), body=%?(?P<body>[\w.-]+)")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Every collective in a compiled program's text (`compiled.as_text()`).

    Args:
      text: of the optimised program, partitioned for this mesh.
      mesh: whose devices, in its order, the program runs on.
    """
    found = []
    computations = _computations(text)
    times = _times(computations)
    for name, line in ((name, line) for name, lines in computations.items() for line in lines):
        match = _LINE.search(line)
        if match is None:
            continue
        sizes = [_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(match["result"])]
        both = match["start"] and match["kind"] in ("all-gather", "collective-permute")
        size = max(sizes, default=0) if both else sum(sizes)  # a start carries its operand as well
        found.append(Collective(match["kind"], _axes(match["rest"], mesh), size, max(times.get(name, 1), 1)))
    return found


_ENTRY = ""


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation by its name; those of the entry, and lines in none, under `_ENTRY`."""
    found: dict[str, list[str]] = {_ENTRY: []}
    name = _ENTRY
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = _ENTRY if match["entry"] else match["name"]
        elif line.startswith("}"):
            name = _ENTRY
        found.setdefault(name, []).append(line)
    return found


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation is run in one run of the entry; one that nothing calls is missing."""
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for line in computations.get(name, ()):
            loop = _LOOP.search(line)
            turns = _turns(computations.get(loop["condition"], [])) if loop else 1
            for called in _CALLED.findall(line):
                for callee in re.findall(r"[\w.-]+", called):
                    visit(callee, count * turns)

    visit(_ENTRY, 1)
    return times


def _turns(condition: list[str]) -> int:
    """Of a loop that counts from 0 up to the one constant of its condition; 1 where it is another."""
    constants = {int(x) for line in condition for x in _CONSTANT.findall(line)}
    counts = any("direction=LT" in line for line in condition)
    return constants.pop() if counts and len(constants) == 1 else 1


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return int(np.prod([int(d) for d in dims.split(",") if d], dtype=np.int64)) * bits // 8


def _axes(rest: str, mesh: Mesh) -> frozenset[str]:
    axes: set[str] = set()
    for group in _groups(rest, mesh.size):
        places = np.array(np.unravel_index(group, mesh.devices.shape))
        moving = (places != places[:, :1]).any(axis=1)
        axes |= {name for name, moves in zip(mesh.axis_names, moving, strict=True) if moves}
    return frozenset(axes)


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The devices that talk to one another, in any of the four ways that programs write them."""
    if named := _NAMED.search(rest):  # a mesh of the compiler's, and the axes of it that are spanned
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named["sizes"])}
        spanned = [name for name in sizes if f"'{name}'" in named["along"]]
        order = _IOTA.search(named["order"] or "")
        ids = _iota(devices, order[1], order[2]) if order else np.arange(devices)
        ids = ids.reshape(tuple(sizes.values()))
        last = [*(name for name in sizes if name not in spanned), *spanned]
        ids = ids.transpose([list(sizes).index(name) for name in last])
        return ids.reshape(-1, int(np.prod([sizes[name] for name in spanned]))).tolist()
    if counted := _COUNTED.search(rest):
        shape = [int(x) for x in counted[1].split(",")]
        return _iota(devices, counted[2], counted[3]).reshape(shape).tolist()
    if listed := _LISTED.search(rest):
        return [[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [list(range(devices))]  # none given: all of them


def _iota(devices: int, shape: str, order: str | None) -> np.ndarray:
    ids = np.arange(devices).reshape([int(x) for x in shape.split(",")])
    return ids if not order else ids.transpose([int(x) for x in order.split(",")])
