"""Prefetching: candidates are proposed in a thread of their own, so that no lane waits for a proposer."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from discojax.search.schedule import Schedule

__all__ = ["Prefetcher"]

Ask = TypeVar("Ask")
Found = TypeVar("Found")


class Prefetcher(Generic[Ask, Found]):
    """Answers asks one after the other, in the order they were made, while the schedule's thread trains.

    Args:
      schedule: which is told.
      propose: yields what there is for an ask; it runs in the thread, and must look at `stopping`
        before anything that takes long.
      arrived: told each thing as it comes, in the schedule's thread.
      closed: told, there too, when there is no more for the ask.
      interrupt: ends what `propose` waits for, with an error.

    Attributes:
      stopping: whether it was told to end.
      pending: asks that are not answered yet.
    """

    def __init__(
        self,
        schedule: Schedule,
        propose: Callable[[Ask], Iterator[Found]],
        arrived: Callable[[Ask, Found], None],
        closed: Callable[[Ask], None],
        interrupt: Callable[[], None] = lambda: None,
    ):
        self.schedule = schedule
        self.propose, self.arrived, self.closed = propose, arrived, closed
        self.interrupt = interrupt
        self.stopping = threading.Event()
        self.pending = 0
        self._turn = threading.Lock()
        self._asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        # A daemon: a second Ctrl-C ends the program, whatever a server is still doing.
        self._thread = threading.Thread(target=self._work, daemon=True, name="proposer")

    def ask(self, ask: Ask) -> None:
        """Begins on this as soon as what was asked before is answered."""
        self.schedule.promise()
        with self._turn:
            self.pending += 1
        self._asks.put(ask)
        if not self._thread.ident:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread, once a request that is under way is answered: it may have been paid for."""
        self.stopping.set()
        self.interrupt()
        self._asks.put(None)
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while (ask := self._asks.get()) is not None and not self.stopping.is_set():
            try:
                for found in self.propose(ask):
                    self.schedule.post(functools.partial(self.arrived, ask, found))
                self.schedule.post(functools.partial(self._close, ask))
            except BaseException as error:  # the thread that trains raises it
                self.schedule.post(functools.partial(_raise, error))
                return
            finally:
                with self._turn:
                    self.pending -= 1

    def _close(self, ask: Ask) -> None:
        self.schedule.keep()
        self.closed(ask)


def _raise(error: BaseException) -> None:
    raise error
