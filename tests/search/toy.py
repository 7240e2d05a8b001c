"""A laboratory without a device: the real search, archive, gate and loop over lanes; steps are arithmetic.

Its clock is the device's: a call takes as long as it would under `vmap`, and a proposer may sleep on it. So
hours of a search on 64 lanes pass in seconds, and how busy the lanes were is exact. What a lane comes to
is a function of its objective, beta, seed and budget alone, as on a real device.
"""

from __future__ import annotations

import hashlib
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from discojax import candidates, objectives
from discojax.config import Config
from discojax.population.lanes import LaneSettings, LaneState
from discojax.population.margins import MARGIN_EDGES
from discojax.population.operations import Station
from discojax.population.step import StepConfig, StepMetrics
from discojax.population.training import Progress
from discojax.proposers.types import Proposal, Scored
from discojax.search import archive as archives
from discojax.search import proposals
from discojax.search.archive import Archive
from discojax.search.arms import make_arms
from discojax.search.brackets import Race
from discojax.search.display import Display
from discojax.search.laboratory import Laboratory
from discojax.search.ledger import RunLedger
from discojax.search.logs import FILE, Log, jsonl
from discojax.search.prefetch import Prefetcher
from discojax.search.trials import SEARCH, Contender, Trial
from discojax.tasks.measure import Measurement

DIVERGING = 29  # one program in so many diverges


class Clock:
    """The device's time, in seconds. It stands still while a proposer's thread computes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prefetchers: list[Prefetcher] = []
        self._wakes: dict[int, float] = {}  # threads that sleep, and until when
        self._changed = threading.Condition()

    def sleep(self, seconds: float) -> None:
        """In a proposer's thread: waits for a server."""
        me = threading.get_ident()
        with self._changed:
            until = self.now + seconds
            self._wakes[me] = until
            self._changed.notify_all()
            while self.now < until:
                self._changed.wait()
            del self._wakes[me]

    def advance(self, seconds: float) -> None:
        """In the thread that trains: the device was at work. Whoever wakes meanwhile is waited for."""
        end = self.now + seconds
        while (wake := self._next()) is not None and wake <= end:
            self._set(wake)
        self._set(end)

    def jump(self) -> None:
        """The device has nothing to do: to the next moment at which someone wakes."""
        if (wake := self._next()) is not None:
            self._set(wake)

    def settle(self) -> None:
        """Waits, in real time, until every proposer sleeps on this clock or has nothing to do."""
        while sum(p.pending > 0 for p in self.prefetchers) > sum(x > self.now for x in self._wakes.values()):
            time.sleep(0.0002)

    def _next(self) -> float | None:
        self.settle()
        return min((x for x in list(self._wakes.values()) if x > self.now), default=None)

    def _set(self, now: float) -> None:
        with self._changed:
            self.now = max(self.now, now)
            self._changed.notify_all()
        self.settle()


@dataclass(frozen=True)
class Toy(Laboratory):
    """A laboratory whose lanes take `seconds` a step, all together."""

    clock: Clock = field(default_factory=Clock)
    seconds: float = 1.0

    def require(self, *trials: Trial) -> None:
        """It has no prompts that could be too few."""

    def station(self, trial: Trial) -> Station:
        engine = types.SimpleNamespace(programs=self.programs, params=None, frozen=None, data=None)
        return Station(engine, _measure(trial.prompts))  # type: ignore[arg-type]


def laboratory(archive: Archive, folder: Path, *, lanes: int, chunk: int, seconds: float = 1.0) -> Toy:
    """A toy laboratory that keeps its results in `archive`."""
    clock = Clock()

    def fresh(params: Any) -> LaneState:
        none = np.zeros(lanes, np.int32)
        return LaneState(np.zeros((lanes, 3), np.uint32), None, none, np.zeros(lanes, bool))

    def reset(state: LaneState, params: Any, started: np.ndarray) -> LaneState:
        return state._replace(step=np.where(started, 0, state.step), diverged=state.diverged & ~started)

    def advance(state: LaneState, settings: LaneSettings, frozen: Any, data: Any):
        marks = np.stack([_marks(settings, lane) for lane in range(lanes)])
        diverging = (settings.steps > 0) & (marks[:, 0] % DIVERGING == 0) & (state.step < settings.steps)
        taken = np.where(diverging, 0, np.clip(settings.steps - state.step, 0, chunk))
        clock.advance(seconds * chunk)
        step = np.where(diverging, settings.steps, state.step + taken)
        params = np.where((taken > 0)[:, None] | (settings.steps == 0)[:, None], marks, state.params)
        sums = [taken.astype(np.float32)] * (len(StepMetrics._fields) - 2)
        metrics = StepMetrics(taken, *sums, np.zeros((lanes, len(MARGIN_EDGES)), np.float32))
        return LaneState(params, None, step, state.diverged | diverging), metrics

    config = StepConfig(chunk=chunk, implementation="vmap")
    programs = types.SimpleNamespace(
        lanes=lanes, batch=config.batch, config=config, fresh=fresh, reset=reset, advance=advance
    )
    instruments = types.SimpleNamespace(programs=programs)
    return Toy(instruments, {}, archive, 1e-3, Log((jsonl(folder / FILE),)), clock=clock, seconds=seconds)  # type: ignore[arg-type]


