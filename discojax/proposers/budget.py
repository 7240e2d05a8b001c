"""What a run has spent against what it may, and what a token costs. Pure; nothing is measured here."""

from __future__ import annotations

import fnmatch
import functools
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from discojax.config import Budget

__all__ = ["Price", "Spent", "affords", "left", "price_of", "prices", "used_up"]


@dataclass(frozen=True)
class Spent:
    """What a run has used up, in all its sessions together.

    Attributes:
      dollars: of the requests whose price is known.
      unpriced: requests whose price is not known; `dollars` leaves them out.
      tokens_in, tokens_out: paid for; thinking counts as out.
      requests: answered requests.
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

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.tokens_in + self.tokens_out

    @property
    def cost(self) -> str:
        """The dollars as text, which says so where some are not known.

        >>> Spent(dollars=0.0123).cost, Spent(dollars=4.5, unpriced=1).cost, Spent(unpriced=2).cost
        ('$0.0123', '$4.50 + unknown', 'unknown')
        """
        known = f"${self.dollars:.4f}" if self.dollars < 1 else f"${self.dollars:.2f}"
        if not self.unpriced:
            return known
        return f"{known} + unknown" if self.dollars else "unknown"


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


def affords(budget: Budget, spent: Spent, tokens_in: int, tokens_out: int, price: Price | None) -> bool:
    """Whether a request of at most so many tokens keeps within the limits of money and of tokens.

    Of a model without a known price only the tokens are bounded.
    """
    if budget.tokens is not None and spent.tokens + tokens_in + tokens_out > budget.tokens:
        return False
    if budget.dollars is None or price is None:
        return True
    return spent.dollars + price.cost(tokens_in, tokens_out) <= budget.dollars


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


@functools.cache
def prices() -> Mapping[str, Price]:
    """The prices of `prices.yaml` by pattern of model name, in its order."""
    text = importlib.resources.files("discojax.proposers").joinpath("prices.yaml").read_text("utf-8")
    table = yaml.safe_load(text)["models"]
    return {name: Price(entry["in"], entry["out"], entry.get("cached")) for name, entry in table.items()}


def price_of(*names: str) -> Price | None:
    """What a model costs, by the first of its names that is known; None if none is.

    >>> price_of("models/gemini-3.5-flash-002").tokens_out
    9.0
    """
    for name in names:
        bare = name.rpartition("/")[2].lower()  # as in `models/gemini-...` and `google/gemini-...`
        for pattern, price in prices().items():
            if fnmatch.fnmatchcase(bare, pattern):
                return price
    return None
