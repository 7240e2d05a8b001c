"""From the text a model answered to candidates: a ladder for untidy replies.

Parsed JSON, JSON in a fence, Python in a fence, the first `def`; each rung is tried only where the
one above found nothing. What falls through all of them is a reason, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from discojax.proposers.client import Finish

__all__ = ["SCHEMA", "Draft", "Remedy", "Untidy", "read", "schema"]

Remedy = Literal["repair", "more_tokens", "ask_again"]
"""What to do about an unusable reply: show the model the reason, raise `max_output_tokens` once and
ask the same, or ask something else."""


@dataclass(frozen=True)
class Draft:
    """One candidate as a model wrote it: not checked by the gate."""

    name: str
    code: str
    thought: str = ""


@dataclass(frozen=True)
class Untidy:
    """Why a reply has no candidate, as a sentence the model can be shown, and what to do."""

    reason: str
    remedy: Remedy


def schema(several: bool = False) -> dict[str, object]:
    """The JSON schema to put into a `Request`: one candidate, or a list of them."""
    raise NotImplementedError


SCHEMA: dict[str, object] = {}


def read(text: str, finish: Finish = "stop", detail: str = "") -> tuple[Draft, ...] | Untidy:
    """The candidates in one text of a reply, at least one, or why there is none."""
    raise NotImplementedError
