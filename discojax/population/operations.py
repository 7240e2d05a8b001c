"""Device work as data: what may be asked of the devices, and one function that does it.

An operation is a few host arrays. Whoever decides (`population.training`) knows nothing of devices,
and any process that is told the same operations in the same order does the same device work. With many
processes (`population.hosts`) the leader's are told to the others, and each puts on its own devices what
its own lanes need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Int

from discojax.population import hosts
from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.engine import Engine, Programs
from discojax.population.lanes import LaneSettings, LaneState
from discojax.population.placement import fetch, put

__all__ = [
    "Advance",
    "Advanced",
    "Begin",
    "Observe",
    "Operation",
    "Reset",
    "Restore",
    "Save",
    "Station",
    "by_lane",
    "perform",
]


class Begin(NamedTuple):
    """Puts every lane at the SFT weights, idle. It needs no state. No answer."""


class Reset(NamedTuple):
    """Puts the lanes where `started` is true at the SFT weights, with a fresh optimiser. No answer."""

    started: Bool[np.ndarray, " lanes"]


class Advance(NamedTuple):
    """Takes every lane that is not idle a chunk of steps further. Its answer is `Advanced`."""

    settings: LaneSettings


class Advanced(NamedTuple):
    """What became of every lane.

    Attributes:
      sums: see `StepMetrics`, a row for each of its fields, and as many as it has values for the last.
      step: steps each lane has taken in all.
      diverged: see `LaneState`.
    """

    sums: Float[np.ndarray, "metrics lanes"]
    step: Int[np.ndarray, " lanes"]
    diverged: Bool[np.ndarray, " lanes"]


class Observe(NamedTuple):
    """Looks at the policies of the lanes where `chosen` is true. Its answer is the station's own."""

    chosen: Bool[np.ndarray, " lanes"]
    seeds: Int[np.ndarray, " lanes"]


class Save(NamedTuple):
    """Writes a checkpoint of the lanes; `last`, if it is to be whole before anything else. No answer."""

    held: Held
    last: bool


class Restore(NamedTuple):
    """Begins with the lanes of a checkpoint. Its answer is what that held; None where there is none."""


Operation: TypeAlias = Begin | Reset | Advance | Observe | Save | Restore


def _as_it_is(observed: Any, chosen: Bool[np.ndarray, " lanes"]) -> Sequence[Any]:
    return observed


def _nothing(params: Any, chosen: Bool[np.ndarray, " lanes"], seeds: Int[np.ndarray, " lanes"]) -> None:
    return None


@dataclass(frozen=True)
class Station:
    """Where lanes train, and how their policies are measured.

    Attributes:
      engine: see `make_engine`.
      observe: the device's part of measuring: given the weights of all lanes, which of them to look
        at and every lane's seed, any tree of arrays. By default nothing.
      judge: the host's part: of that tree, as host arrays, and which lanes, one result for each of
        these, in order.
      checkpoints: of the lanes, if they are kept.
      identity: of all that a lane's work here depends on, besides its job.
      once: whether lanes begin but once, so that the weights they begin with make room for their own.
    """

    engine: Engine
    observe: Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], Any] = _nothing
    judge: Callable[[Any, Bool[np.ndarray, " lanes"]], Sequence[Any]] = _as_it_is
    checkpoints: Checkpoints | None = None
    identity: str = ""
    once: bool = False


def perform(station: Station, state: LaneState | None, operation: Operation) -> tuple[LaneState, Any]:
    """Does the device work of one operation; returns the new state and the answer, as host arrays.

    `state` is given up: what it held is in the new one. `Begin` and `Restore` take None.
    """
    hosts.tell(operation)
    with hosts.guarded():
        state, answer = _perform(station, state, operation)
        if station.once and isinstance(operation, Begin | Restore):
            jax.tree.map(lambda x: x.delete(), station.engine.params)
        return state, answer


def _perform(station: Station, state: LaneState | None, operation: Operation) -> tuple[LaneState, Any]:
    engine = station.engine
    programs = engine.programs
    if isinstance(operation, Begin):
        return programs.fresh(engine.params), None
    if isinstance(operation, Restore):
        assert station.checkpoints is not None
        restored = station.checkpoints.restore(engine, station.identity)
        return (programs.fresh(engine.params), None) if restored is None else restored
    assert state is not None
    match operation:
        case Reset(started):
            return programs.reset(state, engine.params, by_lane(programs, started)), None
        case Advance(settings):
            orders = by_lane(programs, settings)
            state, metrics = programs.advance(state, orders, engine.frozen, engine.data)
            sums, step, diverged = fetch((metrics, state.step, state.diverged))
            return state, Advanced(_rows(sums), step, diverged)
        case Observe(chosen, seeds):
            chosen, seeds = by_lane(programs, (chosen, seeds))
            return state, fetch(station.observe(state.params, chosen, seeds))
        case Save(held, last):
            assert station.checkpoints is not None
            station.checkpoints.save(state, held, station.identity, last=last)
            return state, None


def by_lane(programs: Programs, tree: Any) -> Any:
    """Host arrays with a lane axis, for the compiled functions; one process leaves placing them to `jit`."""
    return tree if hosts.alone() else put(tree, NamedSharding(programs.mesh, jax.P("lane")))


def _rows(sums: Any) -> Float[np.ndarray, "metrics lanes"]:
    return np.concatenate([x.astype(np.float64).reshape(len(x), -1).T for x in sums])
