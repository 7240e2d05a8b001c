"""Being asked to stop: by Ctrl-C, or by SIGTERM, which is how machines are taken back.

Where nothing is lost by it, either ends the program at once. While devices are at work it waits for
the end of the call, when the state of the lanes is whole and can be kept.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Deferral", "Preempted", "Stopped", "deferred", "heeded"]


class Stopped(KeyboardInterrupt):
    """The user stopped it."""


class Preempted(Stopped):
    """SIGTERM: the machine is taken back, and whatever started the program will start it again."""


_KINDS: dict[int, type[Stopped]] = {signal.SIGINT: Stopped, signal.SIGTERM: Preempted}
_told = threading.Event()  # of SIGTERM, since the outermost `heeded` began


@contextmanager
def heeded() -> Iterator[None]:
    """Inside the block SIGTERM raises `Preempted`, as Ctrl-C raises KeyboardInterrupt.

    Once: where all hosts of a job are taken back, each is told, and so are those that lead and follow
    it. What has been told already ends in its time.
    """

    def stop(number: int, frame: Any) -> None:
        if not _told.is_set():
            _told.set()
            raise Preempted

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    _told.clear()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Deferral:
    """What has been asked for meanwhile. See `deferred`."""

    def __init__(self) -> None:
        self._asked: list[int] = []
        self._waiting = False

    def asked(self) -> Stopped | None:
        """What to raise, once it can be: None if nobody has asked to stop."""
        return _KINDS[self._asked[0]]() if self._asked else None

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Inside the block nothing is at work, and it is heeded at once."""
        if stop := self.asked():
            raise stop
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGTERM:
            if number in self._asked:
                return
            _told.set()
        self._asked.append(number)
        if self._waiting or (len(self._asked) > 1 and number == signal.SIGINT):
            raise Preempted if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Deferral]:
    """Inside the block Ctrl-C and SIGTERM are noted, and whoever is inside asks for them.

    A second Ctrl-C does not wait. One that nobody could ask about any more is raised when the block ends.
    """
    deferral = Deferral()
    if threading.current_thread() is not threading.main_thread():  # no other hears signals
        yield deferral
        return
    before = {number: signal.signal(number, deferral._note) for number in _KINDS}
    try:
        yield deferral
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop := deferral.asked():
        raise stop
