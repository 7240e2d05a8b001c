"""Discovery, from an empty folder to a leaderboard.

    library, rung 0 -> propose, gate, rung 0 (each generation) -> racing -> finalists held out

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
from discojax.proposers.evolution import Evolution
from discojax.search import archive as archives
from discojax.search import proposals
from discojax.search.archive import Archive
from discojax.search.display import Bar, Display, display
from discojax.search.laboratory import SFT, Contender, Laboratory, Measured, Trial, measure
from discojax.search.racing import judge, keep_best, merged
from discojax.search.records import plain
from discojax.search.statistics import Comparison
from discojax.tasks import reviews
from discojax.tasks.measure import make_sampler
from discojax.tasks.types import TaskConfig

__all__ = ["BASELINE", "Outcome", "claim", "results", "run", "save_results", "train"]

BASELINE = "dpo"
_FINAL = 1000  # the rung of the held-out evaluation, and where its seeds begin
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
    """

    folder: Path
    trial: Trial
    contenders: tuple[Contender, ...]
    measured: Measured
    comparisons: dict[str, Comparison]
    proposed: int
    accepted: int
    scored: int


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
        contenders, comparisons = _first_round(config, laboratory, contenders, screen)
        scored = len(comparisons)
        contenders = _race(config, laboratory, contenders, comparisons, screen)
        finalists = _finalists(contenders, baselines, config.evaluation.finalists)
        seeds = _seeds(config, _FINAL, config.evaluation.seeds)
        trial = Trial(
            _FINAL, config.task.held_out, "report", config.evaluation.steps, config.search.betas, seeds,
            config.evaluation.prompts,
        )  # fmt: skip
        screen.say(f"Held out: {', '.join(c.name for c in finalists)} on {trial.task}.")
        measured = measure(laboratory, finalists, trial, screen, f"held out: {trial.task}")
        attempts = archives.attempts(archive)
        made = [a for a in attempts if a.operator != "library"]
        outcome = Outcome(
            config.run.path, trial, tuple(finalists), measured, _judged(config, measured),
            len(made), sum(a.status == "accepted" for a in made), scored,
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
            _seeds(config, _TRAIN, config.evaluation.seeds), config.evaluation.prompts,
        )  # fmt: skip
        measured = measure(laboratory, contenders, trial, screen, "training")
        return Outcome(
            config.run.path,
            trial,
            tuple(contenders),
            measured,
            _judged(config, measured),
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
    identity = cache.content_hash({**asdict(config), "run": config.run.seed})
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
    step = StepConfig(
        batch=config.population.batch, chunk=config.population.chunk, implementation=implementation
    )
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
        ),  # fmt: skip
        make_sampler(first.graph, first.sampling, mesh=mesh, implementation=implementation),
        tasks,
        archive,
        config.population.learning_rate,
        config.run.path / "metrics.jsonl",
    )


def _first_round(
    config: Config, laboratory: Laboratory, library: list[Contender], screen: Display
) -> tuple[list[Contender], dict[str, Comparison]]:
    """Rung 0: the library, then generation after generation of candidates, each knowing the last."""
    trial = _rung(config, 0)
    contenders = list(library)
    measured = measure(laboratory, contenders, trial, screen, "rung 0: library")
    comparisons = _judged(config, measured)
    proposer = Evolution(library=tuple(c.name for c in library))
    left = config.search.candidates
    for generation in range(1, config.search.generations + 1):
        wanted = left // (config.search.generations - generation + 1)
        left -= wanted
        if wanted == 0:
            continue
        proposed = proposals.propose(
            laboratory.archive, proposer,
            proposals.history(laboratory.archive, comparisons, before=generation),
            generation=generation, wanted=wanted, seed=config.run.seed,
            bar=screen.bar(f"generation {generation}: proposed and accepted", wanted),
        )  # fmt: skip
        new = measure(laboratory, proposed, trial, screen, f"generation {generation}: rung 0")
        contenders += proposed
        measured = merged(measured, new)
        comparisons = _judged(config, measured)
    return contenders, comparisons


def _race(
    config: Config,
    laboratory: Laboratory,
    contenders: list[Contender],
    comparisons: dict[str, Comparison],
    screen: Display,
) -> list[Contender]:
    """The later rungs: fewer contenders, more seeds and steps, fresh seeds each time. Best first."""
    for number in range(1, len(config.search.rungs)):
        _, _, keep = config.search.rungs[number]
        contenders = keep_best(
            contenders, comparisons, keep, always=(BASELINE,), proposed=config.evaluation.finalists
        )
        title = f"rung {number}: {len(contenders)} objectives"
        measured = measure(laboratory, contenders, _rung(config, number), screen, title)
        comparisons = _judged(config, measured)
    return keep_best(contenders, comparisons, len(contenders))


def _finalists(ranked: Sequence[Contender], baselines: Sequence[str], count: int) -> list[Contender]:
    """The best proposed ones (the best of the library where too few got this far), and the baselines."""
    proposed = [c for c in ranked if c.origin == "proposed"]
    others = [c for c in ranked if c.origin != "proposed" and c.name not in baselines]
    chosen = (proposed + others)[:count]
    return [*chosen, *(_given(name) for name in baselines)]


def _rung(config: Config, number: int) -> Trial:
    seeds, steps, _ = config.search.rungs[number]
    last = number == len(config.search.rungs) - 1
    return Trial(
        number,
        config.task.name,
        "select" if last and number else "search",
        steps,
        config.search.betas,
        _seeds(config, 10 * number, seeds),
        config.evaluation.search_prompts,
    )


def _seeds(config: Config, start: int, count: int) -> tuple[int, ...]:
    """Training seeds of a round: disjoint between rounds and between runs of different seeds."""
    return tuple(10_000 * config.run.seed + start + i for i in range(count))


def _judged(config: Config, measured: Measured) -> dict[str, Comparison]:
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


def results(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON: settings of the round, and every comparison with its interval."""
    return {
        "trial": asdict(outcome.trial),
        "baseline": BASELINE,
        "reference_policy": SFT,
        "proposed": outcome.proposed,
        "accepted": outcome.accepted,
        "scored": outcome.scored,
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
