"""How much of what texts say is said once: distinct-n (Li et al., 2016), and what each text does to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

__all__ = ["distinct", "distinct_by_text"]


def distinct(texts: Sequence[str], size: int) -> float:
    """Different n-grams per n-gram over all texts: 1 if nothing is said twice, NaN if nothing is said.

    >>> distinct(["a fine film", "a fine day"], 1), distinct(["", ""], 1)
    (0.6666666666666666, nan)
    """
    grams = _grams(texts, size)
    every = [gram for own in grams for gram in own]
    return len(set(every)) / len(every) if every else float("nan")


def distinct_by_text(texts: Sequence[str], size: int) -> Float[np.ndarray, " texts"]:
    """What each text does to `distinct`, which is their mean: the jackknife's pseudo-values, about it.

    A bootstrap would repeat texts, and so find fewer different n-grams than any new texts have. NaN where
    there is no n-gram.
    """
    whole, grams = distinct(texts, size), _grams(texts, size)
    owners = Counter(gram for own in grams for gram in set(own))
    others = sum(map(len, grams)) - np.asarray([len(own) for own in grams])
    alone = np.asarray([sum(owners[gram] == 1 for gram in set(own)) for own in grams])
    without = np.where(others > 0, (len(owners) - alone) / np.maximum(others, 1), whole)
    return np.asarray(whole - (len(texts) - 1) * (without - without.mean()))


def _grams(texts: Sequence[str], size: int) -> list[list[tuple[str, ...]]]:
    words = [text.split() for text in texts]
    return [list(zip(*(own[i:] for i in range(size)), strict=False)) for own in words]
