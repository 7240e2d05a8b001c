"""What is learned from the past: parents, ties within the noise, operators that pay."""

from __future__ import annotations

import random

import pytest

from discojax import objectives
from discojax.candidates import from_function
from discojax.proposers import Scored, selection
from discojax.proposers.selection import Member

PRIOR = {"mutate": 2.0, "mix": 1.0}


def scored(name: str, score: float | None, status="ok", **fields) -> Scored:
    return Scored(name, objectives.get("dpo").source, status, score, **fields)


def member(name: str, score: float | None, rung: int = 0) -> Member:
    return Member(name, from_function(objectives.get(name)).graph, score, rung)


def test_without_a_past_the_prior_holds_in_proportion():
    weights = selection.operator_weights([], PRIOR)
    assert weights["mutate"] == pytest.approx(2 * weights["mix"])


def test_an_operator_that_improves_on_its_parents_gains_weight():
    past = [scored("p", 1.0)]
    past += [scored(f"a{i}", 1.5, parents=("p",), operator="mix") for i in range(5)]
    past += [scored(f"b{i}", 0.5, parents=("p",), operator="mutate") for i in range(5)]
    weights = selection.operator_weights(past, PRIOR)
    assert weights["mix"] == pytest.approx(6 / 9)
    assert weights["mutate"] == pytest.approx(2 * 1 / 9)


def test_failures_count_against_an_operator_and_duplicates_do_not():
    rejected = selection.operator_weights([scored("a", None, "rejected", operator="mix")], PRIOR)
    duplicate = selection.operator_weights([scored("a", None, "duplicate", operator="mix")], PRIOR)
    assert rejected["mix"] < duplicate["mix"] == selection.operator_weights([], PRIOR)["mix"]


def test_no_operator_dies_out():
    past = [scored(f"a{i}", None, "failed", operator="mix") for i in range(1000)]
    assert selection.operator_weights(past, PRIOR)["mix"] == pytest.approx(0.05)


def test_the_tournament_takes_the_best():
    pool = [member("dpo", 0.0), member("orpo", 1.0)]
    assert selection.tournament(pool, 50, {}, random.Random(0)).name == "orpo"


def test_the_tournament_goes_by_rung_first_and_by_the_noise_of_that_rung():
    pool = [member("dpo", 0.5, 1), member("ipo", 0.6, 1), member("slic", 0.9), member("exp", None)]
    for noise, best in (({}, "ipo"), ({0: 1.0}, "ipo"), ({1: 0.2}, "dpo")):
        assert selection.tournament(pool, 50, noise, random.Random(0)).name == best


def test_within_the_noise_the_simpler_wins():
    pool = [member("slic", 0.95), member("orpo", 1.0)]
    assert selection.tournament(pool, 50, {0: 0.1}, random.Random(0)).name == "slic"
    assert selection.tournament(pool, 50, {0: 0.01}, random.Random(0)).name == "orpo"


def test_resolution_is_of_the_scores_that_have_intervals():
    past = [
        scored("a", 1.0, interval=(0.8, 1.2)),
        scored("b", 1.0),
        scored("c", 1.0, interval=(0.0, float("inf"))),
    ]
    past += [scored("d", 1.0, interval=(0.9, 1.1), rung=1)]
    assert selection.resolutions(past) == {0: pytest.approx(0.1), 1: pytest.approx(0.05)}
    assert selection.resolutions([scored("b", 1.0)]) == {}


def test_children_and_parents_are_compared_where_both_were_measured():
    """A child of rung 0 is no worse than a parent whose score of a longer training is a higher number."""
    parent = scored("p", 3.0, rung=1, first_score=1.0)
    better = selection.operator_weights([parent, scored("c", 2.0, parents=("p",), operator="mix")], PRIOR)
    same = [parent, scored("c", 9.0, parents=("p",), operator="mix", rung=1, first_score=0.5)]
    assert better["mix"] == pytest.approx(2 / 5)
    assert selection.operator_weights(same, PRIOR)["mix"] == pytest.approx(1 / 5)


def test_one_program_is_one_member_with_its_last_score():
    past = [scored("first", 0.1), scored("second", 0.3)]
    pool = selection.members(past, [])
    assert [(m.name, m.score) for m in pool] == [("second", 0.3)]


def test_measured_library_losses_are_not_there_twice():
    seeds = selection.library(("slic", "exp"))
    past = [Scored("slic", objectives.get("slic").source, "ok", 0.4)]
    assert [(m.name, m.score) for m in selection.members(past, seeds)] == [("slic", 0.4), ("exp", None)]
