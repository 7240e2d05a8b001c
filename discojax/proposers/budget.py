"""What a run has spent against what it may, and what a token costs. Pure; nothing is measured here."""

from __future__ import annotations

import datetime
import fnmatch
import functools
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from discojax.config import Budget

__all__ = ["Listed", "Price", "Spent", "covers", "left", "price_of", "prices", "used_up"]

# What a name may go on with and still be that model: a version, a date.
_VERSION = re.compile(r"-(latest|preview|exp|\d+([.-]\d+)*)$")


@dataclass(frozen=True)
class Spent:
    """What a run has used up, in all its sessions together.

    Attributes:
      dollars: of the requests whose price is known.
      unpriced: requests whose price is not known; `dollars` leaves them out.
      tokens_in, tokens_out: paid for; thinking counts as out.
      requests: answered requests.
      unanswered: requests that were sent and not answered, and may be billed all the same: `tokens_in`,
        `tokens_out` and `dollars` have what they cost at most.
      unanswered_dollars: the part of `dollars` that is theirs.
      candidates: proposals, whatever became of them.
      seconds: of wall time, while the run was going.
    """

    dollars: float = 0.0
    unpriced: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    candidates: int = 0
    seconds: float = 0.0
    unanswered: int = 0
    unanswered_dollars: float = 0.0

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.tokens_in + self.tokens_out

    @property
    def cost(self) -> str:
        """The dollars as text, which says so where some are not known, or need not have been paid.

        >>> Spent(dollars=0.0123).cost, Spent(dollars=4.5, unpriced=1).cost, Spent(unpriced=2).cost
        ('$0.0123', '$4.50 + unknown', 'unknown')
        >>> Spent(dollars=4.5, unanswered=1, unanswered_dollars=0.5).cost
        '$4.50, up to $0.5000 of it for 1 request without an answer'
        """
        known = _dollars(self.dollars)
        if self.unpriced:
            known = f"{known} + unknown" if self.dollars else "unknown"
        if not self.unanswered:
            return known
        part = f"up to {_dollars(self.unanswered_dollars)} of it" if self.unanswered_dollars else "some of it"
        requests = "request" if self.unanswered == 1 else "requests"
        return f"{known}, {part} for {self.unanswered} {requests} without an answer"


def _dollars(amount: float) -> str:
    return f"${amount:.4f}" if amount < 1 else f"${amount:.2f}"


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens; thinking is paid for as output.

    `tokens_cached` is for input that the server has kept from an earlier request; where it is not known,
    such tokens are counted in full, and the cost is an upper bound.
    """

    tokens_in: float
    tokens_out: float
    tokens_cached: float | None = None

    def cost(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0) -> float:
        """Dollars; `tokens_cached` is a part of `tokens_in`.

        >>> Price(2.0, 12.0, 0.2).cost(1_000_000, 0, 500_000), Price(2.0, 12.0).cost(1_000_000, 0, 500_000)
        (1.1, 2.0)
        """
        kept = self.tokens_in if self.tokens_cached is None else self.tokens_cached
        new = tokens_in - tokens_cached
        return (new * self.tokens_in + tokens_cached * kept + tokens_out * self.tokens_out) / 1e6


def used_up(budget: Budget, spent: Spent) -> str:
    """Which limit is reached, as a clause for a message; "" if none is.

    >>> used_up(Budget(dollars=2.0), Spent(dollars=2.5))
    'the budget of $2 is spent'
    """
    for limit, used, words in (
        (budget.dollars, spent.dollars, "${:g}"),
        (budget.tokens, spent.tokens, "{:,} tokens"),
        (budget.candidates, spent.candidates, "{} candidates"),
        (budget.minutes, spent.seconds / 60, "{:g} minutes"),
    ):
        if limit is not None and used >= limit:
            return f"the budget of {words.format(limit)} is spent"
    return ""


def covers(budget: Budget, spent: Spent) -> bool:
    """Whether the limits of money and of tokens cover all of this.

    Of a model without a known price only the tokens are bounded.
    """
    return (budget.tokens is None or spent.tokens <= budget.tokens) and (
        budget.dollars is None or spent.dollars <= budget.dollars
    )


def left(budget: Budget, spent: Spent) -> float:
    """The share left of the limit that is nearest to its end: 1 at first, 0 when it is reached."""
    shares = [
        1 - used / limit
        for limit, used in (
            (budget.dollars, spent.dollars),
            (budget.tokens, spent.tokens),
            (budget.candidates, spent.candidates),
            (budget.minutes, spent.seconds / 60),
        )
        if limit is not None
    ]
    return min(1.0, max(0.0, min(shares, default=1.0)))


@dataclass(frozen=True)
class Listed:
    """An entry of `prices.yaml`.

    Attributes:
      price: from now on.
      until: the last day of that price, if one is announced.
      then: the price after that day.
      server: the kind of server that has it, if others may not.
    """

    price: Price
    until: datetime.date | None = None
    then: Price | None = None
    server: str = ""

    def on(self, day: datetime.date) -> Price:
        """The price of a day."""
        return self.then if self.then and self.until and day > self.until else self.price


@functools.cache
def prices() -> Mapping[str, Listed]:
    """The entries of `prices.yaml` by model name or pattern of it, in its order."""
    text = importlib.resources.files("discojax.proposers").joinpath("prices.yaml").read_text("utf-8")

    def price(entry: Mapping[str, float]) -> Price:
        return Price(entry["in"], entry["out"], entry.get("cached"))

    return {
        name: Listed(
            price(entry),
            entry.get("until"),
            price(entry["then"]) if "then" in entry else None,
            entry.get("server", ""),
        )
        for name, entry in yaml.safe_load(text)["models"].items()
    }


def price_of(server: str, *names: str, day: datetime.date | None = None) -> Price | None:
    """What a model costs on a day, today by default, by the first of its names that is known; else None.

    >>> price_of("gemini", "models/gemini-3.5-flash-002").tokens_out
    9.0
    >>> price_of("openai", "gpt-5.4-pro") is None
    True
    """
    day = day or datetime.date.today()
    for name in names:
        for bare in _versions(name.rpartition("/")[2].lower()):  # of `models/gemini-...`, `google/gemini-...`
            for pattern, listed in prices().items():
                if fnmatch.fnmatchcase(bare, pattern) and server.startswith(listed.server):
                    return listed.on(day)
    return None


def _versions(name: str) -> Iterator[str]:
    """A model's name, and what it is a version of."""
    yield name
    while (version := _VERSION.search(name)) is not None:
        name = name[: version.start()]
        yield name
