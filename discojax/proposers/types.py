"""What a proposer is shown, what it hands back, and what it is. Pure data; imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

__all__ = ["Proposal", "Proposer", "Scored"]


@dataclass(frozen=True)
class Scored:
    """One loss of the past, as a proposer is shown it.

    Attributes:
      name: what it is called; `Proposal.parents` refers to it.
      source: its candidate text.
      status: "ok" if it was measured; "rejected" by the gate; "failed" in training; "duplicate" of
        an earlier one.
      score: the search's score relative to DPO, higher is better; None if it was not measured.
      interval: the score's confidence interval, if there is one.
      reason: why it was rejected or failed, in one sentence.
      parents: names of the losses it was made from.
      operator: how it was made.
    """

    name: str
    source: str
    status: Literal["ok", "rejected", "failed", "duplicate"]
    score: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
    parents: tuple[str, ...] = ()
    operator: str = ""


@dataclass(frozen=True)
class Proposal:
    """A candidate as text. Nothing about it is trusted: it goes through the gate.

    Attributes:
      name: what to call it, an identifier that nothing in the history has.
      source: its text in the candidate language.
      operator: how it was made.
      parents: names of the losses it was made from.
      thought: the idea behind it, one sentence.
    """

    name: str
    source: str
    operator: str
    parents: tuple[str, ...]
    thought: str


@runtime_checkable
class Proposer(Protocol):
    """Where candidates come from: a language model, evolution, a recording."""

    @property
    def name(self) -> str:
        """What archives and reports call it."""

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        """At most `count` new candidates, given everything that was tried before.

        A pure function of its arguments where the proposer can be one, as resuming a run relies on.
        """
