"""Distinct-n, and how sure it is of itself."""

from __future__ import annotations

import numpy as np
import pytest

from discojax.tasks.distinct import distinct, distinct_by_text


def test_distinct_counts_across_all_texts():
    assert distinct(["a b", "a b"], 1) == 0.5 and distinct(["a b", "a b"], 2) == 0.5
    assert distinct(["a b c", ""], 2) == 1.0


def test_what_distinct_varies_by_is_what_it_varies_by_over_new_texts():
    """Its error from 60 texts against its spread over 300 sets of them, of words as frequent as Zipf's."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 2001)
    words = np.asarray([f"w{i}" for i in range(2000)])

    def texts():
        return [
            " ".join(rng.choice(words, rng.integers(5, 25), p=weights / weights.sum())) for _ in range(60)
        ]

    for size in (1, 2):
        sets = [texts() for _ in range(300)]
        errors = [distinct_by_text(one, size).std(ddof=1) / np.sqrt(60) for one in sets]
        spread = np.std([distinct(one, size) for one in sets])
        assert 0.85 * spread <= np.mean(errors) <= 1.25 * spread
    one = sets[0]
    by_text = distinct_by_text(one, 2)
    assert by_text.mean() == pytest.approx(distinct(one, 2))
    without = np.asarray([distinct(one[:i] + one[i + 1 :], 2) for i in range(60)])
    np.testing.assert_allclose(np.diff(by_text), -59 * np.diff(without), atol=1e-9)
    assert np.isnan(distinct_by_text(["", " "], 1)).all()