def _marks(settings: LaneSettings, lane: int) -> np.ndarray:
    """What a lane's policy will be: of its objective, of its objective and beta, and its budget."""
    code = hashlib.sha256(b"".join(np.asarray(leaf[lane]).tobytes() for leaf in settings.code))
    with_beta = hashlib.sha256(code.digest() + settings.beta[lane].tobytes())
    words = (code, with_beta)
    one, two = (int.from_bytes(word.digest()[:4], "little") for word in words)
    return np.array([one, two, settings.steps[lane]], np.uint32)


def _measure(prompts: int):
    def measure(params: Any, chosen: np.ndarray, seeds: np.ndarray) -> list[Measurement]:
        results = []
        for lane in np.flatnonzero(chosen):
            objective, point, steps = (int(x) for x in params[lane])
            trained = min(steps / 100, 1.0)
            easy = np.random.default_rng(7).normal(0.5, 0.1, prompts)
            gain = trained * (0.05 + 0.1 * np.random.default_rng(objective).random())
            kl = trained * (2.0 + 6.0 * np.random.default_rng(point).random())
            noise = np.random.default_rng((objective, int(seeds[lane]), steps)).normal(0, 0.02, prompts)
            reward = (easy + gain + noise * trained).astype(np.float32)
            flat = np.full(prompts, kl, np.float32)
            results.append(Measurement(reward, flat, flat, np.full(prompts, 8), [""] * prompts))
        return results

    return measure


@dataclass(frozen=True)
class Slow:
    """A proposer that answers after the latencies that were recorded, one after the other."""

    proposer: Any
    clock: Clock
    latencies: Iterator[float]

    @property
    def name(self) -> str:
        return self.proposer.name

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        self.clock.sleep(next(self.latencies))
        return self.proposer.propose(history, count, seed)


@dataclass(frozen=True)
class Drawn:
    """A proposer as cheap as can be: constants are drawn; one text in six is no candidate. Pure."""

    name: str = "drawn"

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        rng = np.random.default_rng((seed, len(history)))
        best = max((past.score or 0.0 for past in history), default=0.0)  # it does look at scores
        made = []
        for _ in range(count):
            a, b, c = (float(x) for x in rng.uniform(0.2, 2.0, 3).round(3) + round(abs(best), 2))
            name = f"drawn_{rng.integers(2**48):012x}"
            source = "import os" if rng.random() < 1 / 6 else text(name, a, b, c)
            made.append(Proposal(name, source, "fresh", ("dpo",), "Constants drawn."))
        return made


def text(name: str, a: float, b: float, c: float) -> str:
    """A candidate that the gate lets in."""
    return (
        f"def {name}(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,"
        " reference_rejected_logps, beta):\n"
        "    m = (policy_chosen_logps - reference_chosen_logps)"
        " - (policy_rejected_logps - reference_rejected_logps)\n"
        f"    return {a:.3f} * jax.nn.softplus(-{b:.3f} * beta * m) + jnp.tanh({c:.3f} - beta * m)\n"
    )


@dataclass
class Timeline:
    """Calls to the device: when each ended, lane-steps done until then, jobs that waited for a lane."""

    at: list[float] = field(default_factory=list)
    useful: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)

    def utilisation(self, lanes: int, seconds: float, *, drain: bool) -> float:
        """The share of lane-steps that were useful; without the drain, up to when the last job got a lane."""
        last = len(self.at) - 1
        if not drain:
            last = max(i for i, queued in enumerate(self.queued) if queued)
        return self.useful[last] * seconds / (lanes * self.at[last])


@contextmanager
def racing(config: Config, archive: Archive, folder: Path, toy: Toy, wrap=lambda proposer: proposer):
    """A race in the toy laboratory: `race, arms, timeline`. `wrap` may slow proposers down."""
    library = tuple(objectives.get(name).name for name in dict.fromkeys(("dpo", *config.search.library)))
    contenders = proposals.admit_library(archive, library)
    ledger = RunLedger(archive)
    arms = [
        arm if arm.proposer is None else _with(arm, wrap(arm.proposer))
        for arm in make_arms(config, archive, library)
    ]
    screen = Display(Console(quiet=True), None)
    race = Race(config, toy, arms, contenders, ledger, screen)
    toy.clock.prefetchers = race.prefetchers
    timeline, done, told, wait = Timeline(), 0, race.monitor.trained, race.schedule.wait

    def trained(report: Progress) -> None:
        nonlocal done
        done += report.useful
        timeline.at.append(toy.clock.now)
        timeline.useful.append(done)
        timeline.queued.append(race.schedule.queued)
        told(report)

    def waiting() -> None:
        toy.clock.settle()
        if race.schedule.silent:
            toy.clock.jump()
        wait()

    race.monitor.trained = trained  # type: ignore[method-assign]
    race.schedule.wait = waiting  # type: ignore[method-assign]
    try:
        yield race, arms, timeline
    finally:
        for prefetcher in race.prefetchers:
            prefetcher.stopping.set()
        toy.clock.advance(1e9)  # whoever still sleeps wakes
        race.stop()


def _with(arm, proposer):
    import dataclasses

    return dataclasses.replace(arm, proposer=proposer)


def rows(path: Path) -> tuple[list[tuple], list[tuple]]:
    """All attempts and evaluations of an archive, but for ids, times and their order."""
    import sqlite3

    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        tables = []
        for table in ("attempts", "evaluations"):
            cursor = connection.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            keep = [i for i, name in enumerate(names) if name not in ("id", "created")]
            tables.append(sorted((tuple(row[i] for i in keep) for row in cursor), key=repr))
    return tables[0], tables[1]


__all__ = ["SEARCH", "Clock", "Contender", "Drawn", "Slow", "Timeline", "Toy", "archives", "candidates"]
