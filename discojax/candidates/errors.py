"""The one error a candidate can cause, worded for the model or the person who wrote it."""

from __future__ import annotations

from typing import Literal

from discojax.errors import UserError

__all__ = ["STAGES", "CandidateError", "Stage"]

Stage = Literal["text", "syntax", "program", "trace", "numbers"]
STAGES: tuple[Stage, ...] = ("text", "syntax", "program", "trace", "numbers")

_LONGEST = 220  # leaves room for the stage and the line within 300 characters


class CandidateError(UserError):
    """A candidate was rejected.

    Attributes:
      stage: which of the five stages rejected it.
      line: the line of its source that is at fault, from 1; None if no line is.
      reason: what is wrong and what to write instead, under 300 characters with stage and line.
    """

    def __init__(self, stage: Stage, line: int | None, reason: str):
        self.stage = stage
        self.line = line
        self.reason = reason if len(reason) <= _LONGEST else reason[: _LONGEST - 3] + "..."
        where = stage if line is None else f"{stage}, line {line}"
        super().__init__(f"{where}: {self.reason}")

    def __reduce__(self):
        return (CandidateError, (self.stage, self.line, self.reason))


def quoted(text: str, longest: int = 40) -> str:
    """The author's own words in backquotes, printable and short enough to leave room for the reason."""
    plain = "".join(c if c.isprintable() and c != "`" else "?" for c in text)
    return f"`{plain if len(plain) <= longest else plain[: longest - 3] + '...'}`"
