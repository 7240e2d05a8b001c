"""Training steps: a population against TRL, against plain PyTorch, and against one policy after another.

The same model (GPT-2's architecture, tiny), data, batch, optimiser and clipping; reference
log-probabilities precomputed everywhere. A figure is seconds a step of one policy ("lane-step"), and
a ratio the median over rounds of what the peer took over what we took in the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import TINY_GPT2, Row, peer_shape, policy, synthetic_pairs, timed, turns
from benchmarks.peers import Peer
from discojax import candidates, objectives
from discojax.population.backend import choose_implementation
from discojax.population.engine import make_engine, make_programs
from discojax.population.lanes import Job, stack_jobs
from discojax.population.mesh import make_mesh
from discojax.population.optimizer import OptimizerConfig
from discojax.population.step import StepConfig

__all__ = ["lane_steps", "population", "rows"]

PAIRS, PROMPT, TOKENS, BATCHES = 8, 16, 48, 8
LONG = 160
PEERS = {
    "trl": "TRL's DPOTrainer",
    "trl, as it comes": "TRL's DPOTrainer, its default of checkpointed gradients left on",
    "plain": "PyTorch, eager",
}
LOSSES = ("dpo", "ipo", "slic", "discopop", "exp", "kto_pair", "simpo", "aqfl")


def population(
    lanes: int, *, implementation: str | None = None, dtype: str = "float32", chunk: int = 4,
    config=TINY_GPT2, pairs: int = PAIRS, prompt: int = PROMPT, tokens: int = TOKENS,
) -> tuple[Callable[[], Any], int]:  # fmt: skip
    """A population of so many lanes with different losses, running; a call takes `chunk` steps of each."""
    graph, params = policy(config)
    step = StepConfig(
        batch=pairs, chunk=chunk, dtype=dtype, optimizer=OptimizerConfig(warmup=0.0, decay="constant"),
        implementation=implementation or choose_implementation("auto"),
    )  # fmt: skip
    data = synthetic_pairs(config, pairs=BATCHES * pairs, prompt=prompt, tokens=tokens)
    programs = make_programs(
        graph, params, step, lanes=lanes, tokens=tokens, prompts=prompt, mesh=make_mesh()
    )
    engine = make_engine(programs, params, data)
    codes = [candidates.from_function(objectives.get(name)).code for name in LOSSES]
    jobs = [Job(codes[i % len(codes)], 0.1, i, 1e-4, 10**6) for i in range(programs.lanes)]
    settings = jax.device_put(stack_jobs(jobs))
    state = programs.fresh(engine.params)

    def call() -> Any:
        nonlocal state
        state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
        return metrics

    for _ in range(2):  # the second call finds the state where the first left it
        jax.block_until_ready(call())
    return call, programs.lanes * chunk


def lane_steps(
    peer: Peer | None, *, rounds: int, lanes: tuple[int, ...], prompt: int = PROMPT
) -> dict[str, list[float]]:
    """Seconds a lane-step of every subject, by round."""
    config = replace(TINY_GPT2, max_length=prompt + TOKENS)
    subjects: dict[str, Callable[[], float]] = {}
    for count in lanes:
        call, work = population(count, config=config, prompt=prompt)

        def ours(call=call, work=work) -> float:
            return timed(call) / work

        subjects[f"{count} lanes"] = ours
    if peer is not None:
        pairs = synthetic_pairs(config, pairs=BATCHES * PAIRS, prompt=prompt, tokens=TOKENS)

        def batches(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
            parts = (x.reshape(BATCHES, PAIRS, *x.shape[1:]) for x in (chosen, rejected))
            return np.concatenate(list(parts), axis=1)

        ids = batches(pairs.chosen_ids, pairs.rejected_ids)
        reference = batches(pairs.reference_chosen, pairs.reference_rejected)
        for name in PEERS:
            peer.build(name, peer_shape(config), ids=ids, reference=reference, prompt=prompt)
            peer.run(name, 3)
            subjects[name] = lambda name=name: peer.run(name, 4)[0] / 4
    return {name: list(times) for name, times in turns(subjects, rounds).items()}


def rows(peer: Peer | None, *, quick: bool = False) -> list[Row]:
    """The table's lines on training steps."""
    rounds = 3 if quick else 7
    lanes = (1, 4, 16) if quick else (1, 4, 16, 64)
    result = _rows("step", lane_steps(peer, rounds=rounds, lanes=lanes), lanes)
    if peer is not None:
        times = lane_steps(peer, rounds=rounds, lanes=(4,), prompt=LONG)
        result += _rows(f"step with prompts of {LONG} tokens", times, (4,))
    return result


def _rows(what: str, times: dict[str, list[float]], lanes: tuple[int, ...]) -> list[Row]:
    result = []
    for name, title in (PEERS | {"1 lanes": "one JAX policy at a time"}).items():
        for count in lanes if name in times else ():
            if name == "1 lanes" and count == 1:
                continue
            ours = times[f"{count} lanes"]
            ratio = float(np.median(np.divide(times[name], ours)))
            title_of = f"{what}, {count} lanes against {title}"
            result.append(Row(title_of, _ms(ours), _ms(times[name]), ratio, "ms a lane-step"))
    return result


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * float(np.median(seconds)):.3g}"
