"""What is said of held-out pairs: means over prompts, and intervals that can be true."""

import numpy as np
import pytest

from discojax.data.pairs import Pairs
from discojax.data.preferences import Prepared
from discojax.search.held_out import measure
from discojax.search.statistics import bootstrapped


def measured(margins, prompts=None, **settings):
    margins = np.asarray(margins, np.float32)
    zeros, ids = np.zeros(len(margins), np.float32), np.zeros((len(margins), 4), np.int32)
    lengths = np.ones(len(margins), np.int32)
    prompts = np.arange(len(margins)) if prompts is None else np.asarray(prompts)
    pairs = Pairs(ids, ids, lengths, lengths, lengths, zeros, zeros)
    given = {"beta": 0.1, "confidence": 0.95, "rng": np.random.default_rng(0), "replicates": 500, **settings}
    return measure(Prepared(pairs, prompts.astype(np.uint64), {}, "plain"), margins, zeros, **given)


@pytest.mark.parametrize("margins", [[1, -1, -1, -1, -1], [1, 1, -1], [1, -1], [3, 2, 1, 4, -1, 5]])
def test_an_accuracy_is_a_share_and_so_are_its_bounds(margins):
    found = measured(margins)
    low, high = found.accuracy_interval
    assert found.accuracy == np.mean(np.asarray(margins) > 0)
    assert 0 <= low < found.accuracy < high <= 1
    assert found.margin_interval[0] < found.margin < found.margin_interval[1]


def test_nothing_that_varied_is_not_certainty():
    # Clopper and Pearson's: 0.025 ** (1 / 20).
    assert measured([1] * 20).accuracy_interval == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert measured([-1] * 20).accuracy_interval == pytest.approx((0.0, 0.1684), abs=1e-4)


def test_pairs_of_one_prompt_are_one_observation():
    apart, together = measured([1, -1, 1, -1]), measured([1, -1] * 50, [0, 1] * 50)
    assert (together.pairs, together.prompts, together.accuracy) == (100, 2, 0.5)
    assert together.accuracy_interval == (0, 1)
    assert apart.prompts == 4
    alone = measured([1, -1], [7, 7])
    assert (alone.prompts, alone.accuracy) == (1, 0.5) and np.isnan(alone.accuracy_interval).all()


@pytest.mark.parametrize("prompts", [8, 20, 40])
def test_its_intervals_cover_what_they_say(prompts):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        low, high = bootstrapped(rng.normal(size=prompts), rng=rng, replicates=300, confidence=0.9)
        covered += low <= 0 <= high
    assert 0.86 < covered / 600 < 0.94
