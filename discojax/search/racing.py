"""Racing: rounds of growing effort, from which the best go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from discojax.search.laboratory import Contender, Measured
from discojax.search.statistics import Comparison, Samples, compare, lower_bound, survivors

__all__ = ["judge", "keep_best", "merged"]

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
    contenders: Sequence[Contender],
    comparisons: Mapping[str, Comparison],
    keep: int,
    *,
    always: Sequence[str],
) -> list[Contender]:
    """The `keep` highest lower confidence bounds of the difference to the baseline, and `always`.

    What diverged everywhere does not go on. Order is best first.
    """
    names = [contender.name for contender in contenders]
    bounds = [_bound(comparisons[name]) for name in names]
    best = [names[i] for i in survivors(bounds, names, keep)]
    best += [name for name in always if name in names and name not in best]
    by_name = {contender.name: contender for contender in contenders}
    return [by_name[name] for name in best]


def _bound(comparison: Comparison) -> float:
    if comparison.verdict == "failed":
        return float("nan")
    return 0.0 if comparison.verdict == "baseline" else lower_bound(comparison.difference, _BELIEF)


def merged(first: Measured, second: Measured) -> Measured:
    """Two measurements of the same round, of different contenders."""
    samples: dict[str, Samples] = {**first.samples, **second.samples}
    return Measured(samples, first.sft, first.sft_by_seed)
