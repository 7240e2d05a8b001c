"""Racing: who goes on."""

from __future__ import annotations

import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.search.racing import judge, keep_best
from discojax.search.statistics import Samples
from discojax.search.trials import Contender, Measured

NAMES = ("dpo", "ipo", "slic", "exp", "cell")
ORIGINS = {"exp": "proposed", "cell": "proposed"}


@pytest.fixture(scope="module")
def contenders():
    return [
        Contender(name, candidates.from_function(objectives.get(name)), ORIGINS.get(name, "library"))
        for name in NAMES
    ]


def measured(gains: dict[str, float], seeds: int = 3) -> Measured:
    """Contenders whose rewards at KL 5 lie above SFT's 0.5 by what is given, on one beta; NaN diverged."""
    rng = np.random.default_rng(0)
    sft = 0.5 + rng.normal(0, 0.05, (seeds, 40))
    kl = np.full((1, seeds, 40), 5.0)
    samples = {
        name: Samples((sft + gain)[None] + rng.normal(0, 0.003, kl.shape), kl) for name, gain in gains.items()
    }
    return Measured(samples, sft.mean(0), sft)


def judged(gains: dict[str, float]):
    return judge(measured(gains), "dpo", budget=10.0, replicates=200, confidence=0.95, seed=0)


GAINS = {"dpo": 0.10, "ipo": 0.16, "slic": 0.14, "exp": 0.05, "cell": 0.02}


def names(kept) -> list[str]:
    return [contender.name for contender in kept]


def test_the_best_bounds_go_on_best_first(contenders):
    assert names(keep_best(contenders, judged(GAINS), 2)) == ["ipo", "slic"]
    assert names(keep_best(contenders[::-1], judged(GAINS), 2)) == ["ipo", "slic"]


def test_what_diverged_never_goes_on(contenders):
    comparisons = judged({**GAINS, "ipo": np.nan, "exp": np.nan})
    assert names(keep_best(contenders, comparisons, 5)) == ["slic", "dpo", "cell"]


def test_a_clear_gain_is_better_and_a_clear_loss_worse():
    verdicts = {name: c.verdict for name, c in judged(GAINS).items()}
    assert verdicts == {"dpo": "baseline", "ipo": "better", "slic": "better", "exp": "worse", "cell": "worse"}
