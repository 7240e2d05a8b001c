"""What a step would take of a TPU slice, known without one: it is compiled for that slice, for shapes.

Bytes, and what chips say to one another, are the compiler's own. Operations are counted from the
policy's shape (`policies.flops`), since a compiler counts a loop's body once, and the compiler's count
of one lane without loops stands beside them. Time is an estimate, and says of what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from discojax.data.pairs import Pairs
from discojax.population.collectives import collectives
from discojax.population.engine import Programs
from discojax.population.memory import (
    Usage,
    abstract_arguments,
    compile_step,
    fitting_lanes,
    needed_memory,
    written,
)
from discojax.population.mesh import AXES, make_mesh
from discojax.population.topology import Topology, compile_devices
from discojax.population.work import Work

__all__ = ["Most", "Plan", "Sizes", "Suggestion", "Time", "Traffic", "plan", "suggest_mesh"]

Sizes = tuple[int, int, int]
_FOR_STATE = 0.5  # of a chip's memory that weights and moments may take; activations have the rest
_TRIES, _AIM = 4, 0.97  # a compiler that has hardly enough memory searches long for what to compute twice


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
      memory: what the compiled program reads and writes in HBM, at its bandwidth; a loop's body is
        counted once, so it is at least that.
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


class Most(NamedTuple):
    """The most lanes that were compiled and fit, what they take, and the fewest that were refused."""

    lanes: int
    usage: Usage | None
    refused: int | None


class Suggestion(NamedTuple):
    """A mesh and why; `usage` if it was compiled."""

    mesh: dict[str, int]
    reason: str
    usage: Usage | None = None


@dataclass(frozen=True)
class Plan:
    """What there is to know before paying.

    Attributes:
      topology: the slice.
      mesh: devices along each axis.
      work: what is planned, its lanes rounded up to what the mesh divides.
      usage: bytes a chip; None where it is so much that the compiler refuses it.
      flops: operations of one step of all lanes.
      compiler_flops: what the compiler counts of a lane's step without loops, over our count of the same.
      compiled_flops: what it counts of a chip's program, a loop's body once; None where it has none.
      mfu: the utilisation of the chip's peak that is assumed.
      time: None where nothing was compiled.
      traffic: what chips say to one another in a step.
      most: see `Most`; None if it was not asked for.
      suggestion: see `Suggestion`.
    """

    topology: Topology
    mesh: dict[str, int]
    work: Work
    usage: Usage | None
    flops: int
    compiler_flops: float
    compiled_flops: float | None
    mfu: float
    time: Time | None
    traffic: tuple[Traffic, ...]
    most: Most | None
    suggestion: Suggestion

    @property
    def fits(self) -> bool:
        """Whether a chip has that much memory."""
        return self.usage is not None and self.usage.total <= self.topology.chip.memory

    @property
    def dollars(self) -> float | None:
        """Of a million lane-steps at the chips' list price."""
        if self.time is None:
            return None
        hours = 1e6 / self.work.lanes * self.time.step / 3600
        return hours * self.topology.chips * self.topology.chip.dollars


def plan(
    work: Work,
    topology: Topology,
    sizes: Sizes,
    *,
    mfu: float = 0.4,
    most: bool = True,
    report: Callable[[str], None] = lambda doing: None,
) -> Plan:
    """Compiles a step for a slice and says what it takes there.

    Args:
      work: see `Work`.
      topology: the slice.
      sizes: devices along `lane` (0: what the others leave), `data` and `model`.
      mfu: utilisation of the peak to assume.
      most: whether to look for the most lanes that fit, which takes two or three compilations more.
      report: told before each compilation, which takes from seconds to minutes.

    Raises:
      UserError: libtpu is not there, or the mesh, the batch and the slice do not go together.
    """
    devices = compile_devices(topology)
    memory = topology.chip.memory
    mesh = make_mesh(*sizes, among=devices)
    programs = work.programs(mesh)
    work = replace(work, lanes=programs.lanes)
    report(f"compiling {work.lanes} lanes for {topology.name}")
    found = compile_step(programs, work.data)
    compiled, usage = found or (None, None)
    fits = usage is not None and usage.total <= memory
    flops = work.flops() * work.lanes
    traffic = () if compiled is None else tuple(_traffic(compiled.as_text(), mesh, work.step.chunk))
    time = None if compiled is None else _time(compiled, topology, flops, mfu, traffic)
    suggestion = suggest_mesh(work, topology)
    if not fits and tuple(suggestion.mesh.values()) != mesh.devices.shape:
        report(f"compiling for the mesh {suggestion.mesh}")
        other = work.programs(make_mesh(*suggestion.mesh.values(), among=devices))
        compiled_there = compile_step(other, work.data)
        suggestion = suggestion._replace(usage=compiled_there and compiled_there[1])
    return Plan(
        topology,
        dict(mesh.shape),
        work,
        usage,
        flops,
        _compiler_flops(work) / work.flops(causal=False, sharing=False),
        None if compiled is None else float(compiled.cost_analysis()["flops"]),
        mfu,
        time,
        traffic,
        _most(programs, work.data, memory, usage, report) if most else None,
        suggestion,
    )


