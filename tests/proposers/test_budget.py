"""What may be spent, what was, and what it costs."""

from __future__ import annotations

import datetime

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


def test_a_budget_covers_what_is_within_each_of_its_limits():
    assert budget.covers(Budget(), SPENT)
    assert budget.covers(Budget(dollars=1.5, tokens=1000), SPENT)
    assert not budget.covers(Budget(dollars=1.4999), SPENT)
    assert not budget.covers(Budget(tokens=999), SPENT)
    assert Price(1.0, 10.0).cost(1000, 1000) == pytest.approx(0.011)


def test_a_cost_says_what_it_does_not_know():
    assert Spent(dollars=0.0123).cost == "$0.0123"
    assert Spent(dollars=4.5, unpriced=1).cost == "$4.50 + unknown"
    assert Spent(unpriced=2).cost == "unknown" and Spent().cost == "$0.0000"
    lost = Spent(dollars=4.5, unanswered=2, unanswered_dollars=0.5)
    assert lost.cost == "$4.50, up to $0.5000 of it for 2 requests without an answer"
    assert "some of it for 1 request without" in Spent(unpriced=1, unanswered=1).cost


def test_prices_are_found_by_the_names_that_servers_use():
    flash = budget.price_of("gemini", "gemini-3.5-flash")
    for name in ("models/gemini-3.5-flash-002", "google/Gemini-3.5-Flash", "gemini-3.5-flash-preview-09"):
        assert budget.price_of("openai", name) == flash, name
    lite = budget.price_of("gemini", "gemini-3.5-flash-lite")
    assert lite is not None and flash is not None and lite.tokens_out < flash.tokens_out
    assert budget.price_of("openai", "qwen3:8b") is None
    assert budget.price_of("gemini", "no-such-model", "gemini-flash-latest") is not None
    for name, listed in budget.prices().items():
        for price in (listed.price, listed.then or listed.price):
            assert 0 <= (price.tokens_cached or 0) <= price.tokens_in <= price.tokens_out, name
        # The first that fits counts, so a narrower pattern must stand above a wider one.
        found = budget.price_of("gemini", name.replace("*", "x"), day=datetime.date(2026, 1, 1))
        assert found == listed.price, name


@pytest.mark.parametrize(
    "name",
    ["gpt-5.4-pro", "gpt-5.4-nano", "gpt-5.4-nano-2026-03-05", "gemini-3.8-flash-lite",
     "gemini-3.7-flash-lite-001", "gemini-3.5-flash-image", "gemini-3.1-pro-tts"],
)  # fmt: skip
def test_another_model_of_a_family_has_no_price_of_its_relatives(name):
    assert budget.price_of("openai", name) is None


def test_only_google_gives_its_open_models_away():
    assert budget.price_of("gemini", "gemma-3-27b-it") == Price(0.0, 0.0)
    assert budget.price_of("gemini-legacy", "models/gemma-3-27b-it") == Price(0.0, 0.0)
    assert budget.price_of("openai", "google/gemma-3-27b-it") is None


def test_a_price_that_is_announced_holds_from_its_day_on():
    first, last = datetime.date(2026, 12, 31), datetime.date(2027, 1, 1)
    prices = [budget.price_of("gemini", "gemini-3.8-flash-001", day=day) for day in (first, last)]
    assert prices == [Price(0.75, 3.75, 0.075), Price(1.5, 7.5)]


def test_input_that_was_kept_costs_less_where_its_price_is_known():
    flash = budget.price_of("gemini", "gemini-3.8-flash", day=datetime.date(2026, 12, 1))
    assert flash is not None
    assert flash.cost(1000, 100, 800) == pytest.approx(flash.cost(200, 100) + 800 * 0.075e-6)
    lite = budget.price_of("gemini", "gemini-3.5-flash-lite")
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
