"""What is seen of a search under way: how busy the lanes are, what is proposed, how good, what was spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace

from discojax.config import Config
from discojax.population.training import Progress
from discojax.proposers.budget import Spent, left
from discojax.search.display import Display
from discojax.search.ledger import RunLedger
from discojax.search.logs import Log
from discojax.search.rungs import lane_steps, rung_trial, shares
from discojax.search.schedule import Schedule
from discojax.search.statistics import Comparison

__all__ = ["Monitor", "planned"]

_EVERY = 2.0  # seconds between looks at what was spent


class Monitor:
    """Bars: lane-steps, candidates with what they cost, and the share of the budget where there is one.

    To the log goes what was spent, and after every rung of a bracket (kind "scored") how much better than
    the baseline the best of its arm is so far at that rung.
    """

    def __init__(
        self,
        config: Config,
        screen: Display,
        lanes: int,
        schedule: Schedule,
        ledger: RunLedger,
        arms: int,
        log: Log,
    ):
        self.config, self.lanes, self.schedule, self.ledger, self.log = config, lanes, schedule, ledger, log
        self.say = screen.say
        self.lanes_bar = screen.bar("search", planned(config, arms))
        self.candidates_bar = screen.bar("candidates", arms * config.search.candidates)
        budget = config.budget
        limited = any(
            x is not None for x in (budget.dollars, budget.tokens, budget.candidates, budget.minutes)
        )
        self.budget_bar = screen.bar("budget", 100) if limited else None
        self._looked = 0.0
        self._logged: Spent | None = None
        self._best: dict[tuple[str, int], float] = {}

    def trained(self, report: Progress) -> None:
        """After every call to the device."""
        done = min(self.lanes_bar.done + report.useful, self.lanes_bar.total - 1)
        self.lanes_bar.update(
            done, f"search: {report.busy} of {self.lanes} lanes busy, {self.schedule.queued} jobs waiting"
        )
        self._spent()

    def arrived(self) -> None:
        """After every accepted candidate."""
        self.candidates_bar.advance()
        self._spent()

    def scored(self, arm: str, generation: int, rung: int, comparisons: Iterable[Comparison]) -> None:
        """After every rung of a bracket."""
        measured = [one.difference.value for one in comparisons if one.verdict not in ("failed", "baseline")]
        if measured:
            best = self._best[arm, rung] = max(*measured, self._best.get((arm, rung), -math.inf))
            self.log("scored", arm=arm, generation=generation, rung=rung, best=best, measured=len(measured))

    def done(self) -> None:
        """When the search has ended: it may have taken less than was planned."""
        self.lanes_bar.update(self.lanes_bar.total, "search")
        self._looked = 0.0
        self._spent()

    def _spent(self) -> None:
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        spent = self.ledger.spent()
        if self._logged is None or replace(spent, seconds=0.0) != replace(self._logged, seconds=0.0):
            self._logged = spent
            self.log("spent", **asdict(spent))
        if spent.requests or spent.unanswered:
            paid = f"candidates: {spent.requests} requests, {spent.tokens:,} tokens, {spent.cost}"
            self.candidates_bar.update(self.candidates_bar.done, paid)
        if self.budget_bar is not None:
            share = round(100 * (1 - left(self.config.budget, spent)))
            used = f"{spent.seconds / 60:.0f} min, {spent.candidates} candidates"
            self.budget_bar.update(share, f"budget, in per cent: {used}")


def planned(config: Config, arms: int) -> int:
    """The lane-steps of a search whose proposers find as many candidates as are wanted."""
    brackets = [len(config.search.library)] + arms * [share for share in shares(config) if share]
    total = 0
    for number, (_, _, keep) in enumerate(config.search.rungs):
        entering = sum(min(keep, size) if number else size for size in brackets)
        total += lane_steps(rung_trial(config, number), entering + (number > 0))
    return total
