"""The step of the population: every lane a few optimisation steps further, in one program.

`make_advance` builds a pure function `(state, settings, data) -> (state, metrics)`, jitted once
for its shapes and donated. Objectives enter as data (`discojax.objectives.machine`), so it is
compiled once however many objectives pass through its lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from discojax.data.pairs import Pairs
from discojax.objectives import machine
from discojax.objectives.types import LogProbs
from discojax.policies.decoder import Decoder
from discojax.policies.logprobs import completion_logps
from discojax.population.lanes import LaneSettings, LaneState
from discojax.population.optimizer import OptimizerConfig, apply, make_optimizer, schedule
from discojax.population.order import batch_indices

__all__ = ["StepConfig", "StepMetrics", "make_advance", "make_reset"]


@dataclass(frozen=True)
class StepConfig:
    """What the compiled step fixes.

    Attributes:
      batch: pairs a step and lane.
      chunk: most steps a lane takes in one call.
      block: tokens whose logits are held at a time (`policies.logprobs`).
      implementation: how lanes are laid over a device: `map`, one after another, each through its
        whole chunk (a CPU's caches hold one lane), or `vmap`, all at once (an accelerator's choice).
      optimizer: see `OptimizerConfig`.
    """

    batch: int = 16
    chunk: int = 8
    block: int = 1024
    implementation: Literal["map", "vmap"] = "map"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class StepMetrics(NamedTuple):
    """Sums over the steps a lane took in a call; divide by `steps`.

    `loss` and `margin` (beta times the log-ratio margin) are batch means; `accuracy` is the
    fraction of pairs with a margin above zero, ties counting as wrong; `grad_norm` is before
    clipping.
    """

    steps: Int[Array, " lanes"]
    loss: Float[Array, " lanes"]
    margin: Float[Array, " lanes"]
    accuracy: Float[Array, " lanes"]
    grad_norm: Float[Array, " lanes"]


def _batch_logprobs(policy: Decoder, batch: Any, tokens: int, block: int) -> LogProbs:
    """Log-probabilities of a batch of `Pairs` as they are inside the compiled step: JAX arrays."""
    ids = jnp.concatenate([batch.chosen_ids, batch.rejected_ids])
    prompts = jnp.concatenate([batch.prompt_length, batch.prompt_length])
    lengths = jnp.concatenate([batch.chosen_length, batch.rejected_length])
    logps = completion_logps(policy, ids, prompts, lengths, tokens=tokens, block=block)
    chosen, rejected = jnp.split(logps, 2)
    return LogProbs(
        chosen,
        rejected,
        batch.reference_chosen,
        batch.reference_rejected,
        batch.chosen_length,
        batch.rejected_length,
    )


def _make_lane_step(graph: nnx.GraphDef, config: StepConfig, tokens: int):
    optimizer = make_optimizer(config.optimizer)

    def lane_step(state: LaneState, settings: LaneSettings, data: Pairs):
        """One step of one lane (no lane axis)."""
        pairs = data.chosen_ids.shape[0]
        index = batch_indices(settings.seed, state.step, pairs=pairs, batch=config.batch)
        batch = jax.tree.map(lambda x: x[index], data)
        progress = state.step / jnp.maximum(settings.steps, 1)

        def mean_loss(params):
            logps = _batch_logprobs(nnx.merge(graph, params), batch, tokens, config.block)
            losses = machine.evaluate(settings.code, logps, settings.beta, progress)
            return losses.mean(), logps

        (loss, logps), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        norm = optax.tree.norm(gradient)
        updates, moments = optimizer.update(gradient, state.moments, state.params)
        rate = settings.learning_rate * schedule(config.optimizer, state.step, settings.steps)
        params = apply(config.optimizer, state.params, updates, rate)

        # A bad step is not taken: the lane keeps its last good weights, marked, and goes idle.
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (params, moments), (state.params, state.moments)
        )
        step = jnp.where(good, state.step + 1, jnp.maximum(settings.steps, state.step))
        state = LaneState(params, moments, step, state.diverged | ~good)

        margin = (logps.policy_chosen - logps.reference_chosen) - (
            logps.policy_rejected - logps.reference_rejected
        )
        metrics = StepMetrics(jnp.int32(1), loss, settings.beta * margin.mean(), (margin > 0).mean(), norm)
        return state, jax.tree.map(lambda x: jnp.where(good, x, 0).astype(x.dtype), metrics)

    return lane_step


def make_advance(
    graph: nnx.GraphDef, config: StepConfig, *, tokens: int, mesh: jax.sharding.Mesh
) -> Callable[[LaneState, LaneSettings, Pairs], tuple[LaneState, StepMetrics]]:
    """Builds the jitted step: up to `config.chunk` steps for every lane that is not idle.

    Args:
      graph: the policy's definition (`nnx.split`).
      config: what is fixed at compilation.
      tokens: the longest completion, in tokens.
      mesh: devices, with an axis `lane`, over which lanes are spread; see `population.mesh`.

    Returns:
      `advance(state, settings, data) -> (state, metrics)`; `state` is donated.
    """
    lane_step = _make_lane_step(graph, config, tokens)

    def nothing() -> StepMetrics:
        return StepMetrics(jnp.int32(0), *(jnp.float32(0) for _ in StepMetrics._fields[1:]))

    def mapped(state: LaneState, settings: LaneSettings, data: Pairs):
        def lane(arguments):
            state, settings = arguments

            def body(_, carry):
                state, sums = carry
                state, metrics = lane_step(state, settings, data)
                return state, jax.tree.map(jnp.add, sums, metrics)

            count = jnp.clip(settings.steps - state.step, 0, config.chunk)
            return jax.lax.fori_loop(0, count, _while_good(body), (state, nothing()))

        return jax.lax.map(lane, (state, settings))

    def vmapped(state: LaneState, settings: LaneSettings, data: Pairs):
        def guarded(state, settings):
            moved, metrics = lane_step(state, settings, data)
            active = state.step < settings.steps
            state = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state)
            return state, jax.tree.map(lambda x: jnp.where(active, x, 0).astype(x.dtype), metrics)

        def body(carry, _):
            state, sums = carry
            state, metrics = jax.vmap(guarded)(state, settings)
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        lanes = state.step.shape[0]
        sums = jax.tree.map(lambda x: jnp.zeros(lanes, x.dtype), nothing())
        return jax.lax.scan(body, (state, sums), length=config.chunk)[0]

    lane_axis, everywhere = jax.P("lane"), jax.P()
    # Each device works through its own lanes. Under plain jit `map` would gather them, and a loop under
    # `vmap` (an objective's instructions) would ask all devices whether it is done, at every turn.
    body = jax.shard_map(
        mapped if config.implementation == "map" else vmapped,
        mesh=mesh,
        in_specs=(lane_axis, lane_axis, everywhere),
        out_specs=lane_axis,
        check_vma=False,
    )
    lanes = jax.NamedSharding(mesh, lane_axis)
    return jax.jit(
        body,
        in_shardings=(lanes, lanes, jax.NamedSharding(mesh, everywhere)),
        out_shardings=lanes,
        donate_argnums=0,
    )


def _while_good(body):
    """Skips what is left of a chunk once a lane has diverged."""

    def guarded(i, carry):
        return jax.lax.cond(carry[0].diverged, lambda c: c, lambda c: body(i, c), carry)

    return guarded


def make_reset(config: StepConfig, mesh: jax.sharding.Mesh):
    """Builds `reset(state, sft_params, lanes) -> state`: lanes where the mask is true start afresh."""
    optimizer = make_optimizer(config.optimizer)
    lanes = jax.NamedSharding(mesh, jax.P("lane"))
    everywhere = jax.NamedSharding(mesh, jax.P())

    def reset(state: LaneState, params: Any, fresh: Array) -> LaneState:
        def choose(old, new):
            return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        start = (params, optimizer.init(params))
        params, moments = jax.tree.map(choose, (state.params, state.moments), start)
        return LaneState(params, moments, jnp.where(fresh, 0, state.step), state.diverged & ~fresh)

    return jax.jit(reset, in_shardings=(lanes, everywhere, lanes), out_shardings=lanes, donate_argnums=0)
