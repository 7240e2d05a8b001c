"""The laboratory: contenders in, measurements out, and nothing measured twice.

Every lane's result is in the archive before anything is made of it. Asking again, in the same run
or after it was stopped, is answered from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from discojax import __version__
from discojax.data import cache
from discojax.errors import UserError
from discojax.objectives import machine
from discojax.population.checkpoint import Checkpoints
from discojax.population.engine import Programs
from discojax.population.lanes import Job
from discojax.population.operations import Station
from discojax.population.training import Finished, train
from discojax.population.training import Progress as LaneProgress
from discojax.search import archive as archives
from discojax.search.archive import Archive, Evaluation, EvaluationKey
from discojax.search.display import Display
from discojax.search.instruments import Instruments, open_station
from discojax.search.logs import NOWHERE, Log
from discojax.search.statistics import Samples
from discojax.search.trials import SFT, Contender, Measured, Trial
from discojax.tasks.measure import Measurement, make_judge
from discojax.tasks.types import Prompts, Task

__all__ = [
    "Laboratory",
    "assemble",
    "known",
    "measure",
    "name_of",
    "record",
    "wanted",
]

_SAID = {"unparseable": "replies unparseable"}
_LOGGED = ("task", "split", "rung", "beta", "seed", "steps")


@dataclass(frozen=True)
class Laboratory:
    """Everything that measuring takes, built once a run."""

    instruments: Instruments
    tasks: Mapping[str, Task]
    archive: Archive
    learning_rate: float
    log: Log = NOWHERE
    checkpoints: Checkpoints | None = None
    say: Callable[[str], None] = lambda sentence: None

    @property
    def programs(self) -> Programs:
        """What trains lanes."""
        return self.instruments.programs

    def require(self, *trials: Trial) -> None:
        """That there are the prompts of every trial, which is told before the first of them trains.

        Raises:
          UserError: a trial wants more prompts than there are.
        """
        for trial in trials:
            there = len(self.tasks[trial.task].prompts[trial.split].lengths)
            if trial.prompts > there:
                raise UserError(
                    f"{trial.task} has {there} prompts for {trial.split!r}, and {trial.prompts} are asked "
                    "for: lower evaluation.prompts or evaluation.search_prompts."
                )

    def station(self, trial: Trial) -> Station:
        """Where the lanes of a trial are trained, and what measures them.

        Raises:
          UserError: the trial wants more prompts than there are.
        """
        self.require(trial)
        task = self.tasks[trial.task]
        prompts = Prompts(*(array[: trial.prompts] for array in task.prompts[trial.split]))
        identity = cache.content_hash((self.archive.config_hash, task.identity, __version__))
        station = open_station(self.instruments, task, trial.split, trial.prompts, self.checkpoints, identity)
        judge = make_judge(prompts, decode=task.decode, reward=task.reward[trial.split])
        return replace(station, judge=judge)

    def keep_facts(self) -> None:
        """Keeps what the tasks know of themselves; how a judge replies is known later than the rest."""
        facts = {name: dict(task.facts) for name, task in self.tasks.items()}
        archives.set_meta(self.archive, "tasks", facts)

    def close(self) -> None:
        """Says what became of a reward's judgements, and deletes what was kept of lanes in training."""
        for task in self.tasks.values():
            if counts := task.facts.get("judged"):
                said = (f"{count} {_SAID.get(what, what)}" for what, count in counts.items())
                self.say(f"{task.name}: {', '.join(said)}.")
        if self.checkpoints is not None:
            self.checkpoints.clear()


def measure(
    laboratory: Laboratory, contenders: Sequence[Contender], trial: Trial, display: Display, title: str
) -> Measured:
    """Trains and measures what the archive does not have yet; returns all of it.

    Args:
      laboratory: see `Laboratory`.
      contenders: names must differ.
      trial: what they go through.
      display: where progress is shown.
      title: what the progress is called.
    """
    jobs = wanted(laboratory, contenders, trial)
    found = {key: evaluation for key in jobs if (evaluation := known(laboratory, key)) is not None}
    missing = {key: job for key, job in jobs.items() if key not in found}
    if missing:
        station = laboratory.station(trial)
        bar = display.bar(title, sum(max(job.steps, 1) for job in missing.values()))
        started = time.monotonic()

        def progress(report: LaneProgress) -> None:
            bar.advance(report.useful)
            seconds = time.monotonic() - started
            laboratory.log("progress", rung=trial.rung, seconds=seconds, **report._asdict())

        for finished in train(station, iter(missing.items()), progress, name=name_of):
            evaluation = record(laboratory, finished)
            found[evaluation.key] = evaluation
        bar.update(bar.total)
    return assemble(laboratory, found, contenders, trial)


