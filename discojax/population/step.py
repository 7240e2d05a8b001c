"""The step of the population: every lane a few optimisation steps further, in one program.

`make_advance` builds a pure function `(state, settings, frozen, data) -> (state, metrics)`, jitted
once for its shapes and donated. Objectives enter as data (`discojax.objectives.machine`), so it is
compiled once however many objectives pass through its lanes.

Devices along `lane` have lanes of their own and say nothing to one another. Devices along `data`
take equal shares of a batch's rows; since a loss may sort its batch or use its mean, all of them
are told all log-probabilities (a few numbers), evaluate the loss of the whole batch, and add up
their shares of its gradient. Over `model` the weights are divided and gathered where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int

from discojax.data.pairs import Pairs
from discojax.objectives import machine
from discojax.objectives.types import LogProbs
from discojax.policies.logprobs import pair_logps
from discojax.population.lanes import LaneSettings, LaneState
from discojax.population.margins import MARGIN_EDGES
from discojax.population.mesh import manual_axes, rows_per_device
from discojax.population.optimizer import OptimizerConfig, apply, make_optimizer, schedule
from discojax.population.order import batch_indices
from discojax.population.placement import alike, constrain

__all__ = ["BLOCK", "StepConfig", "StepMetrics", "cast", "make_advance", "make_reset"]

BLOCK = 1024
"""Tokens whose logits are held at a time, at most."""


@dataclass(frozen=True)
class StepConfig:
    """What the compiled step fixes.

    Attributes:
      batch: pairs a step and lane, over all devices.
      chunk: most steps a lane takes in one call.
      block: tokens whose logits are held at a time (`policies.logprobs`); None is 1,024, or fewer where
        so many for all the lanes of a device were more than a GiB, or a large part of very many.
      implementation: how lanes are laid over a device: `map`, one after another, each through its
        whole chunk (a CPU's caches hold one lane), or `vmap`, all at once (an accelerator's choice).
        Where lanes share frozen weights, `vmap` makes one matrix product over all lanes of each,
        and `map` as many products as lanes, which reads those weights anew for every lane.
      optimizer: see `OptimizerConfig`.
      dtype: what policies compute in. Weights that train, their gradients and moments,
        log-probabilities and losses are float32 in either case.
      accumulate: parts in which a device goes through its rows. Only one part's activations are
        held at a time, and each part's are computed twice. The loss still sees the whole batch.
    """

    batch: int = 16
    chunk: int = 8
    block: int | None = None
    implementation: Literal["map", "vmap"] = "map"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1


class StepMetrics(NamedTuple):
    """Sums over the steps a lane took in a call; divide by `steps`.

    `loss` and `margin` (beta times the log-ratio margin) are batch means; `accuracy` is the
    fraction of pairs with a margin above zero, ties counting as wrong; `grad_norm` is before
    clipping; `reached` is the fraction of pairs whose log-ratio margin is at least each of
    `MARGIN_EDGES`, so that its differences are a histogram of the margins met.
    """

    steps: Int[Array, " lanes"]
    loss: Float[Array, " lanes"]
    margin: Float[Array, " lanes"]
    accuracy: Float[Array, " lanes"]
    grad_norm: Float[Array, " lanes"]
    reached: Float[Array, "lanes edges"]

    @classmethod
    def nothing(cls) -> StepMetrics:
        """Of one lane (no lane axis) that has taken no step."""
        return cls(jnp.int32(0), *(jnp.float32(0),) * 4, jnp.zeros(len(MARGIN_EDGES), jnp.float32))


def cast(tree: Any, dtype: str) -> Any:
    """The tree with its floating-point leaves in `dtype`."""

    def one(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def _make_logps(graph: nnx.GraphDef, config: StepConfig, tokens: int, prompts: int | None):
    """Builds `(params, frozen, pairs) -> [2, pairs]`: log-probabilities of both sides, float32."""

    def logps(params: Any, frozen: Any, pairs: Any) -> Float[Array, "2 pairs"]:
        # Cast here and not once before the parts: the gradient is then added up over them in float32.
        policy = nnx.merge(graph, cast(params, config.dtype), cast(frozen, config.dtype))
        return pair_logps(policy, *pairs[:5], tokens=tokens, prompts=prompts, block=config.block or BLOCK)

    def in_parts(params: Any, frozen: Any, pairs: Any) -> Float[Array, "2 pairs"]:
        parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), pairs)
        part = jax.checkpoint(lambda some: logps(params, frozen, some), prevent_cse=False)
        return jax.lax.map(part, parts).swapaxes(0, 1).reshape(2, -1)

    return logps if config.accumulate == 1 else in_parts


def _make_lane_step(graph: nnx.GraphDef, config: StepConfig, tokens: int, prompts: int | None, mesh: Mesh):
    optimizer = make_optimizer(config.optimizer)
    policy_logps = _make_logps(graph, config, tokens, prompts)
    devices = mesh.shape["data"]
    rows = rows_per_device(mesh, config.batch, config.accumulate)

    def share(x: Array, axis: int = 0) -> Array:
        """This device's part of a batch."""
        if devices == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("data") * rows, rows, axis)

    def everyone(own: Float[Array, "2 rows"]) -> Float[Array, "2 batch"]:
        """The log-probabilities of all devices."""
        return own if devices == 1 else jax.lax.all_gather(own, "data", axis=1, tiled=True)

    @partial(alike, mesh=mesh)
    def draw(settings: LaneSettings, step: Array, data: Any):
        """This device's rows of the step's batch, and what else a loss sees, of the whole batch."""
        pairs = data.chosen_ids.shape[0]
        index = batch_indices(settings.seed, step, pairs=pairs, batch=config.batch)
        own = jax.tree.map(lambda x: x[share(index)], data)
        known = (data.reference_chosen, data.reference_rejected, data.chosen_length, data.rejected_length)
        return own, jax.tree.map(lambda x: x[index], known)

    @partial(alike, mesh=mesh)
    def judge(policy: Float[Array, "2 batch"], known: Any, settings: LaneSettings, progress: Array):
        """The loss of the whole batch, its gradient in the log-probabilities, and metrics."""

        def mean_loss(policy):
            logps = LogProbs(*policy, *known)
            return machine.evaluate(settings.code, logps, settings.beta, progress).mean(), logps

        (loss, logps), cotangents = jax.value_and_grad(mean_loss, has_aux=True)(policy)
        margin = (logps.policy_chosen - logps.reference_chosen) - (
            logps.policy_rejected - logps.reference_rejected
        )
        reached = (margin >= jnp.asarray(MARGIN_EDGES)[:, None]).mean(1)
        return loss, cotangents, settings.beta * margin.mean(), (margin > 0).mean(), reached

    def lane_step(state: LaneState, settings: LaneSettings, frozen: Any, data: Any):
        """One step of one lane (no lane axis)."""
        progress = state.step / jnp.maximum(settings.steps, 1)
        own, known = draw(settings, state.step, data)
        logps, pull = jax.vjp(lambda params: policy_logps(params, frozen, own), state.params)
        loss, cotangents, margin, accuracy, reached = judge(everyone(logps), known, settings, progress)
        (gradient,) = pull(share(cotangents, axis=1))
        if devices > 1:
            gradient = jax.lax.psum(gradient, "data")
        gradient = constrain(gradient, mesh)
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
        state = LaneState(constrain(params, mesh), moments, step, state.diverged | ~good)

        metrics = StepMetrics(jnp.int32(1), loss, margin, accuracy, norm, reached)
        return state, jax.tree.map(lambda x: jnp.where(good, x, 0).astype(x.dtype), metrics)

    return lane_step


