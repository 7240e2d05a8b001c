"""Training: jobs in, trained lanes out, with every lane kept busy.

Lanes work as slots do in continuous batching for inference. A lane that finishes (or diverges) is
measured, freed and given the next job while the others go on; nothing is compiled again and no
lane waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int

from discojax.population.engine import Engine
from discojax.population.lanes import Job, LaneSettings, idle_settings, stack_jobs
from discojax.population.step import StepMetrics

__all__ = ["Finished", "LaneMetrics", "Measure", "Progress", "train"]

Key = TypeVar("Key", bound=Hashable)


class LaneMetrics(NamedTuple):
    """Means over all the steps a lane took; see `StepMetrics`. NaN if it took none."""

    steps: int
    loss: float
    margin: float
    accuracy: float
    grad_norm: float


class Finished(NamedTuple, Generic[Key]):
    """A job that ended.

    Attributes:
      key: the job's, as it was submitted.
      diverged: whether a loss or gradient was not finite; there is then no measurement.
      metrics: of its training.
      measurement: what `measure` returned for this lane.
    """

    key: Key
    diverged: bool
    metrics: LaneMetrics
    measurement: Any


class Progress(NamedTuple):
    """Told after every call: lane-steps done in it, lane-steps the call had room for, jobs ended."""

    useful: int
    room: int
    ended: int


Measure = Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], Sequence[Any]]
"""Measures policies: given the weights of all lanes, which of them to measure, and every lane's seed,
one result for each lane measured, in order."""


def train(
    engine: Engine,
    jobs: Iterator[tuple[Key, Job]],
    measure: Measure,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Finished[Key]]:
    """Trains jobs as lanes come free, measures each at its end, and yields it.

    Args:
      engine: see `make_engine`.
      jobs: keys and jobs. It is asked for the next one whenever a lane is free, so it may decide
        late what that is.
      measure: called with the weights of all lanes and which of them have just finished.
      progress: told after every call to the device.
    """
    programs = engine.programs
    state = programs.fresh(engine.params)
    settings = idle_settings(programs.lanes)
    owners: list[Key | None] = [None] * programs.lanes
    totals = np.zeros((programs.lanes, len(StepMetrics._fields)))
    more = True
    while True:
        started = np.zeros(programs.lanes, bool)
        for lane in range(programs.lanes):
            if owners[lane] is None and more:
                following = next(jobs, None)
                if following is None:
                    more = False
                    break
                owners[lane], job = following
                _write(settings, lane, job)
                started[lane], totals[lane] = True, 0.0
        if all(owner is None for owner in owners):
            return
        if started.any():
            state = programs.reset(state, engine.params, started)
        state, metrics = programs.advance(state, settings, engine.data)
        taken, step, diverged = (np.asarray(x) for x in (metrics.steps, state.step, state.diverged))
        totals += np.stack([np.asarray(x, np.float64) for x in metrics], axis=1)

        busy = np.array([owner is not None for owner in owners])
        ended = busy & (step >= settings.steps)
        progress(Progress(int(taken.sum()), int(programs.lanes * taken.max(initial=0)), int(ended.sum())))
        if not ended.any():
            continue
        chosen = ended & ~diverged
        measured = iter(measure(state.params, chosen, settings.seed) if chosen.any() else [])
        for lane in np.flatnonzero(ended).tolist():
            owner = owners[lane]
            assert owner is not None
            owners[lane] = None
            yield Finished(
                owner,
                bool(diverged[lane]),
                _means(totals[lane]),
                None if diverged[lane] else next(measured),
            )
        settings.steps[ended] = 0  # idle until the next job


def _write(settings: LaneSettings, lane: int, job: Job) -> None:
    for array, value in zip(jax.tree.leaves(settings), jax.tree.leaves(stack_jobs([job])), strict=True):
        array[lane] = value[0]


def _means(totals: np.ndarray) -> LaneMetrics:
    steps = int(totals[0])
    if steps == 0:
        return LaneMetrics(0, *(float("nan"),) * 4)
    return LaneMetrics(steps, *(float(x) / steps for x in totals[1:]))
