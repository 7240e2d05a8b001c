"""The schedule: what waits for what, and which job a free lane is given next.

A *plan* is a generator. It wants jobs done, yields the facts it waits for (the evaluation of a lane,
the candidates of a generation), and goes on when all of them are known:

    def bracket(schedule):
        schedule.want(jobs, priority=(0,))
        facts = yield set(jobs)
        ...

Facts come in whatever order lanes, threads and servers bring them. A plan sees complete sets of them
only, so what it decides is the same in every order, and in a run that was stopped and resumed.
"""

from __future__ import annotations

import heapq
import itertools
import queue
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Set
from contextlib import suppress
from typing import Any

from discojax.population.lanes import Job
from discojax.population.training import WAITING, Waiting

__all__ = ["Facts", "Plan", "Schedule"]

Facts = Mapping[Hashable, Any]
Plan = Generator[Set[Hashable], Facts, None]


class Schedule:
    """Plans, the facts they wait for, and the jobs they want.

    `post` may be called from any thread; everything else belongs to the one that trains.

    Args:
      lookup: the fact that a job would establish, if it is known from before; else None.
    """

    def __init__(self, lookup: Callable[[Any], Any] = lambda key: None):
        self._lookup = lookup
        self._facts: dict[Hashable, Any] = {}
        self._waiting: dict[Hashable, list[_Waiter]] = {}
        self._ready: list[_Waiter] = []
        self._heap: list[tuple[tuple[int, ...], int, Hashable]] = []
        self._jobs: dict[Hashable, Job] = {}  # wanted, and no lane has them yet
        self._taken: set[Hashable] = set()
        self._open = 0  # plans that have not ended
        self._promises = 0
        self._turn = itertools.count()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._advancing = False

    @property
    def queued(self) -> int:
        """Jobs that wait for a lane."""
        return len(self._jobs)

    @property
    def silent(self) -> bool:
        """Whether nothing outside has a message."""
        return self._inbox.empty()

    @property
    def facts(self) -> Facts:
        """All that is known."""
        return self._facts

    def start(self, plan: Plan) -> None:
        """Runs a plan up to the first facts that are not known yet."""
        self._open += 1
        self._ready.append(_Waiter(plan))
        self._advance()

    def want(self, jobs: Mapping[Any, Job], priority: tuple[int, ...]) -> None:
        """Has jobs done, each once however many plans want it, the lowest priority first.

        Of equal priority the earlier wanted is first. Facts known from before are not established again.
        """
        for key, job in jobs.items():
            if key in self._facts or key in self._taken:
                continue
            if key not in self._jobs and (known := self._lookup(key)) is not None:
                self.learn(key, known)
                continue
            self._jobs[key] = job
            heapq.heappush(self._heap, (priority, next(self._turn), key))

    def learn(self, fact: Hashable, value: Any) -> None:
        """Establishes a fact and lets go on whoever waited for it.

        Raises:
          ValueError: if it is known already: nothing is counted twice.
        """
        if fact in self._facts:
            raise ValueError(f"{fact} was established already")
        self._facts[fact] = value
        self._taken.discard(fact)
        for waiter in self._waiting.pop(fact, ()):
            waiter.missing -= 1
            if not waiter.missing:
                self._ready.append(waiter)
        self._advance()

    def promise(self) -> None:
        """Says that something outside, such as a thread, will `post` until it calls `keep`."""
        self._promises += 1

    def keep(self) -> None:
        """Ends a promise."""
        self._promises -= 1

    def post(self, message: Callable[[], None]) -> None:
        """Has `message` called by the thread that trains, soon. What it raises ends the training."""
        self._inbox.put(message)

    def jobs(self) -> Iterator[tuple[Any, Job] | Waiting]:
        """The source of jobs for `population.train`: ends when every plan has."""
        while True:
            while not self.silent:
                self._inbox.get()()
            if (following := self._next()) is not None:
                yield following
            elif self._open:
                yield WAITING
            else:
                return

    def wait(self) -> None:
        """Blocks until something outside has a message, when no lane has a job.

        Raises:
          RuntimeError: if nothing outside has promised one, so that it would block for ever.
        """
        if self.silent and not self._promises:
            missing = sorted(map(str, self._waiting))[:3]
            raise RuntimeError(f"the plans wait for what nobody does: {', '.join(missing)}")
        while True:
            with suppress(queue.Empty):  # a wait without end may miss a signal that comes just as it begins
                message = self._inbox.get(timeout=0.2)
                break
        message()

    def _next(self) -> tuple[Hashable, Job] | None:
        while self._heap:
            _, _, key = heapq.heappop(self._heap)
            if key in self._jobs:  # else wanted twice, and taken at the better priority
                self._taken.add(key)
                return key, self._jobs.pop(key)
        return None

    def _advance(self) -> None:
        """Runs all plans that can go on. What they learn or start in doing so is in the same loop."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._ready:
                self._resume(self._ready.pop(0))
        finally:
            self._advancing = False

    def _resume(self, waiter: _Waiter) -> None:
        try:
            facts = {fact: self._facts[fact] for fact in waiter.facts}
            waiter.facts = waiter.plan.send(facts if waiter.begun else None)  # type: ignore[arg-type]
            waiter.begun = True
        except StopIteration:
            self._open -= 1
            return
        missing = [fact for fact in waiter.facts if fact not in self._facts]
        waiter.missing = len(missing)
        for fact in missing:
            self._waiting.setdefault(fact, []).append(waiter)
        if not missing:
            self._ready.append(waiter)


class _Waiter:
    """A plan and what it waits for."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.facts: Set[Hashable] = frozenset()
        self.missing = 0
        self.begun = False
