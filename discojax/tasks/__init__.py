"""Tasks: a policy to start from, preference pairs to train on, prompts and a reward to measure with.

`build` makes the packaged ones, in which a policy learns to continue film reviews so that they come
out positive: `rotten_tomatoes`, where the search runs, and `imdb`, which stays held out. Prompts to
search, select and report on are disjoint, and the rewards that label, score the search and report
are trained on disjoint texts. `make_sampler` and `make_measure` say how a trained policy does.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discojax.tasks.measure import (
        Measurement,
        Prompts,
        Sampler,
        SamplingConfig,
        make_measure,
        make_sampler,
    )
    from discojax.tasks.reviews import SPLITS, ReviewsConfig, ReviewsTask, build
    from discojax.tasks.rewards import RewardModel
    from discojax.tasks.sampled_pairs import sample_pairs

__all__ = [
    "SPLITS",
    "Measurement",
    "Prompts",
    "ReviewsConfig",
    "ReviewsTask",
    "RewardModel",
    "Sampler",
    "SamplingConfig",
    "build",
    "make_measure",
    "make_sampler",
    "sample_pairs",
]

_LAZY = {
    "SPLITS": "reviews",
    "Measurement": "measure",
    "Prompts": "measure",
    "ReviewsConfig": "reviews",
    "ReviewsTask": "reviews",
    "RewardModel": "rewards",
    "Sampler": "measure",
    "SamplingConfig": "measure",
    "build": "reviews",
    "make_measure": "measure",
    "make_sampler": "measure",
    "sample_pairs": "sampled_pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
