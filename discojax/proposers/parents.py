"""What a language model's operators may be applied to: drawn from the history, as a function of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from discojax.proposers import diversity, selection
from discojax.proposers.selection import Member
from discojax.proposers.types import Scored

__all__ = ["draw", "possible"]

_TOURNAMENT = 4
_EXPLORE = 0.4  # how often a parent is the elite of some kind instead of a tournament's winner
_RECENT = 6  # failures that may still be fixed


def possible(history: Sequence[Scored]) -> tuple[str, ...]:
    """The operators that have something to work on, in the order of the templates."""
    grid = diversity.elites(_scored(history))
    operators = ["fresh"]
    if grid:
        operators += ["refine", "simplify", "tune"]
    if len(grid) > 1:
        operators.insert(2, "crossover")
    if _to_fix(history):
        operators.append("fix")
    return tuple(operators)


def draw(history: Sequence[Scored], operator: str, rng: random.Random) -> list[Scored]:
    """The parents of one request: none, one, or two of different kinds."""
    if operator == "fresh":
        return []
    if operator == "fix":
        return [rng.choice(_to_fix(history))]
    latest = {past.name: past for past in history if past.status == "ok"}
    scored = _scored(history)
    grid = diversity.elites(scored)
    noise = selection.resolutions(history)

    def parent() -> Member:
        if rng.random() < _EXPLORE:
            return rng.choice(list(grid.values()))
        return selection.tournament(scored, _TOURNAMENT, noise, rng)

    first = parent()
    if operator != "crossover":
        return [latest[first.name]]
    others = [m for kind, m in grid.items() if kind != diversity.kind(first.graph)]
    # The better half of the kinds, as `elites` has them in order.
    second = rng.choice(others[: max(1, len(others) // 2)])
    return [latest[first.name], latest[second.name]]


def _scored(history: Sequence[Scored]) -> list[Member]:
    return [member for member in selection.members(history, ()) if member.score is not None]


def _to_fix(history: Sequence[Scored]) -> list[Scored]:
    """Recent failures that are programs, so that they can be shown, and that nothing was made of yet."""
    used = {name for past in history for name in past.parents}
    failed = [
        past
        for past in history
        if past.status in ("rejected", "failed")
        and past.name not in used
        and selection.read(past.source) is not None
    ]
    return failed[-_RECENT:]
