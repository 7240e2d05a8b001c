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

__all__ = ["Member", "library", "members", "operator_weights", "read", "resolutions", "tournament"]

_TRIALS, _WINS = 4.0, 1.0  # of every operator before its first: one in four is an improvement
_LEAST_RATE = 0.05


@dataclass(frozen=True)
class Member:
    """A loss that may be a parent; `score`, of `rung`, is None if it was not measured."""

    name: str
    graph: Node
    score: float | None = None
    rung: int = 0

    @property
    def place(self) -> tuple[int, float]:
        """Higher is better: by rung, as successive halving orders, then by score."""
        return (-1, 0.0) if self.score is None else (self.rung, self.score)


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
            pool[graph] = Member(past.name, graph, past.score, past.rung)
    for seed in seeds:
        pool.setdefault(seed.graph, seed)
    return list(pool.values())


def resolutions(history: Sequence[Scored]) -> dict[int, float]:
    """By rung, how far scores must lie apart to be told from each other: half the usual half-width.

    A whole half-width of their intervals would take every young candidate for a tie. A rung with no finite
    interval is not there.
    """
    widths: dict[int, list[float]] = {}
    for past in history:
        if past.status == "ok" and past.interval is not None:
            width = past.interval[1] - past.interval[0]
            if math.isfinite(width):
                widths.setdefault(past.rung, []).append(width)
    return {rung: statistics.median(found) / 4 for rung, found in widths.items()}


def tournament(pool: Sequence[Member], size: int, noise: Mapping[int, float], rng: random.Random) -> Member:
    """The best of `size` drawn at random; of those of its rung within that rung's `noise`, the simplest."""
    drawn = [rng.choice(pool) for _ in range(size)]
    rung, score = max(member.place for member in drawn)
    level = [member for member in drawn if member.place >= (rung, score - noise.get(rung, 0.0))]
    return min(level, key=lambda member: (complexity(member.graph), -member.place[1]))


def operator_weights(history: Sequence[Scored], prior: Mapping[str, float]) -> dict[str, float]:
    """Prior weights times each operator's rate of improvement, counted with a few imagined trials.

    A child improves if it scores above its best parent; one without scored parents, if it scores
    above the median, at the rung that all are measured at. Rejected and failed children are trials;
    duplicates, which cost nothing, and children not measured yet are not.
    """
    scores = {p.name: p.common_score for p in history if p.status == "ok" and p.common_score is not None}
    middle = statistics.median(scores.values()) if scores else 0.0
    wins, trials = dict.fromkeys(prior, _WINS), dict.fromkeys(prior, _TRIALS)
    for past in history:
        if past.operator not in prior or past.status in ("duplicate", "pending"):
            continue
        trials[past.operator] += 1
        bar = max((scores[name] for name in past.parents if name in scores), default=middle)
        score = past.common_score
        wins[past.operator] += past.status == "ok" and score is not None and score > bar
    return {name: weight * max(wins[name] / trials[name], _LEAST_RATE) for name, weight in prior.items()}
