"""The laboratory: contenders in, measurements out, and nothing measured twice.

Every lane's result is in the archive before anything is made of it. Asking again, in the same run
or after it was stopped, is answered from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from discojax.candidates import Program
from discojax.errors import UserError
from discojax.objectives import machine
from discojax.population.engine import Programs, make_engine
from discojax.population.lanes import Job
from discojax.population.training import Finished, train
from discojax.population.training import Progress as LaneProgress
from discojax.search import archive as archives
from discojax.search.archive import Archive, Evaluation, EvaluationKey
from discojax.search.display import Display
from discojax.search.records import plain
from discojax.search.statistics import Samples
from discojax.tasks.measure import Margins, Measurement, Sampler, make_measure
from discojax.tasks.types import Prompts, Task

__all__ = ["SFT", "Contender", "Laboratory", "Measured", "Trial", "measure"]

SFT = "sft"
"""The name under which the untrained policy is measured: a lane of no steps."""


_LOGGED = ("task", "split", "rung", "beta", "seed", "steps")


@dataclass(frozen=True)
class Contender:
    """An objective that competes: from the library, proposed, or given by the user."""

    name: str
    program: Program
    origin: str
    parents: tuple[str, ...] = ()
    operator: str = ""
    thought: str = ""


@dataclass(frozen=True)
class Trial:
    """What every contender of one round goes through.

    Attributes:
      rung: of racing, from 0; it tells measurements of otherwise equal settings apart.
      task, split: what is trained on and which prompts measure it.
      steps, betas, seeds: a lane each beta and seed, of that many steps.
      prompts: how many of the split's prompts.
    """

    rung: int
    task: str
    split: str
    steps: int
    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: int


@dataclass(frozen=True)
class Laboratory:
    """Everything that measuring takes, built once a run."""

    programs: Programs
    sampler: Sampler
    tasks: Mapping[str, Task]
    archive: Archive
    learning_rate: float
    metrics: Path
    margins: Margins | None = None


class Measured(NamedTuple):
    """A round's measurements.

    Attributes:
      samples: reward and KL of each contender, `[betas, seeds, prompts]`, NaN where it diverged.
      sft: the SFT policy's reward on the same prompts, `[prompts]`, its draws averaged over seeds.
      sft_by_seed: the same by seed, `[seeds, prompts]`.
    """

    samples: dict[str, Samples]
    sft: np.ndarray
    sft_by_seed: np.ndarray


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
    wanted = list(_wanted(laboratory, contenders, trial))
    known = {
        key: found
        for key, _ in wanted
        if (found := archives.get_evaluation(laboratory.archive, key)) is not None
    }
    missing = [(key, job) for key, job in wanted if key not in known]
    if missing:
        known |= _run(laboratory, missing, trial, display, title)
    return _assemble(known, contenders, trial, laboratory)


def _wanted(
    laboratory: Laboratory, contenders: Sequence[Contender], trial: Trial
) -> Iterator[tuple[EvaluationKey, Job]]:
    nothing = machine.encode([], 0.0)
    for seed in trial.seeds:
        yield _key(laboratory, trial, SFT, SFT, 0.0, seed), Job(nothing, 0.0, seed, 0.0, 0)
        for contender in contenders:
            program = contender.program
            if program.minimum_batch > laboratory.programs.batch:
                raise UserError(
                    f"{contender.name} needs batches of at least {program.minimum_batch} pairs: "
                    "raise population.batch."
                )
            for beta in trial.betas:
                yield (
                    _key(laboratory, trial, program.hash, contender.name, beta, seed),
                    Job(program.code, beta, seed, laboratory.learning_rate, trial.steps),
                )


def _key(laboratory: Laboratory, trial: Trial, program: str, name: str, beta: float, seed: int):
    trained = program != SFT
    return EvaluationKey(
        hash=program,
        objective=name,
        task=trial.task,
        split=trial.split,
        rung=trial.rung,
        beta=beta,
        seed=seed,
        steps=trial.steps if trained else 0,
        learning_rate=laboratory.learning_rate if trained else 0.0,
    )


def _run(
    laboratory: Laboratory,
    missing: Sequence[tuple[EvaluationKey, Job]],
    trial: Trial,
    display: Display,
    title: str,
) -> dict[EvaluationKey, Evaluation]:
    task = laboratory.tasks[trial.task]
    prompts = task.prompts[trial.split]
    if trial.prompts > len(prompts.lengths):
        raise UserError(
            f"{trial.task} has {len(prompts.lengths)} prompts for {trial.split!r}, and "
            f"{trial.prompts} are asked for: lower evaluation.prompts or evaluation.search_prompts."
        )
    prompts = Prompts(*(array[: trial.prompts] for array in prompts))
    engine = make_engine(laboratory.programs, task.params, task.pairs)
    gauge = make_measure(
        laboratory.sampler, prompts, engine.params, decode=task.decode, reward=task.reward[trial.split],
        margins=laboratory.margins, held_out=task.held_out,
    )  # fmt: skip
    bar = display.bar(title, sum(max(job.steps, 1) for _, job in missing))
    started = time.monotonic()

    def progress(report: LaneProgress) -> None:
        bar.advance(report.useful)
        _log(laboratory.metrics, kind="progress", rung=trial.rung, seconds=time.monotonic() - started,
             **report._asdict())  # fmt: skip

    found = {}
    for finished in train(engine, iter(missing), gauge, progress):
        evaluation = _evaluation(finished)
        archives.add_evaluations(laboratory.archive, [evaluation])
        found[evaluation.key] = evaluation
        _log(
            laboratory.metrics,
            kind="lane",
            objective=finished.key.objective,
            **{
                name: getattr(finished.key, name)
                for name in ("task", "split", "rung", "beta", "seed", "steps")
            },
            status=evaluation.status,
            reward=evaluation.reward,
            kl=evaluation.kl,
            **{f"train_{name}": value for name, value in finished.metrics._asdict().items()},
        )
    bar.update(bar.total)
    return found


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


def _assemble(
    known: Mapping[EvaluationKey, Evaluation],
    contenders: Sequence[Contender],
    trial: Trial,
    laboratory: Laboratory,
) -> Measured:
    def row(program: str, name: str, beta: float, seed: int, what: str) -> np.ndarray:
        evaluation = known[_key(laboratory, trial, program, name, beta, seed)]
        if evaluation.status != "ok":
            return np.full(trial.prompts, np.nan)
        return np.asarray(evaluation.per_prompt[what], np.float64)

    def grid(contender: Contender, what: str) -> np.ndarray:
        return np.stack(
            [
                [row(contender.program.hash, contender.name, beta, seed, what) for seed in trial.seeds]
                for beta in trial.betas
            ]
        )

    sft = np.stack([row(SFT, SFT, 0.0, seed, "reward") for seed in trial.seeds])
    samples = {c.name: Samples(grid(c, "reward"), grid(c, "kl")) for c in contenders}
    return Measured(samples, sft.mean(0), sft)


def _log(file: Path, **fields) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(plain({"time": time.time(), **fields})) + "\n")
