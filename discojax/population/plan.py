"""What a step would take of a TPU slice, known without one: it is compiled for that slice, for shapes.

Bytes, and what chips say to one another, are the compiler's own. Operations are counted from the
policy's shape (`policies.flops`), since a compiler counts a loop's body once, and the compiler's count
of one lane without loops stands beside them. Time is an estimate, and says of what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import numpy as np

from discojax.data.pairs import Pairs
from discojax.population.engine import Programs
from discojax.population.memory import (
    Measuring,
    Usage,
    compile_step,
    fitting_lanes,
    measuring_memory,
    needed_memory,
    written,
)
from discojax.population.mesh import make_mesh
from discojax.population.plan_costs import Time, Traffic, compiler_flops, moved, traffic_of
from discojax.population.topology import Topology, compile_devices
from discojax.population.work import Work

__all__ = ["Measured", "Most", "Plan", "Sizes", "Suggestion", "plan", "suggest_mesh"]

Sizes = tuple[int, int, int]
_FOR_STATE = 0.5  # of a chip's memory that weights and moments may take; activations have the rest
_TRIES, _AIM = 4, 0.97  # a compiler that has hardly enough memory searches long for what to compute twice


class Measured(NamedTuple):
    """What measuring all lanes takes.

    Attributes:
      prompts: that each of them completes.
      bytes: on a chip, with what is held besides; None where the compiler refuses it.
    """

    prompts: int
    bytes: int | None


class Most(NamedTuple):
    """The most lanes that were compiled, to be trained and to be measured, and fit.

    Attributes:
      lanes: how many.
      usage: of training them.
      refused: the fewest that did not fit.
      measured: bytes a chip of measuring them; None where nothing is measured.
    """

    lanes: int
    usage: Usage | None
    refused: int | None
    measured: int | None = None

    @property
    def bound(self) -> Literal["training", "measuring"]:
        """Which of the two needs more memory."""
        trained = 0 if self.usage is None else self.usage.total
        return "measuring" if self.measured is not None and self.measured > trained else "training"


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
      measured: what measuring takes; None where nothing is measured, or too much is trained to ask.
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
    measured: Measured | None
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
        """Whether a chip has that much memory, to train and to measure."""
        needed = [None if self.usage is None else self.usage.total]
        needed += [] if self.measured is None else [self.measured.bytes]
        return all(much is not None and much <= self.topology.chip.memory for much in needed)

    @property
    def memory_bound(self) -> Literal["training", "measuring"]:
        """Which of the two needs more memory."""
        if self.usage is None or self.measured is None:
            return "training"
        much = self.measured.bytes
        return "measuring" if much is None or much > self.usage.total else "training"

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
    measuring: tuple[Measuring, int] | None = None,
    mfu: float = 0.4,
    most: bool = True,
    report: Callable[[str], None] = lambda doing: None,
) -> Plan:
    """Compiles a step for a slice and says what it takes there.

    Args:
      work: see `Work`.
      topology: the slice.
      sizes: devices along `lane` (0: what the others leave), `data` and `model`.
      measuring: how lanes are measured, and on how many prompts; None where they are not.
      mfu: utilisation of the peak to assume.
      most: whether to look for the most lanes that fit, which takes a few compilations more.
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
    measured = None
    if fits and measuring is not None:
        report(f"compiling their measuring on {measuring[1]} prompts")
        measured = Measured(measuring[1], measuring_memory(programs, work.data, *measuring))
        fits = measured.bytes is not None and measured.bytes <= memory
    flops = work.flops() * work.lanes
    traffic = () if compiled is None else tuple(traffic_of(compiled.as_text(), mesh, work.step.chunk))
    time = None
    if compiled is not None:
        moves = moved(work, programs, compiled, report)
        time = _time(moves, topology, flops, mfu, traffic)
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
        measured,
        flops,
        compiler_flops(work) / work.flops(causal=False, sharing=False),
        None if compiled is None else float(compiled.cost_analysis()["flops"]),
        mfu,
        time,
        traffic,
        _most(programs, work.data, memory, usage, measured, measuring, report) if most else None,
        suggestion,
    )


def _time(moved: float, topology: Topology, flops: int, mfu: float, traffic: tuple[Traffic, ...]) -> Time:
    chip = topology.chip
    return Time(
        flops / topology.chips / (chip.flops * mfu),
        moved / chip.bandwidth,
        sum(each.bytes for each in traffic) / chip.links,
    )


def _most(
    programs: Programs,
    data: Pairs,
    limit: int,
    usage: Usage | None,
    measured: Measured | None,
    measuring: tuple[Measuring, int] | None,
    report: Callable[[str], None],
) -> Most:
    """The most lanes that fit, compiled: where a line through two compiled numbers meets the limit.

    Training's line says where to begin. What more lanes need to be measured is known when they have been
    compiled, and then a line from those that fit to those that do not says where to go on.
    """
    shards, lanes = programs.mesh.shape["lane"], programs.lanes
    took = None if usage is None else _larger(usage.total, measured)
    known = Most(0, None, lanes)
    fitting = (0, 0)  # lanes, and bytes that they need
    if usage is not None and took is not None and took <= limit:
        known = Most(lanes, usage, None, measured and measured.bytes)
        fitting = lanes, took
    report("compiling two other numbers of lanes, to see how memory grows with them")
    if lanes // shards < 3:  # one or two lanes a chip are other programs: a line needs more
        programs = programs.of_lanes(4 * shards)
        needed = needed_memory(programs, data)
    else:
        needed = None if usage is None else usage.total
    guess = fitting_lanes(programs, data, int(_AIM * limit), needed)
    if known.refused == lanes and guess >= lanes:  # trained they would fit, but not measured
        guess = _between((0, 0), lanes, took, limit)
    for _ in range(_TRIES):
        guess = guess // shards * shards
        if guess <= known.lanes:
            break
        report(f"compiling {guess} lanes, the most that should fit")
        programs = programs.of_lanes(guess)
        found = compile_step(programs, data)
        usage, measured = None if found is None else found[1], None
        if usage is not None and usage.total <= limit and measuring is not None:
            measured = Measured(measuring[1], measuring_memory(programs, data, *measuring))
        took = None if usage is None else _larger(usage.total, measured)
        if took is not None and took <= limit:
            return Most(guess, usage, known.refused, measured and measured.bytes)
        known = known._replace(refused=guess)
        guess = int(0.9 * guess) if usage is None else _between(fitting, guess, took, limit)
    return known


def _larger(trained: int, measured: Measured | None) -> int | None:
    """What lanes need to be trained and to be measured; None where the compiler refuses to measure them."""
    if measured is None:
        return trained
    return None if measured.bytes is None else max(trained, measured.bytes)


def _between(fitting: tuple[int, int], refused: int, took: int | None, limit: int) -> int:
    """The next lanes to try: on the line from those that fit to those that took too much, below the limit."""
    lanes, needed = fitting
    if took is None:
        return (lanes + refused) // 2
    return lanes + int((refused - lanes) * max(_AIM * limit - needed, 0) / (took - needed))


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
