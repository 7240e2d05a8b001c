"""Training: jobs in, trained lanes out, with every lane kept busy.

Lanes work as slots do in continuous batching for inference. A lane that finishes (or diverges) is
measured, freed and given the next job while the others go on; nothing is compiled again and no
lane waits for another. Where the next job is not known yet, the lane stays free and the others go on.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int

from discojax.population.engine import Engine
from discojax.population.lanes import Job, LaneSettings, idle_settings, stack_jobs
from discojax.population.step import StepMetrics

__all__ = ["WAITING", "Finished", "LaneMetrics", "Measure", "Progress", "Waiting", "chunk_for", "train"]

Key = TypeVar("Key", bound=Hashable)


class Waiting(enum.Enum):
    """See `WAITING`."""

    WAITING = "waiting"


WAITING: Literal[Waiting.WAITING] = Waiting.WAITING
"""What a source of jobs answers when none is ready but more will come."""


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
    """Told after every call to the device.

    Attributes:
      useful: lane-steps done in it.
      room: lane-steps it had room for: all lanes, for as many steps as the busiest took.
      ended: jobs that ended with it.
      busy: lanes that had a job.
      waited: seconds before it in which no lane had one.
    """

    useful: int
    room: int
    ended: int
    busy: int
    waited: float


Measure = Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], Sequence[Any]]
"""Measures policies: given the weights of all lanes, which of them to measure, and every lane's seed,
one result for each lane measured, in order."""


def chunk_for(budgets: Sequence[int], most: int) -> int:
    """How many steps a call should take, at most `most`, for jobs of these many steps.

    A lane that ends inside a chunk is idle for the rest of it, so a chunk that divides the budgets
    wastes nothing; but each call costs about a quarter of a step besides.

    >>> chunk_for([20, 40], most=8), chunk_for([100, 200], most=32), chunk_for([7], most=4)
    (5, 25, 4)
    """

    def cost(chunk: int) -> float:
        return sum(-(-steps // chunk) for steps in budgets) * (chunk + 0.25)

    return min(range(most, 0, -1), key=cost)


def train(
    engine: Engine,
    jobs: Iterator[tuple[Key, Job] | Waiting],
    measure: Measure,
    progress: Callable[[Progress], None] = lambda _: None,
    wait: Callable[[], None] | None = None,
) -> Iterator[Finished[Key]]:
    """Trains jobs as lanes come free, measures each at its end, and yields it.

    Args:
      engine: see `make_engine`.
      jobs: keys and jobs. It is asked for the next one whenever a lane is free, so it may decide
        late what that is. While it answers `WAITING`, free lanes stay free and the others go on; it
        is asked again after every call to the device.
      measure: called with the weights of all lanes and which of them have just finished.
      progress: told after every call to the device.
      wait: called when no lane has a job and `jobs` is `WAITING`; returns when asking again is worth
        while. Without it `jobs` may not wait then.
    """
    programs = engine.programs
    state = programs.fresh(engine.params)
    settings = idle_settings(programs.lanes)
    owners: list[Key | None] = [None] * programs.lanes
    totals = np.zeros((programs.lanes, len(StepMetrics._fields)))
    more, waited = True, 0.0
    while True:
        started = np.zeros(programs.lanes, bool)
        for lane in range(programs.lanes):
            if owners[lane] is None and more:
                following = next(jobs, None)
                if following is None:
                    more = False
                if following is None or following is WAITING:
                    break
                owners[lane], job = following
                _write(settings, lane, job)
                started[lane], totals[lane] = True, 0.0
        busy = np.array([owner is not None for owner in owners])
        if not busy.any():
            if not more:
                return
            if wait is None:
                raise RuntimeError("no lane has a job, and nothing was said of how to wait for one")
            begun = time.monotonic()
            wait()
            waited += time.monotonic() - begun
            continue
        if started.any():
            state = programs.reset(state, engine.params, started)
        state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
        taken, step, diverged = (np.asarray(x) for x in (metrics.steps, state.step, state.diverged))
        totals += np.stack([np.asarray(x, np.float64) for x in metrics], axis=1)

        ended = busy & (step >= settings.steps)
        useful, room = int(taken.sum()), int(programs.lanes * taken.max(initial=0))
        progress(Progress(useful, room, int(ended.sum()), int(busy.sum()), waited))
        waited = 0.0
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
