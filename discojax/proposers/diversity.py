"""MAP-Elites: the best loss of every kind, so that a search keeps more than one idea alive.

A kind is how hard a loss still pushes pairs that are already right, how hard it pushes those that are
wrong, what it looks at besides the margin, and how large it is. (Mouret & Clune, 2015, arXiv:1504.04909.)
Language models are shown such a few, and given them as parents. Evolution keeps its tournaments: with
parents from this grid it came no nearer to six hidden losses, whose distance was the score.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from discojax.candidates import MARGINS, Behaviour, Node, behaviour
from discojax.candidates.graph import arguments, batch_coupled, complexity
from discojax.objectives.types import ARGUMENTS
from discojax.proposers.selection import Member

__all__ = ["Kind", "curve", "diverse", "elites", "kind"]

_PUSHES = (-0.25, 0.25, 0.75, 1.25, 1.8, 2.5)  # bounds of the slope down, in units of the mean slope
_SIZES = (6, 12, 24, 48)  # operators and constants
_FAR = 2.0  # of the scaled margin: where a pair counts as right, and its negative as wrong


class Kind(NamedTuple):
    """A cell of the grid; each number is the place among its bounds."""

    wrong: int
    right: int
    inputs: str
    size: int


@functools.lru_cache(maxsize=8192)
def curve(graph: Node) -> Behaviour:
    """The loss and its slope along the margin, computed once."""
    return behaviour(graph)


@functools.lru_cache(maxsize=8192)
def kind(graph: Node) -> Kind:
    """The cell of a loss."""
    slopes = np.nan_to_num(curve(graph).slopes, posinf=0.0, neginf=0.0)
    push = -slopes / max(float(np.abs(slopes).mean()), 1e-12)
    wrong, right = (float(push[side].mean()) for side in (-_FAR >= MARGINS, _FAR <= MARGINS))
    read = set(arguments(graph))
    inputs = "".join(
        letter
        for letter, there in (
            ("r", bool(read & set(ARGUMENTS[2:4]))),
            ("n", bool(read & set(ARGUMENTS[5:7]))),
            ("t", "progress" in read),
            ("b", batch_coupled(graph)),
        )
        if there
    )
    place = bisect.bisect_left
    return Kind(place(_PUSHES, wrong), place(_PUSHES, right), inputs, place(_SIZES, complexity(graph)))


def elites(members: Iterable[Member]) -> dict[Kind, Member]:
    """The best scored member of each kind, best kind first; of equals the first."""
    grid: dict[Kind, Member] = {}
    for member in members:
        if member.score is None:
            continue
        cell = kind(member.graph)
        held = grid.get(cell)
        if held is None or member.place > held.place:
            grid[cell] = member
    return dict(sorted(grid.items(), key=lambda item: item[1].place, reverse=True))


def diverse(members: Sequence[Member], count: int, besides: Sequence[Member] = ()) -> list[Member]:
    """`count` elites that differ most from `besides` and from each other, by their curves.

    Each next one is the elite farthest from all before it; the first, without `besides`, is the best.
    """
    pool = [m for m in elites(members).values() if m.graph not in {b.graph for b in besides}]
    chosen: list[Member] = []
    while pool and len(chosen) < count:
        shown = [curve(m.graph).descriptor for m in (*besides, *chosen)]

        def gap(member: Member, shown: list[np.ndarray] = shown) -> float:
            own = curve(member.graph).descriptor
            return min((float(np.square(own - other).mean()) for other in shown), default=0.0)

        farthest = max(pool, key=gap)
        chosen.append(farthest)
        pool.remove(farthest)
    return chosen
