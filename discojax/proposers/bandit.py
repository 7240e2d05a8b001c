"""Which operator and which model to ask next: Thompson sampling on what each has gained.

Every choice is a function of the history and a seed, so a resumed run chooses as it did before.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from discojax.proposers import selection
from discojax.proposers.types import Scored

__all__ = ["REPAIRED", "choose", "gains", "operator_of"]

REPAIRED = "+repair"
"""What an operator's name ends with if the gate's reason was shown to the model once."""

_MEMORY = 0.98  # what a trial weighs less for each later one of its arm: what pays changes with time
_PRIOR = (1.0, 2.0)  # of Beta: before anything is known, an arm is a little better than most turn out to be
_WORTHLESS = ("rejected", "failed", "duplicate", "unanswered")


def operator_of(name: str) -> str:
    """The operator that was asked for: of "refine+repair", "refine"."""
    return name.removesuffix(REPAIRED)


def gains(history: Sequence[Scored], by: Literal["operator", "model"]) -> dict[str, list[float]]:
    """What each arm's proposals gained, in order, from 0 to 1.

    A measured one gains the probability, by a normal law of the history's spread, that its score is above
    the best that was known before it, so 1/2 equals the best. Scores are of rung 0, the only one that all
    are measured at. One that cost a request and gave nothing new, or diverged at any rung, gains 0. What
    waits to be measured does not count yet; that a server was silent is no operator's fault.
    """
    spread = _spread(history)
    best = -math.inf
    found: dict[str, list[float]] = {}
    for past in history:
        arm = operator_of(past.operator) if by == "operator" else past.model
        score = past.common_score
        if past.status == "ok" and score is not None and math.isfinite(score):
            if math.isfinite(best):
                found.setdefault(arm, []).append(statistics.NormalDist(best, spread).cdf(score))
            best = max(best, score)
        elif past.status in _WORTHLESS and not (by == "operator" and past.status == "unanswered"):
            found.setdefault(arm, []).append(0.0)
    return found


def _spread(history: Sequence[Scored]) -> float:
    """The median distance of a score from the median, at least what noise can tell apart."""
    known = (p.common_score for p in history if p.status == "ok")
    scores = [score for score in known if score is not None and math.isfinite(score)]
    if not scores:
        return 1.0
    middle = statistics.median(scores)
    distance = statistics.median(abs(score - middle) for score in scores)
    return max(distance, *selection.resolutions(history).values(), 1e-9)


def choose(arms: Sequence[str], gained: Mapping[str, Sequence[float]], rng: random.Random) -> str:
    """One of `arms`: the best of a draw from what is believed of each.

    The belief is Beta's, of gains as fractions of a success; older trials of an arm weigh less, so one
    that stopped paying is left and one that was unlucky is tried again.
    """
    drawn: dict[str, float] = {}
    for arm in arms:
        wins, losses = _PRIOR
        weight = 1.0
        for gain in reversed(gained.get(arm, ())):
            wins += weight * gain
            losses += weight * (1 - gain)
            weight *= _MEMORY
        drawn[arm] = rng.betavariate(wins, losses)
    return max(arms, key=lambda arm: drawn[arm])
