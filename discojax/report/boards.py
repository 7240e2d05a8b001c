"""Rounds of a run as the archive has them: what each objective measured, and how it compares.

The numbers are made by the code that the run itself decides with, so a finished run's are the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from discojax.config import Config
from discojax.report import leaderboard, plots
from discojax.report.leaderboard import Row
from discojax.search.racing import judge
from discojax.search.records import Evaluation
from discojax.search.rungs import BASELINE
from discojax.search.statistics import Comparison, Samples, interval, mean
from discojax.search.trials import SFT, Measured

__all__ = ["Board", "board", "rows", "series"]

_DRAWS = 100_000  # bootstrap replicates times objectives: thousands of candidates are compared coarsely


@dataclass(frozen=True)
class Board:
    """One round.

    Attributes:
      rung: its number in the archive.
      task, split: what was trained on and which prompts measured it.
      steps: optimisation steps of a lane.
      betas, seeds: of the lanes.
      prompts: how many.
      measured: of objectives all of whose lanes have ended.
      comparisons: of these with the baseline; empty until the baseline itself is measured.
      rows: the leaderboard's lines, best first.
    """

    rung: int
    task: str
    split: str
    steps: int
    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: int
    measured: Measured
    comparisons: Mapping[str, Comparison]
    rows: Sequence[Row]


def board(
    evaluations: Sequence[Evaluation],
    config: Config,
    *,
    only: Collection[str] | None = None,
    coarse: bool = False,
) -> Board | None:
    """The round of these evaluations, all of one rung; None while no objective has ended.

    Args:
      evaluations: with the arrays "reward" and "kl" of those that are ok.
      config: of the run.
      only: names of the objectives that are compared; None is all.
      coarse: whether fewer bootstrap replicates do where there are many objectives.
    """
    lanes: dict[str, dict[tuple[float, int], Evaluation]] = defaultdict(dict)
    for evaluation in evaluations:
        key = evaluation.key
        if only is None or key.objective in only or key.objective == SFT:
            lanes[key.objective][key.beta, key.seed] = evaluation
    untrained = lanes.pop(SFT, {})
    seeds = tuple(sorted({seed for _, seed in untrained}))
    betas = tuple(sorted({beta for lane in lanes.values() for beta, _ in lane}))
    grid = [(beta, seed) for beta in betas for seed in seeds]
    complete = {name: lane for name, lane in lanes.items() if grid and all(key in lane for key in grid)}
    if not complete or any(each.status != "ok" for each in untrained.values()):
        return None
    sft = np.stack([np.asarray(untrained[0.0, seed].per_prompt["reward"], np.float64) for seed in seeds])
    shape = (len(betas), len(seeds), sft.shape[1])

    def samples(lane: Mapping[tuple[float, int], Evaluation], what: str) -> Float[np.ndarray, ...]:
        nothing = np.full(sft.shape[1], np.nan)
        arrays = [lane[key].per_prompt[what] if lane[key].status == "ok" else nothing for key in grid]
        return np.asarray(arrays, np.float64).reshape(shape)

    measured = Measured(
        {name: Samples(samples(lane, "reward"), samples(lane, "kl")) for name, lane in complete.items()},
        sft.mean(0),
        sft,
    )
    key = next(lane for lane in complete.values())[grid[0]].key
    comparisons = _compared(measured, config, coarse)
    return Board(
        key.rung,
        key.task,
        key.split,
        key.steps,
        betas,
        seeds,
        sft.shape[1],
        measured,
        comparisons,
        rows(measured, comparisons, config.evaluation.confidence),
    )


def _compared(measured: Measured, config: Config, coarse: bool) -> dict[str, Comparison]:
    if BASELINE not in measured.samples or len(measured.sft) < 2:
        return {}
    most = max(100, _DRAWS // len(measured.samples)) if coarse else config.evaluation.bootstrap
    try:
        return judge(
            measured,
            BASELINE,
            budget=config.evaluation.kl_budget,
            replicates=min(config.evaluation.bootstrap, most),
            confidence=config.evaluation.confidence,
            seed=config.run.seed,
        )
    except ValueError:  # the baseline diverged at every beta
        return {}


def rows(measured: Measured, comparisons: Mapping[str, Comparison], confidence: float) -> list[Row]:
    """The leaderboard's lines, best first. Reward and KL are those of the beta with the highest reward."""
    lines = []
    for name, samples in measured.samples.items():
        rewards = samples.reward.mean(axis=(1, 2))
        reward = kl = None
        if np.isfinite(rewards).any():
            best = int(np.nanargmax(rewards))
            reward, kl = float(rewards[best]), float(samples.kl[best].mean())
        if name in comparisons:
            lines.append(leaderboard.row(comparisons[name], reward=reward, kl=kl, confidence=confidence))
        else:
            status = "diverged" if reward is None else "ok"
            lines.append(Row(name, status, reward=reward, kl=kl, seeds=samples.reward.shape[1]))
    return leaderboard.ranked(lines)


def series(name: str, samples: Samples, betas: Sequence[float], confidence: float = 0.95) -> plots.Series:
    """An objective's policies, one point a beta, with the intervals of their rewards."""
    bounds = [
        interval(mean(reward), confidence) if np.isfinite(reward).all() else (math.nan, math.nan)
        for reward in samples.reward
    ]
    low, high = np.asarray(bounds).T
    return plots.Series(
        name, np.asarray(betas), samples.kl.mean(axis=(1, 2)), samples.reward.mean(axis=(1, 2)), low, high
    )
