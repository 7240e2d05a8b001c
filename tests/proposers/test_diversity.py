"""Kinds of losses, the best of each, and a few that differ."""

from __future__ import annotations

import random

import numpy as np

from discojax import objectives
from discojax.candidates import from_function, parse
from discojax.proposers import Scored, diversity, parents
from discojax.proposers.selection import Member


def member(name: str, score: float | None = 0.0) -> Member:
    return Member(name, from_function(objectives.get(name)).graph, score)


def test_kinds_tell_losses_apart_by_what_they_push_and_what_they_see():
    kinds = {
        name: diversity.kind(member(name).graph) for name in ("dpo", "ipo", "exp", "slic", "simpo", "orpo")
    }
    assert kinds["dpo"].right < kinds["simpo"].right or kinds["dpo"].inputs != kinds["simpo"].inputs
    assert kinds["ipo"].right == 0  # beyond its target it pushes back
    assert kinds["exp"].wrong > kinds["slic"].wrong  # the worse a pair, the harder
    assert "n" in kinds["simpo"].inputs and "r" not in kinds["simpo"].inputs
    assert len(set(kinds.values())) >= 5


def test_scaling_a_loss_leaves_its_kind():
    text = objectives.get("dpo").source.replace("return ", "return 7.0 * ")
    scaled, dpo = diversity.kind(parse(text).graph), diversity.kind(member("dpo").graph)
    assert (scaled.wrong, scaled.right, scaled.inputs) == (dpo.wrong, dpo.right, dpo.inputs)


def test_the_grid_keeps_the_best_of_each_kind_and_only_what_was_measured():
    grid = diversity.elites(
        [member("dpo", 0.1), member("ipo", 0.3), member("exp", None), member("slic", 0.2)]
    )
    assert [m.name for m in grid.values()] == ["ipo", "slic", "dpo"]
    better = Member("better", member("ipo").graph, 0.9)
    assert "better" in {m.name for m in diversity.elites([*grid.values(), better]).values()}
    assert "ipo" not in {m.name for m in diversity.elites([*grid.values(), better]).values()}
    raced = Member("raced", member("ipo").graph, -0.5, rung=1)  # halving ranks it before those it beat
    assert next(iter(diversity.elites([*grid.values(), better, raced]).values())).name == "raced"


def test_a_diverse_few_are_far_from_what_is_shown_and_from_each_other():
    pool = [member(name, 0.01 * i) for i, name in enumerate(objectives.names())]
    shown = [member("dpo")]
    few = diversity.diverse(pool, 4, shown)
    assert len({m.name for m in few}) == 4 and "dpo" not in {m.name for m in few}

    def spread(some: list[Member]) -> float:
        curves = [diversity.curve(m.graph).descriptor for m in (*shown, *some)]
        return min(np.square(a - b).mean() for i, a in enumerate(curves) for b in curves[:i])

    others = random.Random(0)
    assert spread(few) > max(spread(others.sample(pool[1:], 4)) for _ in range(20))
    assert diversity.diverse(pool, 4, shown) == few
    assert diversity.diverse([], 4) == []


def scored(name: str, score: float, **more) -> Scored:
    return Scored(name, objectives.get(name).source, "ok", score, **more)


def test_what_may_be_asked_for_depends_on_what_there_is():
    assert parents.possible([]) == ("fresh",)
    assert parents.possible([scored("dpo", 0.0)]) == ("fresh", "refine", "simplify", "tune")
    two = [scored("dpo", 0.0), scored("ipo", 0.1)]
    assert "crossover" in parents.possible(two) and "fix" not in parents.possible(two)
    broken = Scored("broken", objectives.get("exp").source, "failed", reason="1 of 2 lanes diverged")
    assert "fix" in parents.possible([*two, broken])
    unreadable = Scored("broken", "import os", "rejected", reason="syntax")
    assert "fix" not in parents.possible([*two, unreadable])
    fixed = Scored("fixed", "", "pending", parents=("broken",))
    assert "fix" not in parents.possible([*two, broken, fixed])


def test_parents_are_mostly_good_and_of_several_kinds():
    past = [
        scored(name, 0.1 * i) for i, name in enumerate(("dpo", "ipo", "exp", "slic", "simpo", "discopop"))
    ]
    drawn = [parents.draw(past, "refine", random.Random(seed))[0].name for seed in range(200)]
    counts = {name: drawn.count(name) for name in {p.name for p in past}}
    assert counts["discopop"] == max(counts.values()) and min(counts.values()) > 0
    for seed in range(50):
        first, second = parents.draw(past, "crossover", random.Random(seed))
        kinds = [diversity.kind(parse(p.source).graph) for p in (first, second)]
        assert kinds[0] != kinds[1]
