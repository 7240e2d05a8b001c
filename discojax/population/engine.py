"""The engine: jobs in, trained lanes out, with every lane kept busy.

Lanes work as slots do in continuous batching for inference. A lane that finishes (or diverges) is
measured, freed and given the next job while the others go on; nothing is compiled again and no
lane waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.population.lanes import Job, LaneSettings, LaneState, idle_settings, initial_state, stack_jobs
from discojax.population.optimizer import make_optimizer
from discojax.population.step import StepConfig, StepMetrics, make_advance, make_reset

__all__ = [
    "Engine",
    "Finished",
    "LaneMetrics",
    "Programs",
    "Progress",
    "make_engine",
    "make_programs",
    "train",
]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Programs:
    """The compiled functions of a population. Build once with `make_programs`, use for any data.

    Attributes:
      lanes: how many policies train side by side.
      mesh: the devices.
      fresh, advance, reset: see `population.lanes.initial_state` and `population.step`.
      batch: pairs a step and lane.
    """

    lanes: int
    mesh: jax.sharding.Mesh
    fresh: Callable[[Any], LaneState]
    advance: Callable[[LaneState, LaneSettings, Pairs], tuple[LaneState, StepMetrics]]
    reset: Callable[[LaneState, Any, Any], LaneState]
    batch: int


@dataclass(frozen=True)
class Engine:
    """Programs with what they work on. Build with `make_engine`.

    Attributes:
      programs: see `Programs`.
      params: the SFT weights every job starts from, on the devices.
      data: the pairs, on the devices.
    """

    programs: Programs
    params: Any
    data: Pairs


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


def make_programs(
    graph: nnx.GraphDef, config: StepConfig, *, lanes: int, tokens: int, mesh: jax.sharding.Mesh
) -> Programs:
    """Prepares the functions of a population; each compiles when it is first called.

    Args:
      graph: the policy's definition.
      config: see `StepConfig`.
      lanes: rounded up to a multiple of the mesh's `lane` axis.
      tokens: the longest completion.
      mesh: see `population.mesh`.
    """
    shards = mesh.shape["lane"]
    lanes = -(-lanes // shards) * shards
    optimizer = make_optimizer(config.optimizer)
    return Programs(
        lanes=lanes,
        mesh=mesh,
        fresh=jax.jit(
            lambda params: initial_state(params, optimizer, lanes),
            out_shardings=jax.NamedSharding(mesh, jax.P("lane")),
        ),
        advance=make_advance(graph, config, tokens=tokens, mesh=mesh),
        reset=make_reset(config, mesh),
        batch=config.batch,
    )


def make_engine(programs: Programs, params: Any, data: Pairs) -> Engine:
    """Puts SFT weights and preference pairs (with reference log-probabilities) on the devices.

    Raises:
      UserError: the data has fewer pairs than one batch.
    """
    pairs = len(data.prompt_length)
    if pairs < programs.batch:
        raise UserError(
            f"There are {pairs} preference pairs, fewer than one batch of {programs.batch}: "
            "raise task.pairs or lower population.batch."
        )
    everywhere = jax.NamedSharding(programs.mesh, jax.P())
    return Engine(programs, jax.device_put(params, everywhere), jax.device_put(data, everywhere))


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
