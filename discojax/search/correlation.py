"""Whether one score orders objectives as another does: does the search measure the right thing?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Correlation", "rank_correlation"]


class Correlation(NamedTuple):
    """Spearman's rank correlation of so many `pairs` with its interval; all NaN below four pairs."""

    value: float
    low: float
    high: float
    pairs: int


def rank_correlation(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Correlation:
    """How well one score orders what the other orders, ties sharing their mean rank.

    The interval is Fisher's with Bonett and Wright's variance for ranks, (1 + r² / 2) / (n - 3)
    ("Sample size requirements for estimating Pearson, Kendall and Spearman correlations", 2000). A
    pair of which one is not finite is left out.

    >>> rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).value.round(6)
    np.float64(0.8)
    """
    from scipy.stats import norm, rankdata

    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    usable = np.isfinite(a) & np.isfinite(b)
    a, b = rankdata(a[usable]), rankdata(b[usable])
    count = len(a)
    if count < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(np.nan, np.nan, np.nan, count)
    value = np.corrcoef(a, b)[0, 1]
    half = norm.ppf(0.5 + confidence / 2) * np.sqrt((1 + value**2 / 2) / (count - 3))
    center = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return Correlation(value, float(np.tanh(center - half)), float(np.tanh(center + half)), count)
