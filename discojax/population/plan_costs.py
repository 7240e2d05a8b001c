"""What a step costs of a slice: operations, bytes between a chip and its HBM, and what chips say.

A compiler counts a loop's body once. What it counts is therefore asked of programs of one layer and of two
without a loop, through which a line leads to all layers: each layer does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from discojax.population.collectives import collectives
from discojax.population.engine import Programs
from discojax.population.memory import abstract_arguments, compile_step
from discojax.population.mesh import AXES, make_mesh
from discojax.population.work import Work

__all__ = ["Time", "Traffic", "compiler_flops", "moved", "traffic_of"]

_LOGITS = 2**30  # bytes of them that a program without a loop over them holds: what the loop would hold
_UPDATE = 7 * 4  # bytes of a parameter's update: weight, gradient, two moments read, three of them written


class Traffic(NamedTuple):
    """What chips say to one another along some axes of the mesh, in one kind of operation.

    Attributes:
      axes: joined by `+`.
      kind: `all-reduce`, ...
      times: a step.
      bytes: of the results on a chip, a step.
    """

    axes: str
    kind: str
    times: float
    bytes: float


class Time(NamedTuple):
    """Seconds of one step of all lanes: the longest of three things that may go on at once.

    Attributes:
      compute: the operations, at the stated utilisation of the chip's peak.
      memory: what the compiled program reads and writes in HBM, at its bandwidth, a loop's body as often
        as it is gone through.
      network: what is said between chips, at the bandwidth of all of a chip's links.
    """

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """The longest."""
        return max(self)

    @property
    def bound(self) -> Literal["compute", "memory", "network"]:
        """Which it is."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))  # type: ignore[return-value]


def traffic_of(text: str, mesh: Mesh, chunk: int) -> Iterator[Traffic]:
    """What chips say in one of the `chunk` steps of a compiled program's text."""
    times: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for each in collectives(text, mesh):
        key = "+".join(axis for axis in AXES if axis in each.axes), each.kind
        times[key] += each.times
        size[key] += each.times * each.bytes
    for key in sorted(times):
        yield Traffic(*key, times[key] / chunk, size[key] / chunk)


def compiler_flops(work: Work) -> float:
    """The compiler's count of a step of one lane."""
    tokens = 2 * work.step.batch * work.tokens
    step = replace(work.step, chunk=1, accumulate=1, block=tokens, implementation="vmap")

    def of(layers: int) -> float:
        policy = replace(work.policy, layers=layers, scan=False, remat="none")
        plain = replace(work, policy=policy, step=step, lanes=1)
        one = plain.programs(make_mesh(1, among=jax.devices("cpu")[:1]), sharing=False)
        lowered = one.advance.lower(*abstract_arguments(one, plain.data))  # type: ignore[attr-defined]
        return float(lowered.cost_analysis()["flops"])

    return _line(of, work)


def moved(work: Work, programs: Programs, compiled: Any, report: Callable[[str], None]) -> float:
    """Bytes that a chip reads and writes in HBM in one step of all lanes.

    Args:
      work, programs: what is planned, and its programs for the slice.
      compiled: their step.
      report: told if more is compiled, which is where the step loops over layers, lanes, parts of a
        batch or blocks of logits. Then the count is that of one layer and two, of as many pairs as can be
        had without a loop over their logits (and half as many, for a line to all of them), and of one part.

    Returns:
      The count; where the compiler refuses one of these programs, of the compiled one, which is too low.
    """
    shards, data = (programs.mesh.shape[axis] for axis in ("lane", "data"))
    parts = work.step.accumulate
    mapped = work.lanes // shards if work.step.implementation == "map" else 1
    lanes = work.lanes // mapped
    rows, pair = work.step.batch // (parts * data), 2 * work.tokens
    block = programs.config.block
    if not work.policy.scan and mapped == parts == 1 and (block is None or block >= rows * pair):
        return _accessed(compiled)
    report("compiling one layer and two, for what each reads and writes")

    def of(layers: int, rows: int) -> float:
        policy = replace(work.policy, layers=layers, scan=False)
        step = replace(
            work.step, chunk=1, batch=rows * parts * data, block=rows * pair, implementation="vmap"
        )
        few = replace(work, policy=policy, step=step, lanes=lanes)
        found = compile_step(few.programs(programs.mesh), few.data)
        if found is None:
            raise _RefusedError
        return _accessed(found[0])

    def of_rows(rows: int) -> float:
        return _line(lambda layers: of(layers, rows), work)

    logits = 4 * work.policy.vocab_size * pair * lanes // shards
    most = min(rows, max(_LOGITS // logits, 2))
    try:
        one = of_rows(most)
        if most < rows:
            one += (one - of_rows(most // 2)) * (rows - most) / (most - most // 2)
    except _RefusedError:
        return _accessed(compiled)
    divided = programs.mesh.shape["model"] if work.lora is None else 1  # adapters stay whole
    update = _UPDATE * work.trained * lanes // shards / divided
    return mapped * (one + (parts - 1) * (one - update))


class _RefusedError(Exception):
    """A program that the compiler has no memory for."""


def _accessed(compiled: Any) -> float:
    return float(compiled.cost_analysis()["bytes accessed"])


def _line(of: Callable[[int], float], work: Work) -> float:
    """What is counted of all layers, from the count of one turn of the policy's pattern and of two."""
    period = len(work.policy.pattern)
    first, second = of(period), of(2 * period)
    return first + (second - first) * (work.policy.layers / period - 1)
