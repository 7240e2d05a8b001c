"""What evolution learns from the past: who may be a parent, and which operators pay."""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discojax import objectives
from discojax.candidates import CandidateError, Node, from_function, parse
from discojax.candidates.graph import complexity
from discojax.proposers.types import Scored

__all__ = ["Member", "library", "members", "operator_weights", "read", "resolution", "tournament"]

_TRIALS, _WINS = 4.0, 1.0  # of every operator before its first: one in four is an improvement
_LEAST_RATE = 0.05


@dataclass(frozen=True)
class Member:
    """A loss that may be a parent; `score` is None if it was not measured."""

    name: str
    graph: Node
    score: float | None = None


@functools.lru_cache(maxsize=8192)
def read(source: str) -> Node | None:
    """The graph of candidate text, or None if it is not in the language. Nothing of it is run."""
    try:
        return parse(source).graph
    except CandidateError:
        return None


@functools.lru_cache(maxsize=16)
def library(names: tuple[str, ...]) -> tuple[Member, ...]:
    """Library losses by name.

    Raises:
      UserError: for a name that the library does not have.
    """
    return tuple(Member(name, from_function(objectives.get(name)).graph) for name in names)


def members(history: Sequence[Scored], seeds: Sequence[Member]) -> list[Member]:
    """The possible parents: every loss that was measured, and the seeds that were not yet.

    Of losses with the same program the last measurement counts.
    """
    pool: dict[Node, Member] = {}
    for past in history:
        graph = read(past.source) if past.status == "ok" else None
        if graph is not None and past.score is not None and math.isfinite(past.score):
            pool[graph] = Member(past.name, graph, past.score)
    for seed in seeds:
        pool.setdefault(seed.graph, seed)
    return list(pool.values())


def resolution(history: Sequence[Scored]) -> float:
    """How far two scores must lie apart to be told from each other: half the usual interval's half-width.

    A whole half-width would take every young candidate for a tie. 0 if no finite interval is known.
    """
    widths = [p.interval[1] - p.interval[0] for p in history if p.status == "ok" and p.interval is not None]
    widths = [width for width in widths if math.isfinite(width)]
    return statistics.median(widths) / 4 if widths else 0.0


def tournament(pool: Sequence[Member], size: int, noise: float, rng: random.Random) -> Member:
    """The best of `size` drawn at random; of those within `noise` of its score, the simplest."""
    drawn = [rng.choice(pool) for _ in range(size)]
    best = max(_score(member) for member in drawn)
    level = [member for member in drawn if _score(member) >= best - noise]
    return min(level, key=lambda member: (complexity(member.graph), -_score(member)))


def _score(member: Member) -> float:
    return -math.inf if member.score is None else member.score


def operator_weights(history: Sequence[Scored], prior: Mapping[str, float]) -> dict[str, float]:
    """Prior weights times each operator's rate of improvement, counted with a few imagined trials.

    A child improves if it scores above its best parent; one without scored parents, if it scores
    above the median. Rejected and failed children are trials; duplicates, which cost nothing, and
    children not measured yet are not.
    """
    scores = {p.name: p.score for p in history if p.status == "ok" and p.score is not None}
    middle = statistics.median(scores.values()) if scores else 0.0
    wins, trials = dict.fromkeys(prior, _WINS), dict.fromkeys(prior, _TRIALS)
    for past in history:
        if past.operator not in prior or past.status in ("duplicate", "pending"):
            continue
        trials[past.operator] += 1
        bar = max((scores[name] for name in past.parents if name in scores), default=middle)
        wins[past.operator] += past.status == "ok" and past.score is not None and past.score > bar
    return {name: weight * max(wins[name] / trials[name], _LEAST_RATE) for name, weight in prior.items()}
