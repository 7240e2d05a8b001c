"""What a proposer is shown, what it hands back, and what it is. Pure data; imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, runtime_checkable

from discojax.proposers.budget import Spent
from discojax.proposers.client import Reply, Request

__all__ = [
    "Exchange",
    "Interruptible",
    "Ledger",
    "Proposal",
    "Proposer",
    "Provenance",
    "Purpose",
    "Scored",
    "Sent",
    "Status",
]

Status = Literal["ok", "rejected", "failed", "duplicate", "pending", "unanswered"]
"""What became of a proposal: measured; rejected by the gate; failed in training; the same as an earlier
one; accepted and not measured yet; no candidate in the reply, or no reply at all."""

Purpose = Literal["propose", "repair", "more_tokens"]
"""What a request was for: candidates; mending those that the gate refused; the same with more tokens."""


@dataclass(frozen=True)
class Scored:
    """One loss of the past, as a proposer is shown it.

    Attributes:
      name: what it is called; `Proposal.parents` refers to it.
      source: its candidate text; "" if there was none.
      status: what became of it.
      score: the search's score relative to DPO, higher is better, at the highest rung it was measured at;
        None if it was not measured.
      interval: the score's confidence interval, if there is one.
      reason: why it was rejected or failed, or what it duplicates, in one sentence.
      parents: names of the losses it was made from.
      operator: how it was made.
      model: the language model that was asked for it, "" if none was.
      rung: which the score is of. What reached a higher one ranks before what did not.
      seeds, steps: which that rung trains with; 0 if it is not known.
      first_score: at rung 0, if `score` is of a higher one.
    """

    name: str
    source: str
    status: Status
    score: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
    parents: tuple[str, ...] = ()
    operator: str = ""
    model: str = ""
    rung: int = 0
    seeds: int = 0
    steps: int = 0
    first_score: float | None = None

    @property
    def common_score(self) -> float | None:
        """Its score at rung 0, where every loss is measured: only this compares any two of them."""
        return self.score if self.first_score is None else self.first_score


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which request to which language model a candidate is from; a proposer without one leaves it empty.

    What a request cost stands with the first candidate of its reply; the others of the same `request`
    have 0, so that sums are right.

    Attributes:
      model: the language model as it was asked for.
      model_version: as the server reported it.
      request: hash of the request that it answers, the ledger's key.
      prompt_hash: the version of the prompt's templates.
      raw_reply: the model's text that it was read from.
      tokens_in: tokens of the prompt; None if no request was made.
      tokens_out: tokens generated, thinking included; None likewise.
      cost: in dollars; None if no request was made or its price is not known.
    """

    model: str = ""
    model_version: str = ""
    request: str | None = None
    prompt_hash: str | None = None
    raw_reply: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """These fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(Provenance)}


@dataclass(frozen=True)
class Proposal(Provenance):
    """A candidate as text. Nothing about it is trusted: it goes through the gate.

    Attributes:
      name: what to call it, an identifier that nothing in the history has.
      source: its text in the candidate language; "" if `unanswered`.
      operator: how it was made.
      parents: names of the losses it was made from.
      thought: the idea behind it, one sentence.
      unanswered: why the request gave no candidate; "" if it gave this one. Such a proposal is kept
        as an attempt, so that the request is not repeated and its cost is seen.
    """

    name: str
    source: str
    operator: str
    parents: tuple[str, ...]
    thought: str
    unanswered: str = ""


@runtime_checkable
class Proposer(Protocol):
    """Where candidates come from: a language model, evolution, a recording."""

    @property
    def name(self) -> str:
        """What archives and reports call it."""

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        """At most `count` new candidates, given everything that was tried before.

        A pure function of its arguments where the proposer can be one, as resuming a run relies on; a
        language model's is one of its arguments and of the ledger.
        """


@runtime_checkable
class Interruptible(Protocol):
    """A proposer that may be waiting for somebody when its run is to end."""

    def stop(self) -> None:
        """From another thread: ends `propose` with an error as soon as nothing paid for is under way."""


@dataclass(frozen=True)
class Exchange:
    """A request that was answered, and so paid for.

    Attributes:
      server: what was spoken to: "gemini", "openai", ...
      model: as it was asked for.
      purpose: what for.
      prompt_hash: the version of the prompt's templates.
      request: what was asked.
      reply: what came back.
      cost: in dollars; None if the price is not known.
    """

    server: str
    model: str
    purpose: Purpose
    prompt_hash: str
    request: Request
    reply: Reply
    cost: float | None


@dataclass(frozen=True)
class Sent:
    """A request that is under way, or that got no answer, and so may be paid for.

    Attributes:
      server, model, purpose: as of an `Exchange`.
      tokens_in, tokens_out: it has at most.
      cost: in dollars, at most; None if the price is not known.
    """

    server: str
    model: str
    purpose: Purpose
    tokens_in: int
    tokens_out: int
    cost: float | None


class Ledger(Protocol):
    """Where requests are written before they are sent, and replies before anything else is done with them.

    So a request is paid for once, whatever kills the run, and a budget holds over all its sessions.
    """

    def get(self, request: str) -> Exchange | None:
        """What the request of this hash was answered with, if it was ever asked."""

    def put(self, request: str, exchange: Exchange) -> None:
        """Writes it down for good, as no longer under way; a hash that is there already stays as it is."""

    def send(self, request: str, sent: Sent) -> None:
        """Writes down that a request is under way from now on."""

    def unanswered(self, request: str, reason: str) -> None:
        """Writes down why one under way got no answer; "" if it will not be billed, which forgets it."""

    def spent(self) -> Spent:
        """What the run has spent, in all its sessions, without what is under way."""
