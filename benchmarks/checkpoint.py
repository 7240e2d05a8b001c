"""Training that keeps its lanes against training that does not: steps taken in the same time.

Both train the same lanes in one process, taking turns; one writes checkpoints of all of them into a
temporary folder, in the background, far more often than a run does. *Blocked* is the time in which lanes
stood still for one; divided by a run's interval it is the share of time that training is blocked.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.measuring import Row, policy, synthetic_pairs
from discojax import candidates, objectives
from discojax.config import Config
from discojax.policies.decoder import DecoderConfig
from discojax.population.checkpoint import Checkpoints, Held
from discojax.population.engine import Engine, make_engine, make_programs
from discojax.population.lanes import Job, LaneState, stack_jobs
from discojax.population.mesh import make_mesh
from discojax.population.step import StepConfig

__all__ = ["rows"]

POLICY = DecoderConfig(vocab_size=4096, layers=3, width=128, heads=4, max_length=32)
LANES, PROMPT, TOKENS, PAIRS = 16, 7, 16, 64
STEP = StepConfig(batch=16, chunk=1)
INTERVAL = 5.0  # seconds; a run's is checkpoint.interval


class _Round(NamedTuple):
    state: LaneState
    steps: int
    seconds: float
    blocked: tuple[float, ...]


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on checkpoints."""
    graph, params = policy(POLICY)
    data = synthetic_pairs(POLICY, pairs=PAIRS, prompt=PROMPT, tokens=TOKENS)
    programs = make_programs(graph, params, STEP, lanes=LANES, tokens=TOKENS, mesh=make_mesh())
    engine = make_engine(programs, params, data)
    code = candidates.from_function(objectives.get("dpo")).code
    settings = stack_jobs([Job(code, 0.1, lane, 1e-4, 10**6) for lane in range(programs.lanes)])
    state = programs.fresh(engine.params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    each = 1.5 * INTERVAL if quick else 4.2 * INTERVAL
    with tempfile.TemporaryDirectory() as folder:
        state = _train(
            engine, settings, state, 1.0, Checkpoints(str(Path(folder) / "warm"), interval=0.1)
        ).state
        rounds: list[tuple[_Round, _Round]] = []
        for turn in range(1 if quick else 3):
            without = _train(engine, settings, state, each, None)
            checkpoints = Checkpoints(str(Path(folder) / str(turn)), interval=INTERVAL)
            keeping = _train(engine, settings, without.state, each, checkpoints)
            state = keeping.state
            rounds.append((without, keeping))
    ratios = [(b.steps / b.seconds) / (a.steps / a.seconds) for a, b in rounds]
    blocked = [second for _, keeping in rounds for second in keeping.blocked]
    interval = Config().checkpoint.interval
    what = f"{LANES} lanes, {size / 2**20:.0f} MiB of state"
    return [
        Row(
            f"steps while lanes are kept every {INTERVAL:g} s",
            f"{np.median([b.steps / b.seconds for _, b in rounds]):.2f} /s",
            f"{np.median([a.steps / a.seconds for a, _ in rounds]):.2f} /s",
            float(np.median(ratios)),
            f"{what}; {len(blocked)} checkpoints",
        ),
        Row(
            "lanes stand still for a checkpoint",
            f"{np.median(blocked):.3f} s",
            f"{interval:g} s between two",
            None,
            f"{what}; {np.median(blocked) / interval:.2%} of the time",
        ),
    ]


def _train(
    engine: Engine, settings, state: LaneState, seconds: float, checkpoints: Checkpoints | None
) -> _Round:
    programs = engine.programs
    names = tuple(f"job {lane}" for lane in range(programs.lanes))
    steps, blocked, begun = 0, [], time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
        steps += int(np.asarray(metrics.steps)[0])
        if checkpoints is not None and checkpoints.due():
            held = Held(names, settings, np.asarray(state.step), np.zeros((programs.lanes, 5)))
            before = time.perf_counter()
            checkpoints.save(state, held, "benchmark")
            blocked.append(time.perf_counter() - before)
    if checkpoints is not None:
        checkpoints.close()
    return _Round(state, steps, taken, tuple(blocked))
