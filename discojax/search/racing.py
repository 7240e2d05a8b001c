"""Racing: rounds of growing effort, from which the best go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from discojax.search.statistics import Comparison, compare, lower_bound, survivors
from discojax.search.trials import Contender, Measured

__all__ = ["judge", "keep_best"]

_BELIEF = 0.8  # of the bound that racing ranks by: with two seeds, 0.95 would rank by luck in the error


def judge(
    measured: Measured, baseline: str, *, budget: float, replicates: int, confidence: float, seed: int
) -> dict[str, Comparison]:
    """Every contender's frontier against the baseline's, on the same seeds and prompts."""
    return compare(
        measured.samples,
        measured.samples[baseline],
        measured.sft,
        budget,
        rng=np.random.default_rng(seed),
        replicates=replicates,
        confidence=confidence,
    )


def keep_best(
    contenders: Sequence[Contender], comparisons: Mapping[str, Comparison], keep: int
) -> list[Contender]:
    """The `keep` highest lower confidence bounds of the difference to the baseline, best first.

    What diverged everywhere does not go on.

    Args:
      contenders: those of the round.
      comparisons: of each with the baseline.
      keep: how many go on.
    """
    names = [contender.name for contender in contenders]
    bounds = [_bound(comparisons[name]) for name in names]
    return [contenders[i] for i in survivors(bounds, names, keep)]


def _bound(comparison: Comparison) -> float:
    if comparison.verdict == "failed":
        return float("nan")
    return 0.0 if comparison.verdict == "baseline" else lower_bound(comparison.difference, _BELIEF)
