"""Errors meant for the user: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["HostError", "UserError", "nearest"]


class UserError(Exception):
    """A mistake the user can mend. The command line prints its text alone and exits with `code`."""

    code = 2


class HostError(UserError):
    """Another process of the job is gone or failed.

    By default its code is 42, which says that the same command, started again, goes on: xpk does so
    unasked, and SkyPilot where it is told to.
    """

    code = 42

    def __init__(self, text: str, code: int = code):
        super().__init__(text)
        self.code = code


def nearest(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `names`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
