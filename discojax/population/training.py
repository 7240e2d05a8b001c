"""Training: jobs in, trained lanes out, with every lane kept busy.

Lanes work as slots do in continuous batching for inference. A lane that finishes (or diverges) is
measured, freed and given the next job while the others go on; nothing is compiled again and no
lane waits for another. Where the next job is not known yet, the lane stays free and the others go on.
Decisions are made here; device work is asked for as `population.operations`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from discojax.population import operations
from discojax.population.checkpoint import Held
from discojax.population.lanes import Job, LaneSettings, idle_settings, stack_jobs
from discojax.population.margins import MARGIN_EDGES
from discojax.population.operations import Station, perform
from discojax.population.seating import Seating
from discojax.population.step import StepMetrics
from discojax.population.stopping import Deferral, deferred

__all__ = ["WAITING", "Finished", "LaneMetrics", "Progress", "Waiting", "chunk_for", "train"]

Key = TypeVar("Key", bound=Hashable)

_WIDTH = len(StepMetrics._fields) - 1 + len(MARGIN_EDGES)


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
    reached: tuple[float, ...]


class Finished(NamedTuple, Generic[Key]):
    """A job that ended.

    Attributes:
      key: the job's, as it was submitted.
      diverged: whether a loss or gradient was not finite; there is then no measurement.
      metrics: of its training.
      measurement: what the station's `judge` returned for this lane.
    """

    key: Key
    diverged: bool
    metrics: LaneMetrics
    measurement: Any


class Progress(NamedTuple):
    """Told after every call to the device.

    Attributes:
      useful: lane-steps done in it.
      room: lane-steps it had room for: all lanes, for as many steps as the call went through. These are a
        whole chunk under `vmap`, whoever takes them, and as many as the busiest lane took under `map`.
      ended: jobs that ended with it.
      busy: lanes that had a job.
      waited: seconds before it in which no lane had one.
    """

    useful: int
    room: int
    ended: int
    busy: int
    waited: float


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
    station: Station,
    jobs: Iterator[tuple[Key, Job] | Waiting],
    progress: Callable[[Progress], None] = lambda _: None,
    wait: Callable[[], None] | None = None,
    name: Callable[[Key], str] = str,
) -> Iterator[Finished[Key]]:
    """Trains jobs as lanes come free, measures each at its end, and yields it.

    Where the station keeps checkpoints, a job that a stopped run was in goes on from the step it had
    come to. Ctrl-C and SIGTERM then end the call to the device that is under way, and keep the lanes.

    Args:
      station: where they train, and what measures them.
      jobs: keys and jobs. It is asked for the next one whenever a lane is free, so it may decide
        late what that is. While it answers `WAITING`, free lanes stay free and the others go on; it
        is asked again after every call to the device.
      progress: told after every call to the device.
      wait: called when no lane has a job and `jobs` is `WAITING`; returns when asking again is worth
        while. Without it `jobs` may not wait then.
      name: of a key in checkpoints; no two keys have the same.

    Raises:
      population.stopping.Stopped: somebody asked for it.
    """
    with deferred() as deferral:
        yield from _train(station, jobs, progress, wait, name, deferral)


def _train(
    station: Station,
    jobs: Iterator[tuple[Key, Job] | Waiting],
    progress: Callable[[Progress], None],
    wait: Callable[[], None] | None,
    name: Callable[[Key], str],
    deferral: Deferral,
) -> Iterator[Finished[Key]]:
    lanes = station.engine.programs.lanes
    checkpoints, held = station.checkpoints, None
    if checkpoints is None or not checkpoints.left():
        state, _ = perform(station, None, operations.Begin())
    else:
        state, held = perform(station, None, operations.Restore())
    seating = Seating(lambda: next(jobs, None), name, held)
    settings = idle_settings(lanes)
    owners: list[Key | None] = [None] * lanes
    totals = np.zeros((lanes, _WIDTH))
    step = np.zeros(lanes, np.int32)
    waited = 0.0

    def keep(last: bool) -> None:
        known = Held(tuple("" if o is None else name(o) for o in owners), settings, step, totals)
        perform(station, state, operations.Save(known, last))

    def stop_if_asked() -> None:
        if (stop := deferral.asked()) is not None:
            if checkpoints is not None and any(owner is not None for owner in owners):
                keep(last=True)
            raise stop

    while True:
        stop_if_asked()
        started = np.zeros(lanes, bool)
        free = [lane for lane in range(lanes) if owners[lane] is None]
        for seat in seating.give(free, idle=len(free) == lanes):
            owners[seat.lane] = seat.key
            _write(settings, seat.lane, seat.job)
            started[seat.lane] = not seat.resumed
            totals[seat.lane] = held.totals[seat.lane] if held and seat.resumed else 0.0
        busy = np.array([owner is not None for owner in owners])
        if not busy.any():
            if not seating.more:
                return
            if wait is None:
                raise RuntimeError("no lane has a job, and nothing was said of how to wait for one")
            begun = time.monotonic()
            with deferral.lifted():
                wait()
            waited += time.monotonic() - begun
            continue
        if started.any():
            state, _ = perform(station, state, operations.Reset(started))
        state, (sums, step, diverged) = perform(station, state, operations.Advance(settings))
        totals += sums.T

        ended = busy & (step >= settings.steps)
        taken = sums[StepMetrics._fields.index("steps")]
        config = station.engine.programs.config
        long = config.chunk if config.implementation == "vmap" else int(taken.max(initial=0))
        useful, room = int(taken.sum()), lanes * long
        progress(Progress(useful, room, int(ended.sum()), int(busy.sum()), waited))
        waited = 0.0
        stop_if_asked()
        if checkpoints is not None and (busy & ~ended).any() and checkpoints.due():
            keep(last=False)
        if not ended.any():
            continue
        chosen = ended & ~diverged
        measured: Iterator[Any] = iter(())
        if chosen.any():
            state, observed = perform(station, state, operations.Observe(chosen, settings.seed))
            measured = iter(station.judge(observed, chosen))
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
        nothing = float("nan")
        return LaneMetrics(0, nothing, nothing, nothing, nothing, ())
    loss, margin, accuracy, norm, *reached = (totals[1:] / steps).tolist()
    return LaneMetrics(steps, loss, margin, accuracy, norm, tuple(reached))
