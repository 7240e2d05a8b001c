"""Arms: the search, and the controls that it is held against at equal budget.

An arm has as many candidates in as many generations as the search, and its brackets, rungs and elites
are the same, and of a run's budget it has an equal share: of money and tokens, of those that pay, and of
proposals, of those that propose. Only where its candidates come from differs:

| control | candidates |
|---|---|
| `random_mutation` | evolution without selection: parents and operators are drawn blindly |
| `best_of_n` | the search's own proposer, told nothing of what was tried or measured |
| `tuned_baselines` | DPO, IPO and SLiC, each at a grid of learning rates; the betas are the search's |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from discojax import candidates, objectives
from discojax.config import Budget, Config
from discojax.errors import UserError
from discojax.proposers.choose import make_proposer
from discojax.proposers.connect import SERVERS
from discojax.proposers.types import Proposer
from discojax.search.archive import Archive
from discojax.search.ledger import RunLedger
from discojax.search.proposals import Notebook
from discojax.search.trials import SEARCH, Contender

__all__ = ["Arm", "make_arms", "tuned"]

_TUNED = ("dpo", "ipo", "slic")
_WIDEST = 4.0  # times the run's learning rate, and a fourth of it
_PREFIXES = {"random_mutation": "random_", "best_of_n": "unled_"}


@dataclass(frozen=True)
class Arm:
    """One source of candidates.

    Attributes:
      name: "search", or one of `search.controls`.
      place: 0 for the search; 1 and up for controls. It decides seeds and, of two jobs, which waits.
      notebook: its attempts.
      proposer: who is asked; None if the candidates are `given`.
      ledger: what it pays for.
      budget: its own.
      given: all of its candidates.
      told: whether the proposer is told what was tried.
      learns: whether it waits for scores, to be told these too.
    """

    name: str
    place: int
    notebook: Notebook
    proposer: Proposer | None
    ledger: RunLedger
    budget: Budget
    given: tuple[Contender, ...] = ()
    told: bool = True
    learns: bool = True


def make_arms(config: Config, archive: Archive, library: tuple[str, ...]) -> list[Arm]:
    """The search's arm, then those of `search.controls`.

    Raises:
      UserError: the proposer lacks something, or cannot be asked without a history.
    """
    controls = tuple(dict.fromkeys(config.search.controls))
    config = replace(config, budget=_share(config, controls))
    ledger = RunLedger(archive, 0)
    arms = [
        Arm(
            SEARCH, 0, Notebook(archive), make_proposer(config, library, ledger=ledger), ledger, config.budget
        )
    ]
    for place, name in enumerate(controls, 1):
        notebook, ledger = Notebook(archive, place, _PREFIXES.get(name, "")), RunLedger(archive, place)
        if name == "tuned_baselines":
            given = tuned(config.search.candidates, config.population.learning_rate)
            arms.append(Arm(name, place, notebook, None, ledger, config.budget, given))
            continue
        changed = replace(config, search=replace(config.search, proposer="random_mutation"))
        if name == "best_of_n":
            if config.search.proposer in ("replay", "file"):
                raise UserError(
                    f"search.controls: best_of_n asks the proposer without a history, and "
                    f"{config.search.proposer} would repeat itself; leave it out."
                )
            changed = replace(config, proposer=replace(config.proposer, history=False))
        proposer = make_proposer(changed, library, ledger=ledger)
        told = name != "best_of_n"
        arms.append(Arm(name, place, notebook, proposer, ledger, config.budget, told=told, learns=False))
    return arms


def _share(config: Config, controls: Sequence[str]) -> Budget:
    """One arm's part of the budget; time passes for all of them alike."""
    whole = config.budget
    proposing = 1 + sum(name != "tuned_baselines" for name in controls)
    paying = 1 + ("best_of_n" in controls and config.search.proposer in SERVERS)
    return replace(
        whole,
        dollars=None if whole.dollars is None else whole.dollars / paying,
        tokens=None if whole.tokens is None else max(whole.tokens // paying, 1),
        candidates=None if whole.candidates is None else max(whole.candidates // proposing, 1),
    )


def tuned(count: int, learning_rate: float) -> tuple[Contender, ...]:
    """`count` baselines, each loss at learning rates spread evenly in their logarithm around the run's.

    Which come first matters to no score: a generation is any share of them.
    """
    rates = learning_rate * _WIDEST ** np.linspace(-1, 1, -(-count // len(_TUNED)))
    programs = [(name, candidates.from_function(objectives.get(name))) for name in _TUNED]
    contenders = [
        Contender(f"{name}_lr{rate:.2e}", program, "tuned", learning_rate=float(rate))
        for rate in rates
        for name, program in programs
    ]
    return tuple(contenders[:count])