def _stop_overflown(state: LaneState, settings: LaneSettings) -> LaneState:
    """Marks a lane whose weights are no longer finite, which no loss has seen yet (no lane axis)."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]
    lost = ~jnp.stack(finite).all()
    step = jnp.where(lost, jnp.maximum(settings.steps, state.step), state.step)
    return state._replace(step=step, diverged=state.diverged | lost)


def make_advance(
    graph: nnx.GraphDef,
    config: StepConfig,
    *,
    tokens: int,
    prompts: int | None = None,
    mesh: Mesh,
    state: LaneState,
    frozen: Any,
) -> Callable[[LaneState, LaneSettings, Any, Pairs], tuple[LaneState, StepMetrics]]:
    """Builds the jitted step: up to `config.chunk` steps for every lane that is not idle.

    Args:
      graph: the policy's definition; `nnx.merge(graph, params, frozen)` is the policy.
      config: what is fixed at compilation.
      tokens: the longest completion, in tokens.
      prompts: the longest prompt; see `policies.logprobs.pair_logps`.
      mesh: devices, with axes `lane`, `data` and `model`; see `population.mesh`.
      state, frozen: trees of `NamedSharding`: where a state and the frozen weights lie
        (`population.placement`).

    Returns:
      `advance(state, settings, frozen, data) -> (state, metrics)`; `state` is donated.

    Raises:
      UserError: the batch cannot be divided over `data` and into `config.accumulate` parts.
    """
    lane_step = _make_lane_step(graph, config, tokens, prompts, mesh)

    def mapped(state: LaneState, settings: LaneSettings, frozen: Any, data: Pairs):
        def lane(arguments):
            state, settings = arguments

            def body(_, carry):
                state, sums = carry
                state, metrics = lane_step(state, settings, frozen, data)
                return state, jax.tree.map(jnp.add, sums, metrics)

            count = jnp.clip(settings.steps - state.step, 0, config.chunk)
            state, sums = jax.lax.fori_loop(0, count, _while_good(body), (state, StepMetrics.nothing()))
            return _stop_overflown(state, settings), sums

        return jax.lax.map(lane, (state, settings))

    def vmapped(state: LaneState, settings: LaneSettings, frozen: Any, data: Pairs):
        def guarded(state, settings):
            moved, metrics = lane_step(state, settings, frozen, data)
            active = state.step < settings.steps
            state = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state)
            return state, jax.tree.map(lambda x: jnp.where(active, x, 0).astype(x.dtype), metrics)

        def body(carry, _):
            state, sums = carry
            state, metrics = jax.vmap(guarded)(state, settings)
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        lanes = state.step.shape[0]
        sums = jax.tree.map(lambda x: jnp.zeros((lanes, *x.shape), x.dtype), StepMetrics.nothing())
        (state, sums), _ = jax.lax.scan(body, (state, sums), length=config.chunk)
        return jax.vmap(_stop_overflown)(state, settings), sums

    lane_axis, everywhere = jax.P("lane"), jax.P()
    # Each device works through its own lanes. Under plain jit `map` would gather them, and a loop under
    # `vmap` (an objective's instructions) would ask all devices whether it is done, at every turn.
    body = jax.shard_map(
        mapped if config.implementation == "map" else vmapped,
        mesh=mesh,
        in_specs=(lane_axis, lane_axis, everywhere, everywhere),
        out_specs=lane_axis,
        axis_names=manual_axes(mesh),
        check_vma=False,
    )
    lanes = NamedSharding(mesh, lane_axis)
    return jax.jit(
        body,
        in_shardings=(state, lanes, frozen, NamedSharding(mesh, everywhere)),
        out_shardings=(state, lanes),
        donate_argnums=0,
    )


def _while_good(body):
    """Skips what is left of a chunk once a lane has diverged."""

    def guarded(i, carry):
        return jax.lax.cond(carry[0].diverged, lambda c: c, lambda c: body(i, c), carry)

    return guarded


def make_reset(
    config: StepConfig, mesh: Mesh, state: LaneState, params: Any
) -> Callable[[LaneState, Any, Bool[Any, " lanes"]], LaneState]:
    """Builds `reset(state, sft_params, lanes) -> state`: lanes where the mask is true start afresh.

    `state` and `params` are trees of `NamedSharding`, as in `make_advance`; the weights have no lane axis.
    """
    optimizer = make_optimizer(config.optimizer)
    lanes = NamedSharding(mesh, jax.P("lane"))

    def reset(state: LaneState, params: Any, fresh: Array) -> LaneState:
        def choose(old, new):
            return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        start = (params, optimizer.init(params))
        params, moments = jax.tree.map(choose, (state.params, state.moments), start)
        return LaneState(params, moments, jnp.where(fresh, 0, state.step), state.diverged & ~fresh)

    return jax.jit(reset, in_shardings=(state, params, lanes), out_shardings=state, donate_argnums=0)
