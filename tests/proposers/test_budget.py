"""What may be spent, what was, and what it costs."""

from __future__ import annotations

import pytest

from discojax.config import Budget, load
from discojax.errors import UserError
from discojax.proposers import budget
from discojax.proposers.budget import Price, Spent

SPENT = Spent(dollars=1.5, tokens_in=900, tokens_out=100, requests=3, candidates=7, seconds=120.0)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Budget(dollars=1.5), "the budget of $1.5 is spent"),
        (Budget(tokens=1000), "the budget of 1,000 tokens is spent"),
        (Budget(candidates=7), "the budget of 7 candidates is spent"),
        (Budget(minutes=2.0), "the budget of 2 minutes is spent"),
        (Budget(dollars=1.51, tokens=1001, candidates=8, minutes=2.1), ""),
        (Budget(), ""),
    ],
)
def test_a_limit_is_reached_when_it_is_met(limits, words):
    assert budget.used_up(limits, SPENT) == words


def test_what_is_left_is_that_of_the_nearest_limit():
    assert budget.left(Budget(), SPENT) == 1.0
    assert budget.left(Budget(dollars=3.0, tokens=10_000), SPENT) == pytest.approx(0.5)
    assert budget.left(Budget(dollars=3.0, minutes=1.0), SPENT) == 0.0


def test_a_request_is_afforded_only_if_all_of_it_fits():
    price = Price(1.0, 10.0)  # 1,000 in and 1,000 out cost 1.1 cents
    assert price.cost(1000, 1000) == pytest.approx(0.011)
    assert budget.affords(Budget(dollars=1.511), SPENT, 1000, 1000, price)
    assert not budget.affords(Budget(dollars=1.5109), SPENT, 1000, 1000, price)
    assert budget.affords(Budget(tokens=3000), SPENT, 1000, 1000, price)
    assert not budget.affords(Budget(tokens=2999), SPENT, 1000, 1000, price)
    # Without a price money cannot be bounded, and tokens are all the same.
    assert budget.affords(Budget(dollars=0.01), SPENT, 10**6, 10**6, None)
    assert not budget.affords(Budget(dollars=0.01, tokens=10), SPENT, 10, 10, None)


def test_a_cost_says_what_it_does_not_know():
    assert Spent(dollars=0.0123).cost == "$0.0123"
    assert Spent(dollars=4.5, unpriced=1).cost == "$4.50 + unknown"
    assert Spent(unpriced=2).cost == "unknown" and Spent().cost == "$0.0000"


def test_prices_are_found_by_the_names_that_servers_use():
    flash = budget.price_of("gemini-3.5-flash")
    assert (
        flash == budget.price_of("models/gemini-3.5-flash-002") == budget.price_of("google/Gemini-3.5-Flash")
    )
    lite = budget.price_of("gemini-3.5-flash-lite")
    assert lite is not None and flash is not None and lite.tokens_out < flash.tokens_out
    assert budget.price_of("qwen3:8b") is None
    assert budget.price_of("no-such-model", "gemini-flash-latest") is not None
    for pattern, price in budget.prices().items():
        assert 0 <= (price.tokens_cached or 0) <= price.tokens_in <= price.tokens_out, pattern
        # The first that fits counts, so a narrower pattern must stand above a wider one.
        assert budget.price_of(pattern.replace("*", "")) == price, pattern


def test_input_that_was_kept_costs_less_where_its_price_is_known():
    flash = budget.price_of("gemini-3.8-flash")
    assert flash is not None
    assert flash.cost(1000, 100, 800) == pytest.approx(flash.cost(200, 100) + 800 * 0.075e-6)
    lite = budget.price_of("gemini-3.5-flash-lite")
    assert lite is not None and lite.tokens_cached is None
    assert lite.cost(1000, 100, 800) == lite.cost(1000, 100), "in full where it is not"
    for server in (Price(0.0, 0.0), Price(1.0, 2.0, 0.0)):
        assert server.cost(800, 0, 800) == 0.0


def test_budgets_are_settings():
    limits = load("quickstart", ["budget.dollars=2", "budget.minutes=30.5"]).budget
    assert limits == Budget(dollars=2.0, minutes=30.5)
    for bad in ("budget.dollars=0", "budget.tokens=-5", "budget.tokens=1.5", "proposer.price=[1]"):
        with pytest.raises(UserError):
            load("quickstart", [bad])
