"""The bandit learns what pays, keeps trying the rest, and repeats itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from discojax.proposers import Scored, bandit


def one(score: float | None, operator: str = "refine", status="ok", model: str = "m", **more) -> Scored:
    return Scored(f"n{score}", "", status, score, operator=operator, model=model, **more)


def test_gains_are_over_the_best_that_was_known_before():
    past = [one(0.0, "library"), one(0.2), one(0.1), one(0.3, "fresh"), one(None, "fresh", "rejected")]
    gained = bandit.gains(past, "operator")
    assert gained["refine"][0] > 0.9 and gained["refine"][1] < 0.5  # the second is below the first
    assert gained["fresh"][0] > 0.5 and gained["fresh"][1] == 0.0
    assert "library" not in gained  # the first measured has nothing to be compared with
    assert bandit.gains(past, "model")["m"] == gained["refine"] + gained["fresh"]


def test_what_waits_does_not_count_and_what_cost_a_request_for_nothing_does():
    past = [one(0.0), one(None, status="pending")]
    assert bandit.gains(past, "operator") == {}
    for status in ("rejected", "failed", "duplicate", "unanswered"):
        assert bandit.gains([*past, one(None, status=status)], "model") == {"m": [0.0]}
        fault = {} if status == "unanswered" else {"refine": [0.0]}
        assert bandit.gains([*past, one(None, status=status)], "operator") == fault


def test_a_repaired_proposal_is_credited_to_its_operator():
    past = [one(0.0), one(1.0, "refine" + bandit.REPAIRED)]
    assert set(bandit.gains(past, "operator")) == {"refine"}


def test_a_score_within_the_noise_of_the_best_is_an_even_chance():
    past = [one(0.5, interval=(-1.5, 2.5)), one(0.5 + 1e-6, interval=(-1.5, 2.5))]
    assert bandit.gains(past, "operator")["refine"][0] == pytest.approx(0.5, abs=1e-3)


def test_gains_are_of_the_rung_that_all_are_measured_at():
    """A longer training gives larger numbers: the parent's must not make all of its children worthless."""
    parent = one(5.0, "library", rung=1, first_score=0.0)
    gained = bandit.gains([one(-0.1, "library"), parent, one(0.3), one(0.2)], "operator")
    assert gained["refine"][0] > 0.9 and gained["refine"][1] < 0.5


def play(seed: int, rounds: int, means: dict[str, float], change: int | None = None) -> list[str]:
    """A search in small: each arm's children score so much above the best, with noise."""
    noise = random.Random(seed)
    past = [one(0.0, "library"), one(0.1, "library"), one(-0.1, "library")]
    chosen = []
    for turn in range(rounds):
        if turn == change:
            means = dict(zip(means, reversed(means.values()), strict=True))
        rng = random.Random(f"{seed} {len(past)}")
        arm = bandit.choose(tuple(means), bandit.gains(past, "operator"), rng)
        chosen.append(arm)
        past.append(one(noise.gauss(means[arm], 0.1), arm))
    return chosen


def test_it_converges_on_the_arm_that_pays():
    shares = []
    for seed in range(5):
        chosen = play(seed, 150, {"fresh": -0.6, "refine": -0.1, "crossover": -0.5})
        shares.append(Counter(chosen[75:])["refine"] / 75)
        assert set(chosen[:30]) == {"fresh", "refine", "crossover"}  # each is tried
    assert sum(shares) / 5 > 0.65  # of three arms


def test_it_leaves_an_arm_that_stopped_paying():
    chosen = play(1, 300, {"fresh": -0.6, "refine": -0.1}, change=120)
    assert Counter(chosen[60:120])["refine"] > 38 and Counter(chosen[240:])["fresh"] > 38  # of 60


def test_it_is_a_function_of_history_and_seed():
    assert play(3, 60, {"a": 0.0, "b": 0.1}) == play(3, 60, {"a": 0.0, "b": 0.1})
    assert play(3, 60, {"a": 0.0, "b": 0.1}) != play(4, 60, {"a": 0.0, "b": 0.1})
