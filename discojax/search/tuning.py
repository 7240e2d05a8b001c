"""What each objective is tuned to: every learning rate and beta, one seed, on prompts that do not report.

Every objective is given the same budget, because a loss's scale acts as a learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from discojax.config import Config
from discojax.search.display import Display
from discojax.search.frontier import area
from discojax.search.laboratory import Laboratory, measure
from discojax.search.rungs import TUNING, learning_rates, seeds
from discojax.search.trials import Contender, Trial

__all__ = ["Choice", "tune", "tuning_trials"]


class Choice(NamedTuple):
    """What tuning chose for an objective on other prompts and seeds than those that report."""

    learning_rate: float
    beta: float


def tuning_trials(config: Config, task: str, rung: int = TUNING) -> tuple[Trial, ...]:
    """The trial that chooses: one seed, on the prompts of the split `select`, or none."""
    if len(learning_rates(config)) * len(config.search.betas) == 1:
        return ()
    evaluation = config.evaluation
    return (
        Trial(
            rung, task, "select", evaluation.steps, config.search.betas, seeds(config, rung, 1),
            evaluation.search_prompts,
        ),
    )  # fmt: skip


def tune(
    config: Config,
    laboratory: Laboratory,
    contenders: Sequence[Contender],
    task: str,
    screen: Display,
    rung: int = TUNING,
) -> dict[str, Choice]:
    """The learning rate with the largest frontier area, and the beta with the highest reward in budget.

    Every contender is given every one of the learning rates, every beta and one seed, and is measured on
    the prompts of the split `select`. One that trained nowhere keeps the first of each.
    """
    rates = learning_rates(config)
    betas, budget = config.search.betas, config.evaluation.kl_budget
    if not (trials := tuning_trials(config, task, rung)):
        return {c.name: Choice(rates[0], betas[0]) for c in contenders}
    entries = {
        (c.name, rate): replace(c, name=f"{c.name} at {rate:g}", learning_rate=rate)
        for c in contenders
        for rate in rates
    }
    title = f"choosing among {len(rates) * len(betas)} learning rates and betas for each"
    measured = measure(laboratory, list(entries.values()), trials[0], screen, title)
    chosen = {}
    for contender in contenders:
        best, choice = -np.inf, Choice(rates[0], betas[0])
        for rate in rates:
            samples = measured.samples[entries[contender.name, rate].name]
            reward, kl = samples.reward.mean((1, 2)), samples.kl.mean((1, 2))
            score = float(area(kl, reward, budget, (0.0, measured.sft.mean())))
            if np.isfinite(reward).any() and score > best:
                best, choice = score, Choice(rate, betas[_best_beta(reward, kl, budget)])
        chosen[contender.name] = choice
    return chosen


def _best_beta(reward: Float[Array, " betas"], kl: Float[Array, " betas"], budget: float) -> int:
    inside = np.isfinite(reward) & (kl <= budget)
    return int(np.argmax(np.where(inside, reward, -np.inf)) if inside.any() else np.nanargmin(kl))
