"""The compiled step that a config asks for: of a search's population, and of one policy's fine-tuning."""

from __future__ import annotations

from typing import Literal

from discojax.config import Config, Finetune
from discojax.errors import UserError
from discojax.population.optimizer import OptimizerConfig
from discojax.population.step import StepConfig
from discojax.population.training import chunk_for
from discojax.search.rungs import chunk_budgets

__all__ = ["finetune_step", "micro_batch", "population_step"]


def population_step(config: Config, implementation: Literal["map", "vmap"]) -> StepConfig:
    """Of `discover`, `train` and `evaluate`."""
    return StepConfig(
        batch=config.population.batch,
        chunk=chunk_for(chunk_budgets(config), config.population.chunk),
        implementation=implementation,
        dtype=config.population.dtype,
        accumulate=config.population.accumulate,
    )


def micro_batch(settings: Finetune, devices: int) -> int:
    """Pairs that one of so many devices takes at a time: up to `settings.micro_batch`, in equal parts.

    Raises:
      UserError: a batch has no equal share for each device.
    """
    if settings.batch % devices:
        raise UserError(
            f"finetune.batch ({settings.batch}) must be a multiple of the {devices} devices that share it, "
            f"{settings.data_devices} x {devices // settings.data_devices} (finetune.data_devices x "
            "model_devices): change one of the three."
        )
    share = settings.batch // devices
    return next(n for n in range(min(settings.micro_batch, share), 0, -1) if share % n == 0)


def finetune_step(settings: Finetune, devices: int) -> StepConfig:
    """Of `train --policy`, on so many devices, all of one lane.

    Raises:
      UserError: see `micro_batch`.
    """
    return StepConfig(
        batch=settings.batch,
        chunk=1,
        dtype=settings.dtype,
        accumulate=settings.batch // (micro_batch(settings, devices) * devices),
        optimizer=OptimizerConfig(
            weight_decay=settings.weight_decay, warmup=settings.warmup, decay=settings.decay
        ),
    )
