"""The engine: the compiled functions of a population, and what they work on.

`population.training` gives its lanes their jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.population.lanes import LaneSettings, LaneState, initial_state
from discojax.population.optimizer import make_optimizer
from discojax.population.step import StepConfig, StepMetrics, make_advance, make_reset

__all__ = ["Engine", "Programs", "make_engine", "make_programs"]


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
