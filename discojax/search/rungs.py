"""The rungs of the race: what is measured at each, on which seeds, and how much that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from discojax.config import Config
from discojax.errors import UserError
from discojax.search.racing import judge
from discojax.search.statistics import Comparison
from discojax.search.trials import Measured, Trial

__all__ = [
    "BASELINE",
    "FINAL",
    "REPORT",
    "TRAIN",
    "TRANSFER",
    "TUNING",
    "assert_fresh",
    "chunk_budgets",
    "elite_trial",
    "final_trial",
    "judged",
    "lane_steps",
    "learning_rates",
    "rung_trial",
    "searched_seeds",
    "seeds",
    "shares",
]

BASELINE = "dpo"
# Rungs of the archive, and where their seeds begin: above all rungs of a search and its elites.
FINAL, TRAIN, TUNING, REPORT, TRANSFER = 1000, 2000, 3000, 4000, 5000
_APART = 100  # seeds of one rung at most


def rung_trial(config: Config, number: int) -> Trial:
    """A rung of every bracket. All brackets share its seeds, so the baseline's lanes are measured once."""
    count, steps, _ = config.search.rungs[number]
    return _trial(config, number, "search", count, steps)


def elite_trial(config: Config) -> Trial:
    """Where the best of all brackets are measured again: on seeds and prompts that chose none of them."""
    count, steps, _ = config.search.elites
    return _trial(config, len(config.search.rungs), "select", count, steps)


def final_trial(config: Config) -> Trial:
    """The held-out evaluation."""
    evaluation = config.evaluation
    task = config.task.held_out
    chosen = seeds(config, FINAL, evaluation.seeds)
    return Trial(FINAL, task, "report", evaluation.steps, config.search.betas, chosen, evaluation.prompts)


def _trial(config: Config, number: int, split: str, count: int, steps: int) -> Trial:
    return Trial(
        number,
        config.task.name,
        split,
        steps,
        config.search.betas,
        seeds(config, _APART * number, count),
        config.evaluation.search_prompts,
    )


def seeds(config: Config, start: int, count: int) -> tuple[int, ...]:
    """Training seeds of a round: disjoint between rounds and between runs of different seeds."""
    return tuple(10_000 * config.run.seed + start + i for i in range(count))


def searched_seeds(config: Config) -> tuple[int, ...]:
    """Every training seed of a search, its elites' included."""
    trials = [rung_trial(config, number) for number in range(len(config.search.rungs))]
    return tuple(seed for trial in (*trials, elite_trial(config)) for seed in trial.seeds)


def assert_fresh(searched: Collection[int], reported: Sequence[int]) -> None:
    """That no training seed of a report was one of the search's.

    Raises:
      UserError: naming them: a policy that helped to choose an objective cannot report on it.
    """
    if shared := sorted(set(searched) & set(reported)):
        raise UserError(
            f"The seeds {', '.join(map(str, shared))} would report, and the search has trained with them: "
            "choose another run.seed."
        )


def learning_rates(config: Config) -> tuple[float, ...]:
    """Those that every objective is tuned over.

    >>> from discojax.config import load
    >>> learning_rates(load(None)), learning_rates(load(None, ["evaluation.learning_rates=[]"]))
    ((0.001, 0.002), (0.002,))
    """
    rates, rate = config.evaluation.learning_rates, config.population.learning_rate
    return (rate / 2, rate) if rates is None else rates or (rate,)


def shares(config: Config) -> list[int]:
    """How many candidates each generation has, the first first.

    >>> from discojax.config import load
    >>> shares(load(None, ["search.candidates=10", "search.generations=4"]))
    [2, 3, 2, 3]
    """
    left, generations = config.search.candidates, config.search.generations
    return [(left * (i + 1)) // generations - (left * i) // generations for i in range(generations)]


def lane_steps(trial: Trial, objectives: int) -> int:
    """Optimisation steps that a trial of so many objectives takes, over all of its lanes."""
    return trial.steps * len(trial.betas) * len(trial.seeds) * objectives


def judged(config: Config, measured: Measured) -> dict[str, Comparison]:
    """Every contender against the baseline.

    Raises:
      UserError: the baseline has no beta at which all of its lanes trained.
    """
    try:
        return judge(
            measured,
            BASELINE,
            budget=config.evaluation.kl_budget,
            replicates=config.evaluation.bootstrap,
            confidence=config.evaluation.confidence,
            seed=config.run.seed,
        )
    except ValueError as error:
        raise UserError(
            f"{BASELINE} itself diverged at every beta ({error}): lower population.learning_rate."
        ) from error


def chunk_budgets(config: Config) -> Sequence[int]:
    """The step budgets that lanes have in this run."""
    return sorted({steps for _, steps, _ in (*config.search.rungs, config.search.elites)})
