"""The population: many policies in training side by side, as one compiled program.

A lane is one policy with its objective, seed, beta, learning rate and budget. `make_programs`
prepares the compiled functions once, `make_engine` gives them weights and data, a `Station` says how
policies are measured there, and `train` takes jobs as lanes come free and yields each as it ends.
Objectives are data to the compiled step, so a new one compiles nothing; lanes are spread over the
mesh's `lane` axis and never wait for one another.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from discojax.population.backend import choose_implementation, configure_backend
    from discojax.population.engine import Engine, Programs, make_engine, make_programs
    from discojax.population.lanes import Job, LaneSettings, LaneState
    from discojax.population.mesh import make_mesh
    from discojax.population.operations import Station, perform
    from discojax.population.optimizer import OptimizerConfig
    from discojax.population.order import batch_indices
    from discojax.population.step import StepConfig, StepMetrics
    from discojax.population.training import WAITING, Finished, LaneMetrics, Progress, Waiting, train

__all__ = [
    "WAITING",
    "Engine",
    "Finished",
    "Job",
    "LaneMetrics",
    "LaneSettings",
    "LaneState",
    "OptimizerConfig",
    "Programs",
    "Progress",
    "Station",
    "StepConfig",
    "StepMetrics",
    "Waiting",
    "batch_indices",
    "choose_implementation",
    "configure_backend",
    "make_engine",
    "make_mesh",
    "make_programs",
    "perform",
    "train",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "engine": ["Engine", "Programs", "make_engine", "make_programs"],
        "training": ["WAITING", "Finished", "LaneMetrics", "Progress", "Waiting", "train"],
        "lanes": ["Job", "LaneSettings", "LaneState"],
        "operations": ["Station", "perform"],
        "optimizer": ["OptimizerConfig"],
        "step": ["StepConfig", "StepMetrics"],
        "order": ["batch_indices"],
        "backend": ["choose_implementation", "configure_backend"],
        "mesh": ["make_mesh"],
    },
)
