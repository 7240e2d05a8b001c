"""What a policy learnt, on pairs that nothing trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from discojax.data.preferences import Prepared
from discojax.search.statistics import Estimate, bootstrapped
from discojax.search.winrate import rate_interval

__all__ = ["HeldOut", "measure"]


@dataclass(frozen=True)
class HeldOut:
    """What became of pairs that nothing trained on: means over prompts, each with an interval.

    Attributes:
      pairs, prompts: how many there are.
      accuracy: pairs whose chosen completion gained more on the reference than the rejected one.
      margin: beta times the difference of the two gains, in nats.
    """

    pairs: int
    prompts: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    margin: float
    margin_interval: tuple[float, float]


def measure(
    held_out: Prepared,
    chosen: Float[np.ndarray, " pairs"],
    rejected: Float[np.ndarray, " pairs"],
    *,
    beta: float,
    confidence: float,
    rng: np.random.Generator,
    replicates: int,
) -> HeldOut:
    """Accuracy and margin of held-out pairs, at least one, whose completions have these log-probabilities.

    Args:
      held_out: the pairs, with those of the reference.
      chosen, rejected: under the policy, in nats.
      beta: of the loss.
      confidence: of the intervals, which are over prompts: pairs of one prompt are one observation. Of a
        single prompt they are NaN.
      rng, replicates: of the bootstrap that they are from.
    """
    pairs = held_out.pairs
    margins = (chosen - pairs.reference_chosen) - (rejected - pairs.reference_rejected)
    _, place = np.unique(held_out.prompts, return_inverse=True)
    prompts = int(place.max()) + 1

    def over_prompts(values: np.ndarray) -> tuple[float, tuple[float, float]]:
        means = np.bincount(place, values.astype(np.float64)) / np.bincount(place)
        if prompts < 2:
            return float(means.mean()), (math.nan, math.nan)
        found = bootstrapped(means, rng=rng, replicates=replicates, confidence=confidence)
        return float(means.mean()), found

    accuracy, accuracy_interval = over_prompts(margins > 0)
    if prompts > 1 and accuracy in (0.0, 1.0):  # nothing varied, yet something could
        accuracy_interval = rate_interval(Estimate(accuracy, 0.0, 0.0, 1, prompts), confidence)
    return HeldOut(len(margins), prompts, accuracy, accuracy_interval, *over_prompts(beta * margins))
