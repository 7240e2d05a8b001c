"""A new objective in a lane against a step compiled for it.

    python benchmarks/swap.py

Both take the same policy, pairs and optimiser on the same device, in one process. *Swap*: from the
candidate's text to the arrays that the compiled step reads as its objective; the step that follows is
like any other, and that it compiles nothing is checked. *Recompile*: the loss is fused into a step of
its own, which has to be compiled: its first step less a later one. The last column is what the
machine costs while training: a step of each.
"""

from __future__ import annotations

import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from discojax import candidates, objectives
from discojax.data.pairs import Pairs
from discojax.objectives.types import LogProbs
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.logprobs import completion_logps
from discojax.population.engine import make_engine, make_programs
from discojax.population.lanes import Job, stack_jobs
from discojax.population.mesh import make_mesh
from discojax.population.optimizer import apply, make_optimizer
from discojax.population.step import StepConfig

NAMES = ("dpo", "ipo", "slic", "discopop", "kto_pair", "simpo", "aqfl", "aot")
POLICY = DecoderConfig(vocab_size=4096, layers=3, width=128, heads=4, max_length=32)
PROMPT, TOKENS, PAIRS = 7, 16, 64
STEP = StepConfig(batch=16, chunk=1)


def main() -> None:
    graph, params = nnx.split(Decoder(POLICY, rngs=nnx.Rngs(0)))
    data = _pairs()
    mesh = make_mesh()
    programs = make_programs(graph, params, STEP, lanes=mesh.shape["lane"], tokens=TOKENS, mesh=mesh)
    engine = make_engine(programs, params, data)
    state = programs.fresh(engine.params)
    warm = stack_jobs(
        [Job(candidates.from_function(objectives.get("exp")).code, 0.1, 0, 1e-4, 10**6)] * mesh.size
    )
    warm = jax.device_put(warm)
    for _ in range(2):  # the second finds the state where the first left it
        state, _ = jax.block_until_ready(programs.advance(state, warm, engine.frozen, engine.data))
    compiled = programs.advance._cache_size()

    table = Table("objective", "swap, ms", "recompile, ms", "ratio", "step ratio, machine / fused")
    ratios, overheads = [], []
    for name in NAMES:
        source = objectives.get(name).source
        begun = time.perf_counter()
        program = candidates.parse(source, name)
        settings = stack_jobs([Job(program.code, 0.1, 0, 1e-4, 10**6)] * mesh.size)
        settings = jax.block_until_ready(jax.device_put(settings))
        swap = time.perf_counter() - begun
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            after = programs.advance(state, settings, engine.frozen, engine.data)
            state, _ = jax.block_until_ready(after)
            times.append((time.perf_counter() - begun) / mesh.size)
        assert programs.advance._cache_size() == compiled, "the step was compiled again"
        fused_first, fused = _fused(graph, params, engine.data, objectives.get(name))
        recompile = fused_first - fused
        ratios.append(recompile / swap)
        overheads.append(float(np.median(times)) / fused)
        table.add_row(
            name, f"{1e3 * swap:.1f}", f"{1e3 * recompile:.0f}", f"{ratios[-1]:.0f}", f"{overheads[-1]:.2f}"
        )
    table.add_section()
    table.add_row("median", "", "", f"{np.median(ratios):.0f}", f"{np.median(overheads):.2f}")
    console = Console()
    console.print(table)
    device = jax.devices()[0].device_kind
    console.print(
        f"jax {jax.__version__}, Python {platform.python_version()}, {jax.device_count()} x {device}"
    )


def _pairs() -> Pairs:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, POLICY.vocab_size, (2, PAIRS, PROMPT + TOKENS)).astype(np.int32)
    full = np.full(PAIRS, TOKENS, np.int32)
    reference = rng.normal(-120, 5, (2, PAIRS)).astype(np.float32)
    return Pairs(ids[0], ids[1], np.full(PAIRS, PROMPT, np.int32), full, full, reference[0], reference[1])


def _fused(graph, params, data: Pairs, objective) -> tuple[float, float]:
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


if __name__ == "__main__":
    main()