def wanted(laboratory: Laboratory, contenders: Sequence[Contender], trial: Trial) -> dict[EvaluationKey, Job]:
    """The lanes of a trial, the untrained policy's among them.

    Raises:
      UserError: an objective needs larger batches than there are.
    """
    nothing = machine.encode([], 0.0)
    jobs = {}
    for seed in trial.seeds:
        jobs[_key(laboratory, trial, None, 0.0, seed)] = Job(nothing, 0.0, seed, 0.0, 0)
        for contender in contenders:
            program = contender.program
            if program.minimum_batch > laboratory.programs.batch:
                raise UserError(
                    f"{contender.name} needs batches of at least {program.minimum_batch} pairs: "
                    "raise population.batch."
                )
            for beta in trial.betas:
                key = _key(laboratory, trial, contender, beta, seed)
                jobs[key] = Job(program.code, beta, seed, key.learning_rate, trial.steps)
    return jobs


def name_of(key: EvaluationKey) -> str:
    """A lane's name in checkpoints: its key as JSON."""
    return json.dumps(asdict(key))


def _key(
    laboratory: Laboratory, trial: Trial, contender: Contender | None, beta: float, seed: int
) -> EvaluationKey:
    rate = 0.0 if contender is None else contender.learning_rate or laboratory.learning_rate
    return EvaluationKey(
        hash=SFT if contender is None else contender.program.hash,
        objective=SFT if contender is None else contender.name,
        task=trial.task,
        split=trial.split,
        rung=trial.rung,
        beta=beta,
        seed=seed,
        steps=0 if contender is None else trial.steps,
        learning_rate=rate,
    )


def known(laboratory: Laboratory, key: EvaluationKey) -> Evaluation | None:
    """A lane's evaluation, if the archive has it, with the arrays that scores are made of."""
    found = archives.get_evaluation(laboratory.archive, key)
    return None if found is None else _slim(found)


def record(laboratory: Laboratory, finished: Finished[EvaluationKey]) -> Evaluation:
    """What became of a lane, once the archive has it; with the arrays that scores are made of."""
    evaluation = _evaluation(finished)
    archives.add_evaluations(laboratory.archive, [evaluation])
    if any(task.facts.get("judged") for task in laboratory.tasks.values()):
        laboratory.keep_facts()
    laboratory.log(
        "lane",
        objective=finished.key.objective,
        **{name: getattr(finished.key, name) for name in _LOGGED},
        status=evaluation.status,
        reward=evaluation.reward,
        kl=evaluation.kl,
        **{f"train_{name}": value for name, value in finished.metrics._asdict().items()},
    )
    return _slim(evaluation)


def _slim(evaluation: Evaluation) -> Evaluation:
    """Without what only the archive needs: a long search has thousands of these in memory."""
    arrays = {name: evaluation.per_prompt[name] for name in ("reward", "kl") if name in evaluation.per_prompt}
    return replace(evaluation, per_prompt=arrays)


def _evaluation(finished: Finished[EvaluationKey]) -> Evaluation:
    measurement: Measurement | None = finished.measurement
    if finished.diverged or measurement is None:
        reason = f"a loss or gradient was not finite after {finished.metrics.steps} steps"
        return Evaluation(finished.key, "diverged", reason=reason)
    if not np.isfinite(measurement.kl).all():
        return Evaluation(finished.key, "diverged", reason="its policy's samples have no finite KL")
    if missing := int((~np.isfinite(measurement.reward)).sum()):
        reason = f"the reward gave no finite number for {missing} of {len(measurement.reward)} completions"
        return Evaluation(finished.key, "failed", reason=reason)
    return Evaluation(
        finished.key,
        "ok",
        reward=float(measurement.reward.mean()),
        kl=float(measurement.kl.mean()),
        kl_per_token_reference=float(measurement.reverse_kl.mean()),
        length=float(measurement.length.mean()),
        per_prompt=measurement.arrays(),
    )


def assemble(
    laboratory: Laboratory,
    found: Mapping[Any, Evaluation],
    contenders: Sequence[Contender],
    trial: Trial,
) -> Measured:
    """The measurements of a trial's contenders from the evaluations of all of its lanes."""

    def row(contender: Contender | None, beta: float, seed: int, what: str) -> np.ndarray:
        evaluation = found[_key(laboratory, trial, contender, beta, seed)]
        if evaluation.status != "ok":
            return np.full(trial.prompts, np.nan)
        return np.asarray(evaluation.per_prompt[what], np.float64)

    def grid(contender: Contender, what: str) -> np.ndarray:
        return np.stack([[row(contender, beta, seed, what) for seed in trial.seeds] for beta in trial.betas])

    sft = np.stack([row(None, 0.0, seed, "reward") for seed in trial.seeds])
    samples = {c.name: Samples(grid(c, "reward"), grid(c, "kl")) for c in contenders}
    return Measured(samples, sft.mean(0), sft)