def _traffic(text: str, mesh: Mesh, chunk: int) -> Iterator[Traffic]:
    times: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for each in collectives(text, mesh):
        key = "+".join(axis for axis in AXES if axis in each.axes), each.kind
        times[key] += each.times
        size[key] += each.times * each.bytes
    for key in sorted(times):
        yield Traffic(*key, times[key] / chunk, size[key] / chunk)


def _time(compiled: Any, topology: Topology, flops: int, mfu: float, traffic: tuple[Traffic, ...]) -> Time:
    chip = topology.chip
    moved = compiled.cost_analysis()["bytes accessed"]
    return Time(
        flops / topology.chips / (chip.flops * mfu),
        moved / chip.bandwidth,
        sum(each.bytes for each in traffic) / chip.links,
    )


def _compiler_flops(work: Work) -> float:
    """The compiler's count of a step of one lane, from one layer's and two layers', without any loop."""
    period = len(work.policy.pattern)

    def of(layers: int) -> float:
        policy = replace(work.policy, layers=layers, scan=False, remat="none")
        tokens = 2 * work.step.batch * work.tokens
        step = replace(work.step, chunk=1, accumulate=1, block=tokens, implementation="vmap")
        plain = replace(work, policy=policy, step=step, lanes=1)
        one = plain.programs(make_mesh(1, among=jax.devices("cpu")[:1]), sharing=False)
        lowered = one.advance.lower(*abstract_arguments(one, plain.data))  # type: ignore[attr-defined]
        return float(lowered.cost_analysis()["flops"])

    first, second = of(period), of(2 * period)
    return first + (second - first) * (work.policy.layers / period - 1)


def _most(
    programs: Programs, data: Pairs, limit: int, usage: Usage | None, report: Callable[[str], None]
) -> Most:
    """The most lanes that fit: where a line through two compiled numbers meets the limit, then compiled."""
    shards, lanes = programs.mesh.shape["lane"], programs.lanes
    known = Most(lanes, usage, None) if usage and usage.total <= limit else Most(0, None, lanes)
    report("compiling two other numbers of lanes, to see how memory grows with them")
    if lanes // shards < 3:  # one or two lanes a chip are other programs: a line needs more
        programs = programs.of_lanes(4 * shards)
        needed = needed_memory(programs, data)
    else:
        needed = None if usage is None else usage.total
    guess = fitting_lanes(programs, data, int(_AIM * limit), needed)
    for _ in range(_TRIES):
        guess = guess // shards * shards
        if guess <= known.lanes:
            break
        report(f"compiling {guess} lanes, the most that should fit")
        found = compile_step(programs.of_lanes(guess), data)
        if found is not None and found[1].total <= limit:
            return Most(guess, found[1], known.refused)
        known = known._replace(refused=guess)
        guess = int(_AIM * guess * limit / found[1].total) if found else int(0.9 * guess)
    return known


def suggest_mesh(work: Work, topology: Topology) -> Suggestion:
    """The mesh that says least between chips, by arithmetic on weights and moments.

    They may take half of a chip's memory. `model` is as small as that allows; then as many chips as
    there are lanes for have lanes of their own; the rest shares a batch over `data`.
    """
    chips, chip = topology.chips, topology.chip
    own, shared = 16 * work.trained, work.frozen * np.dtype(jax.numpy.dtype(work.step.dtype)).itemsize

    def state(lane: int, model: int) -> float:
        divided = model if work.lora is None else 1  # adapters stay whole
        return -(-work.lanes // lane) * own / divided + shared / model

    def possible() -> Iterator[tuple[int, int, int]]:
        for model in (n for n in range(1, chips + 1) if chips % n == 0):
            for lane in (n for n in range(1, chips // model + 1) if chips // model % n == 0):
                data = chips // model // lane
                if lane <= work.lanes and work.step.batch % (data * work.step.accumulate) == 0:
                    yield lane, data, model

    every = list(possible()) or [(1, 1, chips)]
    enough = [each for each in every if state(each[0], each[2]) <= _FOR_STATE * chip.memory]
    # Among equals no chip should have more lanes than another.
    lane, data, model = min(
        enough or [max(every, key=lambda each: each[2])],
        key=lambda each: (each[2], -(-work.lanes // each[0]) * each[0], each[1]),
    )
    return Suggestion(
        {"lane": lane, "data": data, "model": model}, _why(work, topology, (lane, data, model), state)
    )


def _why(work: Work, topology: Topology, sizes: Sizes, state: Callable[[int, int], float]) -> str:
    lane, data, model = sizes
    memory = topology.chip.memory
    whole = f"weights and moments take {written(int(state(lane, model)))} of a chip's {written(memory)}"
    if state(lane, model) > memory:
        reason = "no mesh of this slice holds that: fewer lanes, or a larger slice"
    elif model > 1:
        undivided = written(int(state(lane, 1)))
        reason = f"undivided they would take {undivided}, more than half of it, so `model` divides them"
    elif data == 1:
        reason = "so every chip has lanes of its own and says nothing to another"
    else:
        reason = "so `model` need not divide them"
    if data > 1:
        fewer = "there are fewer lanes than chips" if lane == work.lanes else "lanes divide no further"
        reason += f"; {fewer}, so {data} chips share a lane's batch, for one sum of gradients a step"
    return f"{whole}: {reason}"
