"""Discovery, from an empty folder to a leaderboard.

    library and generations, each a bracket (`search.brackets`) -> elites on fresh seeds -> held out

Every expensive thing is asked of the archive first. So a run that was stopped is resumed by doing
the same again, and ends as it would have.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from discojax import candidates, objectives
from discojax.config import Config, dump
from discojax.data import cache
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.sft import SftConfig
from discojax.population.backend import choose_implementation
from discojax.population.engine import make_programs
from discojax.population.mesh import make_mesh
from discojax.population.step import StepConfig
from discojax.population.training import chunk_for
from discojax.proposers.budget import Spent
from discojax.search import archive as archives
from discojax.search import finals, proposals
from discojax.search.archive import Archive
from discojax.search.arms import SEARCH, make_arms
from discojax.search.brackets import search
from discojax.search.display import Bar, Display, display
from discojax.search.finals import Control
from discojax.search.laboratory import SFT, Contender, Laboratory, Measured, Trial, measure
from discojax.search.ledger import RunLedger
from discojax.search.records import plain
from discojax.search.rungs import BASELINE, chunk_budgets, final_trial, judged, seeds
from discojax.search.statistics import Comparison
from discojax.tasks import reviews
from discojax.tasks.measure import make_sampler
from discojax.tasks.types import TaskConfig

__all__ = ["BASELINE", "Outcome", "claim", "results", "run", "save_results", "train"]

_TRAIN = 2000  # of `train`


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
    while (config.run.path / "archive.sqlite").exists():
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
    candidates.warm()  # the checking process starts while the tasks are built
    with _open(config, resume) as archive, display() as screen:
        screen.say(f"Run [bold]{config.run.path}[/bold]: metrics.jsonl and archive.sqlite grow as it goes.")
        laboratory = _laboratory(config, archive, (config.task.name, config.task.held_out), screen)
        contenders = proposals.admit_library(archive, library)
        known = {contender.name: contender for contender in contenders}
        ledger = RunLedger(archive)
        arms = make_arms(config, archive, tuple(known), ledger)
        raced = search(config, laboratory, arms, contenders, ledger, screen)
        ranked = finals.elites(config, laboratory, raced, known[BASELINE], screen)
        given = [known[objectives.get(name).name] for name in baselines]
        finalists = finals.finalists(ranked[SEARCH], given, config.evaluation.finalists)
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
    return outcome


def train(config: Config, names: Sequence[str]) -> Outcome:
    """Trains and compares given objectives: names of the library, or files of candidate text.

    Each goes through every beta and seed of the held-out evaluation's settings, on `config.task.name`.

    Raises:
      UserError: an objective does not exist, or the gate rejects it.
    """
    contenders = [_given(name) for name in dict.fromkeys((BASELINE, *names))]
    if len({c.name for c in contenders}) < len(contenders):
        raise UserError("Two of the objectives have the same name; rename the function in one of the files.")
    with _open(config, resume=False) as archive, display() as screen:
        laboratory = _laboratory(config, archive, (config.task.name,), screen)
        trial = Trial(
            _TRAIN, config.task.name, "select", config.evaluation.steps, config.search.betas,
            seeds(config, _TRAIN, config.evaluation.seeds), config.evaluation.prompts,
        )  # fmt: skip
        measured = measure(laboratory, contenders, trial, screen, "training")
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


def _given(name: str) -> Contender:
    if not (name.endswith(".py") or os.sep in name):
        objective = objectives.get(name)
        return Contender(objective.name, candidates.from_function(objective), "library")
    try:
        source = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read as text: {error}.") from error
    program = candidates.compile(source, Path(name).stem)
    return Contender(program.name, program, "given")


def _open(config: Config, resume: bool) -> Archive:
    """The run's folder, with its resolved config, and its archive."""
    folder = config.run.path
    if not resume and (folder / "archive.sqlite").exists():
        raise UserError(
            f"{folder} already holds a run: go on with it by --resume {folder}, or choose run.name=ANOTHER."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run's folder {folder} cannot be made ({error.strerror}): "
            "choose another with run.directory=FOLDER."
        ) from error
    # Where a run lies does not matter to what it finds, so a folder may be moved and resumed.
    # Nor does its budget, which may be raised to go on.
    identity = cache.content_hash({**asdict(config), "run": config.run.seed, "budget": None})
    archive = archives.open_archive(folder / "archive.sqlite", identity)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    if resume:
        archives.add_event(archive, "resumed")
    return archive


def _laboratory(config: Config, archive: Archive, names: Sequence[str], screen: Display) -> Laboratory:
    bars: dict[str, Bar] = {}

    def report(what: str, done: int, total: int) -> None:
        stage = what.split(" (loss")[0]
        if stage not in bars:
            bars[stage] = screen.bar(what, total)
        bars[stage].update(done, what)

    settings = TaskConfig(
        DecoderConfig(**asdict(config.policy)),
        SftConfig(**asdict(config.sft)),
        prompt_tokens=config.task.prompt_tokens,
        completion_tokens=config.task.completion_tokens,
        pairs=config.task.pairs,
        completions=config.task.completions,
        temperature=config.task.temperature,
        label_temperature=config.task.label_temperature,
        seed=config.task.seed,
    )
    foundation = reviews.lay_foundation(settings, report=report)
    tasks = {
        name: reviews.build(name, settings, foundation=foundation, report=report)
        for name in dict.fromkeys(names)
    }
    first = next(iter(tasks.values()))
    archives.set_meta(archive, "tasks", {name: dict(task.facts) for name, task in tasks.items()})
    archives.set_meta(archive, "identities", {name: task.identity for name, task in tasks.items()})
    mesh = make_mesh(*asdict(config.population.mesh).values())
    implementation = choose_implementation(config.population.implementation)
    chunk = chunk_for(chunk_budgets(config), config.population.chunk)
    step = StepConfig(batch=config.population.batch, chunk=chunk, implementation=implementation)
    archives.set_meta(
        archive,
        "hardware",
        {"platform": jax.default_backend(), "devices": [d.device_kind for d in jax.devices()]},
    )
    return Laboratory(
        make_programs(
            first.graph,
            first.params,
            step,
            lanes=config.population.lanes,
            tokens=config.task.completion_tokens,
            mesh=mesh,
        ),
        make_sampler(first.graph, first.sampling, mesh=mesh, implementation=implementation),
        tasks,
        archive,
        config.population.learning_rate,
        config.run.path / "metrics.jsonl",
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
