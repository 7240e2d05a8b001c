"""What a policy learnt, on pairs that nothing trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from discojax.data.preferences import Prepared
from discojax.search.statistics import interval, mean

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
) -> HeldOut:
    """Accuracy and margin of held-out pairs, at least one, whose completions have these log-probabilities.

    Args:
      held_out: the pairs, with those of the reference.
      chosen, rejected: under the policy, in nats.
      beta: of the loss.
      confidence: of the intervals, which are over prompts: pairs of one prompt are one observation.
    """
    pairs = held_out.pairs
    margins = (chosen - pairs.reference_chosen) - (rejected - pairs.reference_rejected)
    accuracy, accuracy_interval, prompts = _by_prompt(margins > 0, held_out.prompts, confidence)
    margin, margin_interval, _ = _by_prompt(beta * margins, held_out.prompts, confidence)
    return HeldOut(len(margins), prompts, accuracy, accuracy_interval, margin, margin_interval)


def _by_prompt(
    values: np.ndarray, prompts: np.ndarray, confidence: float
) -> tuple[float, tuple[float, float], int]:
    _, place = np.unique(prompts, return_inverse=True)
    means = np.bincount(place, values.astype(np.float64)) / np.bincount(place)
    if len(means) < 2:
        return float(means.mean()), (math.nan, math.nan), len(means)
    estimate = mean(means[None])
    return float(estimate.value), interval(estimate, confidence), len(means)
