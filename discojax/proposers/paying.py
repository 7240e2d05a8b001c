"""Paying: nothing is sent that the budget does not cover, and what may be billed is on record before.

    ledger? -> covered by the budget? -> noted as under way -> sent -> answered, or without an answer

A request that was sent and not answered, as when a server takes too long, may be billed all the same: what
it costs at most counts as spent. One that is under way when a run is killed is such a request too.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from discojax.config import Budget
from discojax.proposers import budget, prompt
from discojax.proposers.budget import Price, Spent
from discojax.proposers.client import ClientError, Request, request_hash
from discojax.proposers.retry import Retrying
from discojax.proposers.types import Exchange, Ledger, Purpose, Sent

__all__ = ["MOST_TOKENS", "BudgetEndError", "Purse"]

MOST_TOKENS = 65_536  # that any server is asked for
_IN_MARGIN = 1.5  # of `prompt.tokens_of`, to be above any tokenizer's count


class BudgetEndError(Exception):
    """The budget does not cover the request."""


@dataclass(frozen=True)
class Purse:
    """Pays for requests. Safe to use from several threads.

    Attributes:
      limits: what may be spent.
      ledger: where answers, and requests without one, are kept.
      price: dollars for a million tokens, in and out, of every model; else `prices.yaml` says it.
      under_way: the most that requests under way may cost.
      turn: for whoever reads or changes `under_way`.
    """

    limits: Budget
    ledger: Ledger
    price: Sequence[float] = ()
    under_way: list[Spent] = field(default_factory=list, repr=False)
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answered(self, client: Retrying, request: Request, purpose: Purpose) -> Exchange:
        """From the ledger, or else from the server and into the ledger.

        Raises:
          ClientError: if no answer came.
          BudgetEndError: if it was not sent, or not again, because the budget does not cover it.
        """
        key = request_hash(client, request)
        if (kept := self.ledger.get(key)) is not None:
            return kept
        sent = self._most(client, request, purpose)
        most = Spent(sent.cost or 0.0, tokens_in=sent.tokens_in, tokens_out=sent.tokens_out)
        with self._reserved(most):
            reply = client.generate(request, functools.partial(self._attempt, key, sent, most))
            price = self._price(client.name, reply.model_version, client.model)
            tokens = reply.tokens_in, reply.tokens_out, reply.tokens_cached
            cost = None if price is None else price.cost(*tokens)
            exchange = Exchange(client.name, client.model, purpose, prompt.version(), request, reply, cost)
            self.ledger.put(key, exchange)
        return exchange

    def _price(self, server: str, *names: str) -> Price | None:
        return Price(*self.price) if self.price else budget.price_of(server, *names)

    def _most(self, client: Retrying, request: Request, purpose: Purpose) -> Sent:
        """What a request costs at most."""
        tokens_in = int(_IN_MARGIN * prompt.tokens_of(request.system, *(t.text for t in request.turns)))
        tokens_out = request.max_output_tokens or MOST_TOKENS
        price = self._price(client.name, client.model)
        cost = None if price is None else price.cost(tokens_in, tokens_out)
        return Sent(client.name, client.model, purpose, tokens_in, tokens_out, cost)

    @contextmanager
    def _reserved(self, most: Spent) -> Iterator[None]:
        """While a request is under way the others count what it may cost at most."""
        with self.turn:
            if reason := budget.used_up(self.limits, self.ledger.spent()):
                raise BudgetEndError(reason)
            self._assert_covered(most)
            self.under_way.append(most)
        try:
            yield
        finally:
            with self.turn:
                self.under_way.remove(most)

    def _assert_covered(self, *more: Spent) -> None:
        """In its turn: that what is spent and under way leaves room for more."""
        spent = self.ledger.spent()
        for one in (*self.under_way, *more):
            spent = replace(
                spent,
                dollars=spent.dollars + one.dollars,
                tokens_in=spent.tokens_in + one.tokens_in,
                tokens_out=spent.tokens_out + one.tokens_out,
            )
        if not budget.covers(self.limits, spent):
            tokens, dollars = (sum(one.tokens for one in more), sum(one.dollars for one in more))
            cost = f", ${dollars:.3g}" if dollars else ""
            raise BudgetEndError(
                f"the rest of the budget does not cover one more request of up to {tokens:,} tokens{cost}"
            )

    @contextmanager
    def _attempt(self, key: str, sent: Sent, most: Spent) -> Iterator[None]:
        """One sending of a request, which another one that got no answer may stand before."""
        with self.turn:
            self.under_way.remove(most)
            try:
                self._assert_covered(most)
            finally:
                self.under_way.append(most)
        self.ledger.send(key, sent)
        try:
            yield
        except ClientError as error:
            self.ledger.unanswered(key, str(error) if error.billed else "")
            raise
