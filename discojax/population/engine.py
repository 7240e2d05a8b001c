"""The engine: the compiled functions of a population, and what they work on.

Policies come in two parts. What trains is held once a lane; what is frozen is held once, in the
dtype that policies compute in, and shared by all lanes: `nnx.merge(graph, params, frozen)`. Where
everything trains, frozen is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.population.lanes import LaneSettings, LaneState, initial_state
from discojax.population.memory import check_memory
from discojax.population.mesh import rows_per_device
from discojax.population.optimizer import make_optimizer
from discojax.population.placement import lane_shardings, put, shardings
from discojax.population.step import BLOCK, StepConfig, StepMetrics, cast, make_advance, make_reset

__all__ = ["Engine", "Programs", "make_engine", "make_programs"]


@dataclass(frozen=True)
class Programs:
    """The compiled functions of a population. Build once with `make_programs`, use for any data.

    Attributes:
      lanes: how many policies train side by side.
      mesh: the devices.
      config: see `StepConfig`.
      fresh, advance, reset: see `population.lanes.initial_state` and `population.step`.
      params, frozen: shapes of a policy's two parts (`jax.ShapeDtypeStruct`), and where they lie.
      prompts: the longest prompt; None is as long as a row.
      of_lanes: the same programs for another number of lanes.
    """

    lanes: int
    mesh: Mesh
    config: StepConfig
    fresh: Callable[[Any], LaneState]
    advance: Callable[[LaneState, LaneSettings, Any, Pairs], tuple[LaneState, StepMetrics]]
    reset: Callable[[LaneState, Any, Bool[Any, " lanes"]], LaneState]
    params: Any
    frozen: Any
    prompts: int | None
    of_lanes: Callable[[int], Programs]

    @property
    def batch(self) -> int:
        """Pairs a step and lane."""
        return self.config.batch


@dataclass(frozen=True)
class Engine:
    """Programs with what they work on. Build with `make_engine`.

    Attributes:
      programs: see `Programs`.
      params: the SFT weights every job starts from, those that train, on the devices.
      frozen: the other weights, on the devices.
      data: the pairs, on the devices.
    """

    programs: Programs
    params: Any
    frozen: Any
    data: Pairs


def make_programs(
    graph: nnx.GraphDef,
    params: Any,
    config: StepConfig,
    *,
    lanes: int,
    tokens: int,
    prompts: int | None = None,
    mesh: Mesh,
    frozen: Any = None,
) -> Programs:
    """Prepares the functions of a population; each compiles when it is first called.

    Args:
      graph: the policy's definition.
      params: the weights that train, no lane axis. Only their shapes matter here.
      config: see `StepConfig`.
      lanes: rounded up to a multiple of the mesh's `lane` axis.
      tokens: the longest completion.
      prompts: the longest prompt. Where it is known, a step reads the prompt that two completions share
        once, if that is less to read.
      mesh: see `population.mesh`.
      frozen: the weights that do not train; None where all do.

    Raises:
      UserError: the batch cannot be divided over the mesh.
    """
    shards = mesh.shape["lane"]
    lanes = -(-lanes // shards) * shards
    params = _shapes(params, mesh, "float32")
    frozen = _shapes(nnx.State({}) if frozen is None else frozen, mesh, config.dtype)
    optimizer = make_optimizer(config.optimizer)
    asked = config
    if config.block is None:
        vocab = nnx.merge(graph, params, frozen).config.vocab_size
        in_all = 2 * tokens * rows_per_device(mesh, config.batch, config.accumulate) // config.accumulate
        config = replace(config, block=_block(config, lanes // shards, vocab, in_all))

    def fresh(params: Any) -> LaneState:
        return initial_state(params, optimizer, lanes)

    state = lane_shardings(mesh, jax.eval_shape(fresh, params))
    weights, shared = (jax.tree.map(lambda x: x.sharding, tree) for tree in (params, frozen))
    return Programs(
        lanes=lanes,
        mesh=mesh,
        config=config,
        fresh=jax.jit(fresh, in_shardings=(weights,), out_shardings=state),
        advance=make_advance(
            graph, config, tokens=tokens, prompts=prompts, mesh=mesh, state=state, frozen=shared
        ),
        reset=make_reset(config, mesh, state, weights),
        params=params,
        frozen=frozen,
        prompts=prompts,
        of_lanes=lambda lanes: make_programs(
            graph, params, asked, lanes=lanes, tokens=tokens, prompts=prompts, mesh=mesh, frozen=frozen
        ),
    )


_LOGITS = 2**30  # bytes of them that a device holds at a time


def _block(config: StepConfig, lanes: int, vocab: int, tokens: int) -> int:
    """Tokens to a block, a power of two: lanes that take their steps at once each hold one.

    Of `tokens`, which a lane has in all on a device. Where all lanes' logits would be more than 2 GiB, a
    block is a twelfth of them or less: the step then needs an eighth of what it would with all of them at
    once, which keeps them twice, and the head's gradient besides. But each block adds to that gradient,
    which takes time, so there are not so many that less than a quarter of a GiB is held.
    """
    together = lanes if config.implementation == "vmap" else 1
    each = 4 * vocab * together
    most = _LOGITS
    if together > 1 and each * tokens > 2 * _LOGITS:
        most = min(max(each * tokens // 12, _LOGITS // 4), _LOGITS)
    fitting = most // each
    return min(BLOCK, max(1 << fitting.bit_length() - 1, 8)) if fitting else 8


def _shapes(tree: Any, mesh: Mesh, dtype: str) -> Any:
    shapes = jax.eval_shape(partial(cast, dtype=dtype), tree)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes),
    )


def make_engine(
    programs: Programs, params: Any, data: Pairs, frozen: Any = None, *, memory: int | None = None
) -> Engine:
    """Puts SFT weights and preference pairs (with reference log-probabilities) on the devices.

    Args:
      programs: see `make_programs`.
      params, frozen: the two parts of a policy's weights; None for `frozen` where all train.
      data: the pairs.
      memory: bytes there are on each device; None asks the device (or, on a CPU, the machine).

    Raises:
      UserError: the data has fewer pairs than one batch, or the lanes do not fit into memory. Both are
        found before anything is put on a device.
      ValueError: a prompt is longer than the programs were made for.
    """
    pairs = len(data.prompt_length)
    if programs.prompts is not None and pairs and data.prompt_length.max() > programs.prompts:
        raise ValueError(
            f"a prompt of {data.prompt_length.max()} tokens, in programs for prompts of {programs.prompts}"
        )
    if pairs < programs.batch:
        raise UserError(
            f"There are {pairs} preference pairs, fewer than one batch of {programs.batch}: "
            "raise task.pairs or lower population.batch."
        )
    check_memory(programs, data, memory)
    everywhere = NamedSharding(programs.mesh, jax.P())
    place = partial(jax.tree.map, lambda x, like: put(x.astype(like.dtype), like.sharding))
    frozen = nnx.State({}) if frozen is None else frozen
    return Engine(
        programs,
        place(params, programs.params),
        place(frozen, programs.frozen),
        put(data, everywhere),
    )
