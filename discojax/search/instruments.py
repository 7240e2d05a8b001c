"""Instruments: the compiled functions that lanes are trained and measured with, in every process alike.

The process that leads makes a `Design` of them and opens stations; the others make the same of what they
are told (`search.following`). They know no proposer, no reward and no archive.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from discojax.data.pairs import Pairs
from discojax.policies.sampling import Bucket, length_buckets
from discojax.population import hosts
from discojax.population.checkpoint import Checkpoints
from discojax.population.engine import Programs, make_engine, make_programs
from discojax.population.lanes import idle_settings
from discojax.population.memory import Measuring, abstract_arguments, check_measuring, check_memory
from discojax.population.mesh import make_mesh
from discojax.population.operations import Station, by_lane
from discojax.population.placement import put
from discojax.population.step import StepConfig
from discojax.tasks.measure import Margins, Sampler, make_margins, make_observe, make_sampler
from discojax.tasks.types import Prompts, SamplingConfig, Task

__all__ = [
    "Design",
    "Instruments",
    "Look",
    "Open",
    "make_instruments",
    "measuring_by",
    "open_station",
    "opened",
    "reached",
]


@dataclass(frozen=True)
class Design:
    """All that the compiled functions are made of, but for the shapes of weights.

    Attributes:
      graph: the policy's definition.
      step, sampling: see `StepConfig` and `SamplingConfig`.
      lanes: how many there are to be.
      tokens, prompts: the longest completion and prompt.
      mesh: devices along lane, data and model; see `make_mesh`.
      margins: whether those of held-out pairs are measured.
    """

    graph: nnx.GraphDef
    step: StepConfig
    sampling: SamplingConfig
    lanes: int
    tokens: int
    prompts: int | None
    mesh: tuple[int, int, int]
    margins: bool


class Instruments(NamedTuple):
    """See `make_programs`, `make_sampler` and `make_margins`; no margins where none are measured."""

    design: Design
    programs: Programs
    sampler: Sampler
    margins: Margins | None


class Open(NamedTuple):
    """The message that a station is opened."""

    design: Design
    task: str  # its identity
    split: str
    prompts: int
    kept: tuple[str, int] | None  # where checkpoints are, and how many
    identity: str


class Look(NamedTuple):
    """The question whether everyone sees a file."""

    file: str


class _Goods(NamedTuple):
    """What of a task is on the devices."""

    params: Any
    frozen: Any
    pairs: Pairs
    held_out: Pairs | None
    prompts: Mapping[str, Prompts]


def make_instruments(design: Design, params: Any, frozen: Any = None) -> Instruments:
    """Prepares the compiled functions; each compiles when it is first called.

    Args:
      design: see `Design`.
      params, frozen: the two parts of a policy's weights, of which only shapes matter.

    Raises:
      UserError: the batch cannot be divided over the mesh.
    """
    mesh = make_mesh(*design.mesh)
    alike: dict[str, Any] = {
        "mesh": mesh, "implementation": design.step.implementation, "dtype": design.step.dtype
    }  # fmt: skip
    return Instruments(
        design,
        make_programs(
            design.graph, params, design.step, lanes=design.lanes, tokens=design.tokens,
            prompts=design.prompts, mesh=mesh, frozen=frozen,
        ),
        make_sampler(design.graph, design.sampling, **alike),
        make_margins(design.graph, tokens=design.sampling.tokens, **alike) if design.margins else None,
    )  # fmt: skip


def open_station(
    instruments: Instruments,
    task: Task,
    split: str,
    prompts: int,
    checkpoints: Checkpoints | None = None,
    identity: str = "",
) -> Station:
    """A station for a task, measured on the first so many prompts of a split; it judges nothing yet.

    Raises:
      UserError: there are too few pairs, or the lanes do not fit into memory.
    """
    goods = _Goods(task.params, task.frozen, task.pairs, task.held_out, task.prompts)
    if checkpoints is not None and not reached(checkpoints):
        checkpoints = None
    hosts.give(task.identity, goods)
    kept = None if checkpoints is None else (checkpoints.directory, checkpoints.keep)
    hosts.tell(Open(instruments.design, task.identity, split, prompts, kept, identity))
    return replace(_station(instruments, goods, split, prompts), checkpoints=checkpoints, identity=identity)


_reach: dict[str, bool] = {}


def reached(checkpoints: Checkpoints) -> bool:
    """Whether every process can write its part of a checkpoint. That one cannot is said once."""
    directory = checkpoints.directory
    if hosts.alone() or "://" in directory:
        return True
    if directory not in _reach:
        folder = Path(directory).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hosts-") as mark:
            hosts.tell(Look(mark.name))
            _reach[directory] = hosts.all_see(mark.name)
        if not _reach[directory]:
            checkpoints.say(
                f"Lanes in training are not kept, because not every host sees {folder}: for that give "
                "run.directory as a folder that they share, or as gs://BUCKET/PATH."
            )
    return _reach[directory]


def opened(instruments: Instruments | None, message: Open) -> tuple[Instruments, Station]:
    """The station that the leader has opened, and the instruments, which are the ones there are if they do.

    Raises:
      UserError: the lanes do not fit into memory.
    """
    goods = _Goods(*hosts.given(message.task))
    if instruments is None or instruments.design != message.design:
        instruments = make_instruments(message.design, goods.params, goods.frozen)
    station = _station(instruments, goods, message.split, message.prompts)
    return instruments, replace(station, identity=message.identity)


def measuring_by(
    sampler: Sampler,
    buckets_of: Callable[[int], tuple[Bucket, ...]],
    pairs: Pairs,
    *,
    margins: Margins | None = None,
    held_out: Pairs | None = None,
) -> Measuring:
    """What `observe` calls, with the shapes of what it is called with.

    Args:
      sampler, margins: see `make_sampler` and `make_margins`.
      buckets_of: so many prompts, or their shapes.
      pairs, held_out: those trained on, and those whose margins are measured, or their shapes.
    """

    def measuring(programs: Programs, prompts: int) -> list[tuple[Any, tuple[Any, ...]]]:
        state, _, frozen, _ = abstract_arguments(programs, pairs)
        everywhere = NamedSharding(programs.mesh, jax.P())
        buckets, others = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            (buckets_of(prompts), held_out),
        )
        chosen, seeds = by_lane(
            programs, (np.zeros(programs.lanes, bool), idle_settings(programs.lanes).seed)
        )
        lanes = (state.params, frozen, chosen)
        found: list[tuple[Any, tuple[Any, ...]]] = [(sampler, (*lanes, seeds, buckets, programs.params))]
        if margins is not None and others is not None:
            found.append((margins, (*lanes, others)))
        return found

    return measuring


def _station(instruments: Instruments, goods: _Goods, split: str, prompts: int) -> Station:
    everywhere = NamedSharding(instruments.programs.mesh, jax.P())

    def buckets_of(prompts: int) -> tuple[Bucket, ...]:
        return length_buckets(*(array[:prompts] for array in goods.prompts[split]))

    measuring = measuring_by(
        instruments.sampler, buckets_of, goods.pairs, margins=instruments.margins, held_out=goods.held_out
    )
    check_memory(instruments.programs, goods.pairs)  # before measuring, which is less often what is too much
    check_measuring(instruments.programs, goods.pairs, measuring, prompts)
    engine = make_engine(instruments.programs, goods.params, goods.pairs, goods.frozen)
    buckets = buckets_of(prompts)
    observe = make_observe(
        instruments.sampler, put(buckets, everywhere), engine.params, frozen=engine.frozen,
        margins=instruments.margins, held_out=put(goods.held_out, everywhere),
    )  # fmt: skip
    return Station(engine, observe)
