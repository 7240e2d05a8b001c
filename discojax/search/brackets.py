"""The search: brackets of successive halving, side by side on the same lanes.

    library ─ rung 0 ─ rung 1 ─┐
    generation 1 ─ rung 0 ─ rung 1 ─┐
    generation 2 ─ ...              ├─ elites of all, on fresh seeds

Every generation races in a bracket of its own; the jobs of all brackets share the lanes, later rungs
first. Generation g is proposed, in a thread, when rung r of generation g - 1 - lag - r is complete, for
every r: so its candidates come while the generations between train, and it knows how the best of older
ones did in later rungs. Each is trained as soon as the gate has let it in.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from discojax.config import Config
from discojax.population.training import WAITING, Progress, train
from discojax.proposers.budget import used_up
from discojax.proposers.types import Interruptible
from discojax.search import archive as archives
from discojax.search import proposals
from discojax.search.arms import Arm
from discojax.search.display import Display
from discojax.search.laboratory import Laboratory, assemble, known, name_of, record, wanted
from discojax.search.ledger import RunLedger
from discojax.search.monitor import Monitor
from discojax.search.prefetch import Prefetcher
from discojax.search.proposals import Rung
from discojax.search.racing import keep_best
from discojax.search.rungs import BASELINE, judged, lane_steps, rung_trial, shares
from discojax.search.schedule import Plan, Schedule
from discojax.search.statistics import Comparison
from discojax.search.trials import SEARCH, Contender

__all__ = ["Race", "Raced", "search"]


@dataclass
class Raced:
    """What the brackets of an arm left.

    Attributes:
      contenders: those that the last rung of their bracket measured.
      comparisons: of each with the baseline, at that rung. All brackets share its seeds.
      scored: objectives that rung 0 measured.
      lane_steps: that its generations' lanes were given.
    """

    contenders: list[Contender]
    comparisons: dict[str, Comparison]
    scored: int = 0
    lane_steps: int = 0


@dataclass(frozen=True)
class _Proposed:
    """The fact that a generation is complete: its candidates."""

    arm: str
    generation: int


@dataclass(frozen=True)
class _Scored:
    """The fact that a rung of a generation is complete: its comparisons, none if nothing got there."""

    arm: str
    generation: int
    rung: int


class _Ask(NamedTuple):
    generation: int
    wanted: int
    rungs: Sequence[Rung]


def search(
    config: Config,
    laboratory: Laboratory,
    arms: Sequence[Arm],
    library: Sequence[Contender],
    ledger: RunLedger,
    screen: Display,
) -> dict[str, Raced]:
    """Runs all brackets of all arms; returns what they left, by arm.

    Raises:
      UserError: the proposer gave up, a setting does not fit, or the baseline itself diverged.
    """
    race = Race(config, laboratory, arms, library, ledger, screen)
    try:
        race.begin()
        race.train()
    finally:
        race.stop()
    return race.raced


class Race:
    """The brackets under way."""

    def __init__(
        self,
        config: Config,
        laboratory: Laboratory,
        arms: Sequence[Arm],
        library: Sequence[Contender],
        ledger: RunLedger,
        screen: Display,
    ):
        self.config, self.laboratory, self.arms, self.ledger = config, laboratory, arms, ledger
        self.baseline = next(c for c in library if c.name == BASELINE)
        self.library = library
        self.schedule = Schedule(functools.partial(known, laboratory))
        self.monitor = Monitor(
            config, screen, laboratory.programs.lanes, self.schedule, ledger, len(arms), laboratory.log
        )
        self.raced = {arm.name: Raced([], {}) for arm in arms}
        self.arrivals: dict[_Proposed, list[Contender]] = {}
        self.prefetchers: list[Prefetcher[_Ask, Contender]] = []
        self.told_of_budget: set[str] = set()

    def begin(self) -> None:
        """Starts all plans: the library's bracket, and those of every generation of every arm."""
        self.schedule.start(self._bracket(self.arms[0], 0))
        self.schedule.learn(_Proposed(SEARCH, 0), tuple(self.library))
        for arm in self.arms:
            for generation in range(1, self.config.search.generations + 1):
                self.schedule.start(self._bracket(arm, generation))
            self.schedule.start(self._given(arm) if arm.proposer is None else self._asking(arm))

    def train(self) -> None:
        """Trains until every plan has ended."""
        jobs = self.schedule.jobs()
        while (first := next(jobs, None)) is WAITING:
            self.schedule.wait()
        if first is None:  # all of it was known
            return
        station = self.laboratory.station(rung_trial(self.config, 0))
        begun = time.monotonic()

        def progress(report: Progress) -> None:
            self.monitor.trained(report)
            seconds = time.monotonic() - begun
            queued = self.schedule.queued
            self.laboratory.log("progress", seconds=seconds, queued=queued, **report._asdict())

        jobs = itertools.chain([first], jobs)
        for finished in train(station, jobs, progress, self.schedule.wait, name_of):
            self.schedule.learn(finished.key, record(self.laboratory, finished))
        self.monitor.done()

    def stop(self) -> None:
        """Ends the proposers' threads, once requests that are under way are answered."""
        if any(prefetcher.pending for prefetcher in self.prefetchers):
            self.monitor.say("Waiting for the proposer's reply under way; Ctrl-C leaves it.")
        for prefetcher in self.prefetchers:
            prefetcher.stop()

    def _bracket(self, arm: Arm, generation: int) -> Plan:
        """Successive halving of one generation."""
        proposed = _Proposed(arm.name, generation)
        facts = yield {proposed}
        contenders: list[Contender] = list(facts[proposed])
        comparisons: Mapping[str, Comparison] = {}
        raced = self.raced[arm.name]
        raced.scored += len(contenders)
        for number, (_, _, keep) in enumerate(self.config.search.rungs):
            if number:
                rivals = [c for c in contenders if c.name != BASELINE]
                contenders = keep_best(rivals, comparisons, keep)
            comparisons = {}
            if contenders:
                trial = rung_trial(self.config, number)
                if generation:  # the library's lanes serve all arms
                    raced.lane_steps += lane_steps(trial, len(contenders))
                measured = list(contenders)
                if all(c.name != BASELINE for c in contenders):
                    measured.append(self.baseline)
                jobs = wanted(self.laboratory, measured, trial)
                self.schedule.want(jobs, (arm.place > 0, -number, generation, arm.place))
                facts = yield set(jobs)
                comparisons = judged(self.config, assemble(self.laboratory, facts, measured, trial))
                self.monitor.scored(arm.name, generation, number, comparisons.values())
            self.schedule.learn(_Scored(arm.name, generation, number), comparisons)
        raced.contenders += contenders
        raced.comparisons |= {c.name: comparisons[c.name] for c in contenders}

    def _asking(self, arm: Arm) -> Plan:
        """Asks an arm's proposer for one generation after the other, as soon as it may know enough."""
        prefetcher = Prefetcher(
            self.schedule,
            functools.partial(self._propose, arm),
            functools.partial(self._arrived, arm),
            functools.partial(self._closed, arm),
            arm.proposer.stop if isinstance(arm.proposer, Interruptible) else lambda: None,
        )
        self.prefetchers.append(prefetcher)
        for generation, share in enumerate(shares(self.config), 1):
            # Not whatever is known by now: that would depend on the clock, and a resumed run knows more.
            newest = generation - 1 - self.config.search.lag
            rungs = []
            for number, (seeds, steps, _) in enumerate(self.config.search.rungs):
                scored = [_Scored(arm.name, g, number) for g in range(newest - number + 1) if arm.learns]
                facts = yield set(scored)
                found = {name: one for fact in scored for name, one in facts[fact].items()}
                rungs.append(Rung(seeds, steps, found))
            prefetcher.ask(_Ask(generation, share, rungs))

    def _given(self, arm: Arm) -> Plan:
        given = iter(arm.given)
        for generation, share in enumerate(shares(self.config), 1):
            self.schedule.learn(_Proposed(arm.name, generation), tuple(itertools.islice(given, share)))
        yield from ()

    def _propose(self, arm: Arm, ask: _Ask) -> Iterator[Contender]:
        """In the prefetcher's thread."""
        assert arm.proposer is not None
        past = proposals.history(arm.notebook, ask.rungs, before=ask.generation)
        return proposals.propose(
            arm.notebook,
            arm.proposer,
            past if arm.told else [],
            generation=ask.generation,
            wanted=ask.wanted,
            seed=self.config.run.seed + 7919 * arm.place,
            batch=self.config.proposer.candidates * self.config.proposer.concurrency,
            told=arm.told,
            go_on=functools.partial(self._may_ask, arm),
            heard=self.ledger.hand_over if arm.place == 0 else lambda proposals: None,
        )

    def _may_ask(self, arm: Arm) -> bool:
        """In the prefetcher's thread."""
        if any(prefetcher.stopping.is_set() for prefetcher in self.prefetchers):
            return False
        reason = used_up(arm.budget, arm.ledger.spent())
        if reason and arm.name not in self.told_of_budget:
            self.told_of_budget.add(arm.name)
            archives.add_event(self.laboratory.archive, "budget", arm=arm.name, reason=reason)
            whom = f" for {arm.name}" if len(self.arms) > 1 else ""
            self.schedule.post(functools.partial(self.monitor.say, f"No more is proposed{whom}: {reason}."))
        return not reason

    def _arrived(self, arm: Arm, ask: _Ask, contender: Contender) -> None:
        """Trains a candidate at once; its bracket waits for the rest of the generation."""
        self.arrivals.setdefault(_Proposed(arm.name, ask.generation), []).append(contender)
        jobs = wanted(self.laboratory, [contender], rung_trial(self.config, 0))
        self.schedule.want(jobs, (arm.place > 0, 0, ask.generation, arm.place))
        self.monitor.arrived()

    def _closed(self, arm: Arm, ask: _Ask) -> None:
        proposed = _Proposed(arm.name, ask.generation)
        self.schedule.learn(proposed, tuple(self.arrivals.pop(proposed, ())))
