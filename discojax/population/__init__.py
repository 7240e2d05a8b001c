"""The population: many policies in training side by side, as one compiled program.

A lane is one policy with its objective, seed, beta, learning rate and budget. `make_programs`
prepares the compiled functions once, `make_engine` gives them weights and data, `train` takes jobs
as lanes come free and yields each as it ends. Objectives are data to the compiled step, so a new
one compiles nothing; lanes are spread over the mesh's `lane` axis and never wait for one another.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discojax.population.backend import choose_implementation, configure_backend
    from discojax.population.engine import (
        Engine,
        Finished,
        LaneMetrics,
        Programs,
        Progress,
        make_engine,
        make_programs,
        train,
    )
    from discojax.population.lanes import Job, LaneSettings, LaneState
    from discojax.population.mesh import make_mesh
    from discojax.population.optimizer import OptimizerConfig
    from discojax.population.order import batch_indices
    from discojax.population.step import StepConfig, StepMetrics

__all__ = [
    "Engine",
    "Finished",
    "Job",
    "LaneMetrics",
    "LaneSettings",
    "LaneState",
    "OptimizerConfig",
    "Programs",
    "Progress",
    "StepConfig",
    "StepMetrics",
    "batch_indices",
    "choose_implementation",
    "configure_backend",
    "make_engine",
    "make_mesh",
    "make_programs",
    "train",
]

_LAZY = {
    "Engine": "engine",
    "Finished": "engine",
    "Job": "lanes",
    "LaneMetrics": "engine",
    "LaneSettings": "lanes",
    "LaneState": "lanes",
    "OptimizerConfig": "optimizer",
    "Programs": "engine",
    "Progress": "engine",
    "StepConfig": "step",
    "StepMetrics": "step",
    "batch_indices": "order",
    "choose_implementation": "backend",
    "configure_backend": "backend",
    "make_engine": "engine",
    "make_mesh": "mesh",
    "make_programs": "engine",
    "train": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
