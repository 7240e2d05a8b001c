"""Progress of long work: bars with the time left in a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "Display", "display"]

_EVERY = 15.0  # seconds between plain lines


class Bar:
    """One piece of work with a known number of parts."""

    def __init__(self, owner: Display, description: str, total: int):
        self._owner, self.description, self.total, self.done = owner, description, total, 0
        self._task: TaskID | None = None
        self._said = 0.0
        if owner.bars is not None:
            self._task = owner.bars.add_task(description, total=total)

    def update(self, done: int, description: str | None = None) -> None:
        """Says that `done` of the parts are done."""
        self.done = done
        self.description = description or self.description
        if self._task is not None and self._owner.bars is not None:
            self._owner.bars.update(
                self._task, completed=done, total=self.total, description=self.description
            )
        elif done >= self.total or time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            self._owner.console.print(f"{self.description}: {done} of {self.total}", highlight=False)

    def advance(self, parts: int = 1) -> None:
        """Says that `parts` more are done."""
        self.update(self.done + parts)


class Display:
    """Where long work says how far it is. Use `display()`."""

    def __init__(self, console: Console, bars: Progress | None):
        self.console, self.bars = console, bars

    def bar(self, description: str, total: int) -> Bar:
        """A new bar, below the others."""
        return Bar(self, description, max(total, 1))

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        (self.bars.console if self.bars is not None else self.console).print(text, highlight=False)


@contextmanager
def display(console: Console | None = None) -> Iterator[Display]:
    """Shows bars while the block runs, if the console is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Display(console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Display(console, bars)
