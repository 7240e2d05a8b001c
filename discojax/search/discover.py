"""Discovery, from an empty folder to a leaderboard.

    library and generations, each a bracket (`search.brackets`) -> elites on fresh seeds -> held out

Every expensive thing is asked of the archive first. So a run that was stopped is resumed by doing
the same again, and ends as it would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from discojax import candidates, objectives
from discojax.config import Config
from discojax.data import cache
from discojax.errors import UserError
from discojax.proposers.budget import Spent
from discojax.search import archive as archives
from discojax.search import finals, logs, proposals, storage
from discojax.search.arms import make_arms
from discojax.search.brackets import search
from discojax.search.display import display
from discojax.search.laboratory import measure
from discojax.search.ledger import RunLedger
from discojax.search.opening import build_laboratory, given, open_run, task_config
from discojax.search.records import plain
from discojax.search.rungs import (
    BASELINE,
    TRAIN,
    assert_fresh,
    elite_trial,
    final_trial,
    judged,
    rung_trial,
    searched_seeds,
    seeds,
)
from discojax.search.statistics import Comparison
from discojax.search.trials import SEARCH, SFT, Contender, Control, Measured, Trial
from discojax.tasks.preferences import check_rewards

__all__ = ["BASELINE", "Outcome", "claim", "results", "run", "save_results", "train"]


@dataclass(frozen=True)
class Outcome:
    """What a run found, for whoever prints, plots or tests it.

    Attributes:
      folder: the run's.
      trial: the round whose numbers these are: the held-out one after `run`.
      contenders: those of the round, the baseline among them.
      measured: their reward and KL, by seed and prompt.
      comparisons: each against the baseline, Holm-corrected over all but it.
      proposed, accepted: candidates, in all.
      scored: objectives measured in the first round.
      controls: the search beside the controls at equal budget; empty if none were asked for.
      spent: what the run used up, in all its sessions; None where nothing was proposed.
    """

    folder: Path
    trial: Trial
    contenders: tuple[Contender, ...]
    measured: Measured
    comparisons: dict[str, Comparison]
    proposed: int
    accepted: int
    scored: int
    controls: tuple[Control, ...] = ()
    spent: Spent | None = None


def claim(config: Config) -> Config:
    """The config with a run name that is free: `quickstart`, or else `quickstart-2`, and so on."""
    name, number = config.run.name, 1
    while storage.taken(config.run.path, config.run.remote):
        number += 1
        config = replace(config, run=replace(config.run, name=f"{name}-{number}"))
    return config


def run(config: Config, *, resume: bool = False) -> Outcome:
    """Runs, or resumes, a discovery in the folder `config.run.path`.

    Raises:
      UserError: the folder belongs to another config; something the config names does not exist.
    """
    baselines = tuple(dict.fromkeys((BASELINE, *config.evaluation.baselines)))
    library = tuple(dict.fromkeys((*baselines, *config.search.library)))
    for name in library:
        objectives.get(name)  # a misspelt name is told before an hour of work, not after
    if "preferences" in (config.task.name, config.task.held_out):
        check_rewards(task_config(config).own, search=True)
    assert_fresh(searched_seeds(config), final_trial(config).seeds)
    logs.require(config.run)
    candidates.warm()  # the checking process starts while the tasks are built
    with open_run(config, resume) as archive, display() as screen, logs.opened(config) as log:
        screen.say(f"Run [bold]{config.run.path}[/bold]: metrics.jsonl and archive.sqlite grow as it goes.")
        contenders = proposals.admit_library(archive, library)
        known = {contender.name: contender for contender in contenders}
        ledger = RunLedger(archive)
        arms = make_arms(config, archive, tuple(known))  # a wrong key is told before any work
        names = config.task.name, config.task.held_out
        laboratory = build_laboratory(config, archive, names, screen, log)
        rungs = [rung_trial(config, number) for number in range(len(config.search.rungs))]
        laboratory.require(*rungs, elite_trial(config), final_trial(config))
        raced = search(config, laboratory, arms, contenders, ledger, screen)
        ranked = finals.elites(config, laboratory, raced, known[BASELINE], screen)
        held_out = [known[objectives.get(name).name] for name in baselines]
        finalists = finals.finalists(ranked[SEARCH], held_out, config.evaluation.finalists)
        rivals = [next(iter(ranked[arm.name]), None) for arm in arms[1:]]
        everyone = [*finalists, *(rival for rival in rivals if rival is not None)]
        trial = final_trial(config)
        screen.say(f"Held out: {', '.join(c.name for c in everyone)} on {trial.task}.")
        measured = measure(laboratory, everyone, trial, screen, f"held out: {trial.task}")
        table = finals.controls(config, arms, raced, ranked, measured)
        measured = finals.only(measured, [c.name for c in finalists])
        made = [a for a in arms[0].notebook.attempts if a.operator != "library"]
        outcome = Outcome(
            config.run.path, trial, tuple(finalists), measured, judged(config, measured),
            len(made), sum(a.status == "accepted" for a in made), raced[SEARCH].scored, table,
            ledger.spent(),
        )  # fmt: skip
        archives.set_meta(archive, "finished", True)
        laboratory.close()
    return outcome


def train(config: Config, names: Sequence[str], *, resume: bool = False) -> Outcome:
    """Trains and compares given objectives: names of the library, or files of candidate text.

    Each goes through every beta and seed of the held-out evaluation's settings, on `config.task.name`. With
    `resume` the folder holds a training that was stopped, and what it has measured is not trained again.

    Raises:
      UserError: an objective does not exist, or the gate rejects it.
    """
    contenders = [given(name) for name in dict.fromkeys((BASELINE, *names))]
    if len({c.name for c in contenders}) < len(contenders):
        raise UserError("Two of the objectives have the same name; rename the function in one of the files.")
    logs.require(config.run)
    with open_run(config, resume, "train") as archive, display() as screen, logs.opened(config) as log:
        laboratory = build_laboratory(config, archive, (config.task.name,), screen, log)
        trial = Trial(
            TRAIN, config.task.name, "select", config.evaluation.steps, config.search.betas,
            seeds(config, TRAIN, config.evaluation.seeds), config.evaluation.prompts,
        )  # fmt: skip
        measured = measure(laboratory, contenders, trial, screen, "training")
        laboratory.close()
        return Outcome(
            config.run.path,
            trial,
            tuple(contenders),
            measured,
            judged(config, measured),
            0,
            0,
            len(contenders),
        )


def results(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON: settings of the round, and every comparison with its interval."""
    return {
        "trial": asdict(outcome.trial),
        "baseline": BASELINE,
        "reference_policy": SFT,
        "proposed": outcome.proposed,
        "accepted": outcome.accepted,
        "scored": outcome.scored,
        "spent": None if outcome.spent is None else asdict(outcome.spent),
        "controls": [asdict(control) for control in outcome.controls],
        "objectives": {
            contender.name: {
                "origin": contender.origin,
                "operator": contender.operator,
                "thought": contender.thought,
                "hash": contender.program.hash,
                "source": contender.program.source,
                **asdict(outcome.comparisons[contender.name]),
            }
            for contender in outcome.contenders
        },
    }


def save_results(outcome: Outcome) -> Path:
    """Writes `results.json` into the run's folder."""
    file = outcome.folder / "results.json"
    cache.write_json(file, plain(results(outcome)))
    return file
