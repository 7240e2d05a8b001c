"""Seating: which lane a job gets. After a stop each goes on in the lane that was in it.

What a stopped run was doing is asked for again, but not in the same order: what came in meanwhile may
be first. So a lane that a checkpoint brought back is kept for its job for a while.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import jax
import numpy as np

from discojax.population.checkpoint import Held
from discojax.population.lanes import Job, stack_jobs

__all__ = ["Seat", "Seating"]

Key = TypeVar("Key", bound=Hashable)


class Seat(NamedTuple, Generic[Key]):
    """A lane, the job it gets, and whether it was in it before and goes on where it was."""

    lane: int
    key: Key
    job: Job
    resumed: bool


class Seating(Generic[Key]):
    """Gives free lanes their jobs.

    Args:
      following: the next job; None if there are no more, and anything that is no pair if none is ready.
      name: of a job, as checkpoints have it.
      held: what a checkpoint brought back, if anything.
      patience: seconds for which its lanes are kept for their jobs while others wait.
    """

    def __init__(
        self,
        following: Callable[[], tuple[Key, Job] | object | None],
        name: Callable[[Key], str] = str,
        held: Held | None = None,
        patience: float = 60.0,
    ):
        self._following, self._name, self._held = following, name, held
        owners = held.owners if held is not None else ()
        self._kept = {owner: lane for lane, owner in enumerate(owners) if owner}
        self._until = time.monotonic() + patience
        self._aside: deque[tuple[Key, Job]] = deque()  # asked for, and no lane yet
        self._ended = False

    @property
    def more(self) -> bool:
        """Whether there may be more jobs."""
        return not self._ended or bool(self._aside)

    def give(self, free: Sequence[int], *, idle: bool) -> Iterator[Seat[Key]]:
        """Yields a seat for each of the free lanes that there is a job for.

        Args:
          free: the lanes without a job.
          idle: whether no lane has one.
        """
        if self._kept:
            seated = []
            for seat in self._resume(most=2 * len(free)):
                seated.append(seat.lane)
                yield seat
            free = [lane for lane in free if lane not in seated]
            if self._ended or time.monotonic() > self._until or (idle and not seated and self._aside):
                self._kept = {}  # their jobs are not asked for any more
            free = [lane for lane in free if lane not in self._kept.values()]
        for lane in free:
            if (following := self._next()) is None:
                return
            yield Seat(lane, *following, resumed=False)

    def _resume(self, most: int) -> Iterator[Seat[Key]]:
        """Jobs that a kept lane was in. Those that come between them are set aside, so many at most."""
        while self._kept and len(self._aside) < most and (following := self._ask()) is not None:
            key, job = following
            lane = self._kept.get(self._name(key))
            if lane is not None and self._was_in(lane, job):
                del self._kept[self._name(key)]
                yield Seat(lane, key, job, resumed=True)
            else:
                self._aside.append(following)

    def _was_in(self, lane: int, job: Job) -> bool:
        assert self._held is not None
        kept = jax.tree.map(lambda x: x[lane : lane + 1], self._held.settings)
        return all(map(np.array_equal, jax.tree.leaves(kept), jax.tree.leaves(stack_jobs([job]))))

    def _next(self) -> tuple[Key, Job] | None:
        return self._aside.popleft() if self._aside else self._ask()

    def _ask(self) -> tuple[Key, Job] | None:
        if self._ended:
            return None
        following = self._following()
        self._ended = following is None
        return following if isinstance(following, tuple) else None
