"""A new objective in a lane against a step compiled for it.

Both take the same policy, pairs and optimiser on the same device, in one process. *Swap*: from the
candidate's text to the arrays that the compiled step reads as its objective; the step that follows is
like any other, and that it compiles nothing is checked. *Recompile*: the loss is fused into a step of
its own, which has to be compiled: its first step less a later one. The last line is what the machine
costs while training: a step of each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import Row, policy, synthetic_pairs
from discojax import candidates, objectives
from discojax.data.pairs import Pairs
from discojax.objectives.types import LogProbs
from discojax.policies.decoder import DecoderConfig
from discojax.policies.logprobs import completion_logps
from discojax.population.engine import Engine, make_engine, make_programs
from discojax.population.lanes import Job, stack_jobs
from discojax.population.mesh import make_mesh
from discojax.population.operations import Station
from discojax.population.optimizer import apply, make_optimizer
from discojax.population.step import StepConfig
from discojax.population.training import WAITING, train

__all__ = ["rows"]

NAMES = ("dpo", "ipo", "slic", "discopop", "kto_pair", "simpo", "aqfl", "aot")
POLICY = DecoderConfig(vocab_size=4096, layers=3, width=128, heads=4, max_length=32)
PROMPT, TOKENS, PAIRS = 7, 16, 64
STEP = StepConfig(batch=16, chunk=1)


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on swapping."""
    graph, params = policy(POLICY)
    data = synthetic_pairs(POLICY, pairs=PAIRS, prompt=PROMPT, tokens=TOKENS)
    mesh = make_mesh()
    programs = make_programs(graph, params, STEP, lanes=mesh.shape["lane"], tokens=TOKENS, mesh=mesh)
    engine = make_engine(programs, params, data)
    state = programs.fresh(engine.params)

    def settings_of(program: candidates.Program):
        jobs = [Job(program.code, 0.1, 0, 1e-4, 10**6)] * programs.lanes
        return jax.block_until_ready(jax.device_put(stack_jobs(jobs)))

    warm = settings_of(candidates.from_function(objectives.get("exp")))
    for _ in range(2):  # the second finds the state where the first left it
        state, _ = jax.block_until_ready(programs.advance(state, warm, engine.frozen, engine.data))
    compiled = programs.advance._cache_size()

    swaps, recompiles, overheads = [], [], []
    for name in NAMES[:3] if quick else NAMES:
        source = objectives.get(name).source
        begun = time.perf_counter()
        settings = settings_of(candidates.parse(source, name))
        swaps.append(time.perf_counter() - begun)
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(programs.advance(state, settings, engine.frozen, engine.data))
            times.append((time.perf_counter() - begun) / mesh.size)
        assert programs.advance._cache_size() == compiled, "the step was compiled again"
        first, fused = _fused(graph, params, data, objectives.get(name))
        recompiles.append(first - fused)
        overheads.append(fused / float(np.median(times)))
    return [
        Row("a new objective in a lane against compiling a step for it",
            f"{1e3 * np.median(swaps):.1f}", f"{1e3 * np.median(recompiles):,.0f}",
            float(np.median(np.divide(recompiles, swaps))), "ms, from text to lane"),
        Row("from being accepted to the end of a first step, by the loop that gives lanes their jobs",
            f"{1e3 * _accepted(engine, NAMES[:3] if quick else NAMES):.1f}", "", None, "ms"),
        Row("a step that reads its objective against one compiled for it", "", "",
            float(np.median(overheads)), "throughput"),
    ]  # fmt: skip


def _accepted(engine: Engine, names: Sequence[str]) -> float:
    """Median seconds from a text that the gate let in to its first step's return, while other lanes wait.

    Each text comes after the loop was told that none was ready, and its job has one step.
    """
    left = [(name, objectives.get(name).source) for name in names]
    accepted, took = [0.0], []
    state = {"ready": False}

    def jobs():
        while left:
            if not state["ready"]:
                yield WAITING
                continue
            name, source = left.pop()
            state["ready"] = False
            yield name, Job(candidates.parse(source, name).code, 0.1, 0, 1e-4, 1)

    def arrive() -> None:
        state["ready"] = True
        accepted[0] = time.perf_counter()

    station = Station(engine, judge=lambda _, chosen: [None] * int(chosen.sum()))
    for _ in train(station, jobs(), lambda _: took.append(time.perf_counter() - accepted[0]), arrive):
        pass
    return float(np.median(took[1:]))  # the first finds the state where `fresh` left it


def _fused(graph: nnx.GraphDef, params, data: Pairs, objective) -> tuple[float, float]:
    """Seconds of the first step of a program compiled for one loss, and of a later one."""
    optimizer = make_optimizer(STEP.optimizer)
    batch = jax.tree.map(lambda x: jnp.asarray(x[: STEP.batch]), data)

    def mean_loss(params):
        ids = jnp.concatenate([batch.chosen_ids, batch.rejected_ids])
        prompts = jnp.concatenate([batch.prompt_length] * 2)
        lengths = jnp.concatenate([batch.chosen_length, batch.rejected_length])
        logps = completion_logps(nnx.merge(graph, params), ids, prompts, lengths, tokens=TOKENS)
        chosen, rejected = jnp.split(logps, 2)
        given = LogProbs(
            chosen, rejected, batch.reference_chosen, batch.reference_rejected,
            batch.chosen_length, batch.rejected_length,
        )  # fmt: skip
        return objective(given, 0.1).mean()

    @jax.jit
    def step(params, moments):
        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return apply(STEP.optimizer, params, updates, jnp.float32(1e-4)), moments, loss

    carry: tuple = (params, optimizer.init(params))
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        *carry, _ = jax.block_until_ready(step(*carry))
        times.append(time.perf_counter() - begun)
    return times[0], float(np.median(times[1:]))
