"""Tasks: a policy to start from, preference pairs to train on, prompts and a reward to measure with.

`build` makes the packaged ones, in which a policy learns to continue film reviews so that they come
out positive: `rotten_tomatoes`, where the search runs, and `imdb`, which stays held out. Prompts to
search, select and report on are disjoint, and the rewards that label, score the search and report
are trained on disjoint texts. `make_observe` and `make_judge` say how a trained policy does.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from discojax.tasks.measure import (
        Margins,
        Measurement,
        Observed,
        Sampler,
        make_judge,
        make_margins,
        make_observe,
        make_sampler,
    )
    from discojax.tasks.reviews import SPLITS, build
    from discojax.tasks.rewards import RewardModel
    from discojax.tasks.sampled_pairs import sample_pairs
    from discojax.tasks.types import (
        OwnData,
        PretrainedConfig,
        Prompts,
        Reward,
        SamplingConfig,
        Task,
        TaskConfig,
        assert_disjoint,
    )

__all__ = [
    "SPLITS",
    "Margins",
    "Measurement",
    "Observed",
    "OwnData",
    "PretrainedConfig",
    "Prompts",
    "Reward",
    "RewardModel",
    "Sampler",
    "SamplingConfig",
    "Task",
    "TaskConfig",
    "assert_disjoint",
    "build",
    "make_judge",
    "make_margins",
    "make_observe",
    "make_sampler",
    "sample_pairs",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "types": [
            "OwnData",
            "PretrainedConfig",
            "Prompts",
            "Reward",
            "SamplingConfig",
            "Task",
            "TaskConfig",
            "assert_disjoint",
        ],
        "reviews": ["SPLITS", "build"],
        "measure": [
            "Margins",
            "Measurement",
            "Observed",
            "Sampler",
            "make_judge",
            "make_margins",
            "make_observe",
            "make_sampler",
        ],
        "rewards": ["RewardModel"],
        "sampled_pairs": ["sample_pairs"],
    },
)
