"""Device work as data: what may be asked of the devices, and one function that does it.

An operation is a few host arrays. Whoever decides (`population.training`) knows nothing of devices,
and any process that is told the same operations in the same order does the same device work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.engine import Engine
from discojax.population.lanes import LaneSettings, LaneState
from discojax.population.placement import fetch

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
      sums: see `StepMetrics`, a row for each of its fields.
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


def _nobody(operation: Operation) -> None:
    """Tells nobody."""


def _as_it_is(observed: Any, chosen: Bool[np.ndarray, " lanes"]) -> Sequence[Any]:
    return observed


@dataclass(frozen=True)
class Station:
    """Where lanes train, and how their policies are measured.

    Attributes:
      engine: see `make_engine`.
      observe: the device's part of measuring: given the weights of all lanes, which of them to look
        at and every lane's seed, any tree of arrays.
      judge: the host's part: of that tree, as host arrays, and which lanes, one result for each of
        these, in order.
      announce: told every operation before it is performed.
      checkpoints: of the lanes, if they are kept.
      identity: of all that a lane's work here depends on, besides its job.
    """

    engine: Engine
    observe: Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], Any]
    judge: Callable[[Any, Bool[np.ndarray, " lanes"]], Sequence[Any]] = _as_it_is
    announce: Callable[[Operation], None] = _nobody
    checkpoints: Checkpoints | None = None
    identity: str = ""


def perform(station: Station, state: LaneState | None, operation: Operation) -> tuple[LaneState, Any]:
    """Does the device work of one operation; returns the new state and the answer, as host arrays.

    `state` is given up: what it held is in the new one. `Begin` and `Restore` take None.
    """
    station.announce(operation)
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
            return programs.reset(state, engine.params, started), None
        case Advance(settings):
            state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
            sums, step, diverged = fetch((metrics, state.step, state.diverged))
            return state, Advanced(np.stack([x.astype(np.float64) for x in sums]), step, diverged)
        case Observe(chosen, seeds):
            return state, fetch(station.observe(state.params, chosen, seeds))
        case Save(held, last):
            assert station.checkpoints is not None
            station.checkpoints.save(state, held, station.identity, last=last)
            return state, None
