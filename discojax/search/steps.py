"""The compiled step that a config asks for: of a search's population, and of one policy's fine-tuning."""

from __future__ import annotations

from typing import Literal

from discojax.config import Config, Finetune
from discojax.population.optimizer import OptimizerConfig
from discojax.population.step import StepConfig
from discojax.population.training import chunk_for
from discojax.search.rungs import chunk_budgets

__all__ = ["finetune_step", "population_step"]


def population_step(config: Config, implementation: Literal["map", "vmap"]) -> StepConfig:
    """Of `discover`, `train` and `evaluate`."""
    return StepConfig(
        batch=config.population.batch,
        chunk=chunk_for(chunk_budgets(config), config.population.chunk),
        implementation=implementation,
        dtype=config.population.dtype,
        accumulate=config.population.accumulate,
    )


def finetune_step(settings: Finetune) -> StepConfig:
    """Of `train --policy`."""
    return StepConfig(
        batch=settings.batch,
        chunk=1,
        dtype=settings.dtype,
        accumulate=settings.batch // (settings.micro_batch * settings.data_devices),
        optimizer=OptimizerConfig(
            weight_decay=settings.weight_decay, warmup=settings.warmup, decay=settings.decay
        ),
    )
