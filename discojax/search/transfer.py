"""Does what a search found hold elsewhere? Its finalists on other tasks, seeds, policies and rewards.

The finalists compete with the baselines in every stage, each of which changes one thing:

    other seeds     the search's own task and policy, seeds and prompts it has not seen
    TASK            a held-out task, its prompts and its reward
    other policy    the first such task, from a policy of another size
    other reward    the first such task's completions, scored by a reward of another kind, if it has one

More objectives of the search, spread over its ranks, go along: over all of them the rank correlation of
the search's score with a stage's says whether the search measures the right thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from discojax import candidates, objectives
from discojax.config import Config, TaskName
from discojax.errors import UserError
from discojax.search import archive as archives
from discojax.search import logs
from discojax.search.archive import Archive
from discojax.search.correlation import Correlation, rank_correlation
from discojax.search.display import Display, display
from discojax.search.evaluate import every_lane
from discojax.search.finals import only
from discojax.search.frontier import area
from discojax.search.laboratory import measure
from discojax.search.logs import Log
from discojax.search.opening import build_laboratory, given, open_run
from discojax.search.proposals import Notebook
from discojax.search.records import Evaluation
from discojax.search.rungs import BASELINE, TRANSFER, assert_fresh, final_trial, judged, rung_trial, seeds
from discojax.search.statistics import Comparison, Samples
from discojax.search.trials import SFT, Contender, Measured, Trial
from discojax.search.tuning import tune, tuning_trials
from discojax.tasks import catalogue
from discojax.tasks.types import Reward, Task

__all__ = ["Found", "Stage", "Transferred", "found_by", "transfer"]

_APART = 800  # from one stage's rung and seeds to the next's


@dataclass(frozen=True)
class Found:
    """What a finished run leaves to be transferred.

    Attributes:
      finalists: the proposed objectives of its held-out evaluation, in the order of its scores.
      others: the other objectives of its first rung, likewise.
      scores: the frontier area of every objective in that rung, on the search's prompts.
      seeds: every training seed that it used.
      search: the finalists and the baseline in that rung, with intervals.
    """

    finalists: tuple[Contender, ...]
    others: tuple[Contender, ...]
    scores: Mapping[str, float]
    seeds: frozenset[int]
    search: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage's result.

    Attributes:
      name: what it changes.
      detail: to what.
      comparisons: of finalists and baselines with the baseline, Holm-corrected over them.
      scores: frontier area of all objectives, NaN for one that failed.
      correlation: of the search's scores with these.
    """

    name: str
    detail: str
    comparisons: Mapping[str, Comparison]
    scores: Mapping[str, float]
    correlation: Correlation


@dataclass(frozen=True)
class Transferred:
    """What a transfer found.

    Attributes:
      source: the folder of the run whose finalists these are.
      folder: the transfer's own.
      finalists, baselines: names.
      searched: the search's own score of every objective that went along.
      stages: in order.
      search: `Found.search`.
    """

    source: Path
    folder: Path
    finalists: tuple[str, ...]
    baselines: tuple[str, ...]
    searched: Mapping[str, float]
    stages: tuple[Stage, ...]
    search: Mapping[str, Comparison] = field(default_factory=dict)


def transfer(config: Config, tasks: Mapping[TaskName, Config]) -> Transferred:
    """Takes the finalists of the run at `config.run.path` through every stage.

    Its folder is the run's with `-transfer` behind it; there it goes on where it was stopped.

    Args:
      config: the run's.
      tasks: the config of every task to transfer to; the first is that of other policies and rewards.

    Raises:
      UserError: there is no finished run, it has no finalist, or a stage would use its seeds or prompts.
    """
    source = config.run.path
    found = found_by(config)
    names = tuple(objectives.get(name).name for name in (BASELINE, *config.evaluation.baselines))
    baselines = tuple(dict.fromkeys(names))
    contenders = _going(found, baselines, config.transfer.objectives)
    config = replace(config, run=replace(config.run, name=f"{source.name}-transfer"))
    resume = (config.run.path / "archive.sqlite").exists()
    stages = []
    logs.require(config.run)
    with open_run(config, resume, "transfer") as archive, display() as screen, logs.opened(config) as log:
        for number, (name, detail, settings, task) in enumerate(_stages(config, tasks)):
            rung = TRANSFER + _APART * number
            trial = Trial(
                rung, task, "report", settings.evaluation.steps, settings.search.betas,
                seeds(config, rung, settings.evaluation.seeds), settings.evaluation.prompts,
            )  # fmt: skip
            assert_fresh(found.seeds, (*trial.seeds, *seeds(config, _tuning(rung), 1)))
            settings = replace(settings, run=config.run)
            stages += _stage(settings, archive, contenders, trial, name, detail, found, baselines, screen,
                             log, rescored=number == 1)  # fmt: skip
    searched = {c.name: found.scores.get(c.name, np.nan) for c in contenders}
    finalists = tuple(c.name for c in found.finalists)
    return Transferred(source, config.run.path, finalists, baselines, searched, tuple(stages), found.search)


def _tuning(rung: int) -> int:
    """The rung of a stage's tuning, whose seed is beyond all of the stage's own."""
    return rung + _APART - 1


def _stages(config: Config, tasks: Mapping[TaskName, Config]) -> list[tuple[str, str, Config, TaskName]]:
    """Name, detail, config and task of every stage that trains."""
    same = replace(config, task=replace(config.task, held_out=config.task.name))
    detail = f"{config.task.name}, seeds and prompts not searched with"
    stages: list[tuple[str, str, Config, TaskName]] = [("other seeds", detail, same, config.task.name)]
    own = "preferences" in {config.task.name, *tasks}
    for name, settings in tasks.items():
        kept: TaskName = name if {name, config.task.name} & set(catalogue.ALONE) else config.task.name
        held = replace(settings, task=replace(settings.task, name=kept, held_out=name))
        stages.append((name, "held-out task", held, name))
    if own:  # rewards of one's own are meant for it, and packaged tasks beside it have theirs
        stages = [
            (name, detail, held if task == "preferences" else _without_rewards(held), task)
            for name, detail, held, task in stages
        ]
    _, _, held, task = stages[1]
    if held.policy.pretrained is not None:
        return stages  # of that policy there is no other size here
    policy = replace(
        held.policy, layers=config.transfer.layers, width=config.transfer.width, heads=config.transfer.heads
    )
    detail = f"{task}, {policy.layers} layers of width {policy.width}"
    return [*stages, ("other policy", detail, replace(held, policy=policy), task)]


def _without_rewards(config: Config) -> Config:
    return replace(
        config, task=replace(config.task, reward=""), evaluation=replace(config.evaluation, reward="")
    )


def _stage(
    config: Config, archive: Archive, contenders: Sequence[Contender], trial: Trial, name: str, detail: str,
    found: Found, baselines: Sequence[str], screen: Display, log: Log, *, rescored: bool,
) -> list[Stage]:  # fmt: skip
    """The stage, and with `rescored` another of the same completions under another reward."""
    names = tuple(dict.fromkeys((config.task.name, trial.task)))
    laboratory = build_laboratory(config, archive, names, screen, log)
    tunes = bool(config.evaluation.learning_rates)
    laboratory.require(*(tuning_trials(config, trial.task, _tuning(trial.rung)) if tunes else ()), trial)
    if tunes:
        chosen = tune(config, laboratory, contenders, trial.task, screen, _tuning(trial.rung))
        contenders = [replace(c, learning_rate=chosen[c.name].learning_rate) for c in contenders]
    measured = measure(laboratory, contenders, trial, screen, f"transfer: {name}")
    everyone = [*(c.name for c in found.finalists), *baselines]

    def judge(stage: str, what: str, measured: Measured) -> Stage:
        scores = _scores(measured, config.evaluation.kl_budget)
        order = [c.name for c in contenders if c.name in found.scores]
        return Stage(
            stage, what, judged(config, only(measured, everyone)), scores,
            rank_correlation(
                [found.scores[n] for n in order], [scores[n] for n in order], config.evaluation.confidence
            ),
        )  # fmt: skip

    stages = [judge(name, detail, measured)]
    if rescored:
        task = laboratory.tasks[trial.task]
        if (other := catalogue.other_reward(task, trial.split)) is None:
            screen.say(
                f"{trial.task} has no reward but the one that reports, so the stage of another reward is "
                "left out: set task.reward to one of another kind."
            )
        else:
            kind, reward = other
            lanes = every_lane(laboratory, contenders, trial)
            again = _rescore(task, reward, measured, lanes, contenders, trial)
            stages.append(judge("other reward", f"{trial.task}, {kind}", again))
    laboratory.close()
    return stages


def _rescore(
    task: Task, reward: Reward, measured: Measured, lanes, contenders: Sequence[Contender], trial: Trial
) -> Measured:
    """The same completions under another reward."""
    prompts = task.decode(task.prompts[trial.split].rows()[: trial.prompts])

    def row(name: str, beta: float, seed: int) -> np.ndarray:
        lane = lanes[name, beta, seed]
        if lane.status != "ok":
            return np.full(trial.prompts, np.nan)
        return np.asarray(reward(prompts, lane.per_prompt["completion"].tolist()), np.float64)

    sft = np.stack([row(SFT, 0.0, seed) for seed in trial.seeds])
    samples = {
        c.name: Samples(
            np.stack([[row(c.name, beta, seed) for seed in trial.seeds] for beta in trial.betas]),
            measured.samples[c.name].kl,
        )
        for c in contenders
    }
    return Measured(samples, sft.mean(0), sft)


def _scores(measured: Measured, budget: float) -> dict[str, float]:
    """Frontier areas; NaN for what trained at no beta."""
    return {
        name: float(area(s.kl.mean((1, 2)), s.reward.mean((1, 2)), budget, (0.0, measured.sft.mean())))
        if np.isfinite(s.reward.mean((1, 2))).any()
        else float("nan")
        for name, s in measured.samples.items()
    }


def found_by(config: Config) -> Found:
    """What the run at `config.run.path` leaves to be transferred.

    Raises:
      UserError: it is not finished, or none of its finalists was proposed.
    """
    folder = config.run.path
    if not (folder / "archive.sqlite").is_file():
        raise UserError(f"There is no run in {str(folder)!r} whose finalists could be transferred.")
    with archives.open_archive(folder / "archive.sqlite") as archive:
        # Not the controls', whose best are measured beside the finalists and are none.
        attempts = Notebook(archive).attempts
        made = {a.hash: a for a in attempts if a.status == "accepted" and a.hash}
        lanes = archives.evaluations(archive)
    first, final = rung_trial(config, 0), final_trial(config)
    scores = _archived(config, lanes, first.rung, first.task, first.split)
    last = {e.key.objective for e in lanes if e.key.rung == final.rung and e.key.task == final.task}
    if not last:
        raise UserError(
            f"{folder} has no held-out evaluation yet: go on with it by `discover --resume {folder}`."
        )
    chosen: list[Contender] = []
    others: list[Contender] = []
    usable = [a for a in made.values() if a.name in scores and a.name != BASELINE and a.source is not None]
    for attempt in sorted(usable, key=lambda a: (-scores[a.name], a.name)):
        if attempt.operator == "library":
            others.append(given(attempt.name))
            continue
        program = candidates.compile(attempt.source or "", attempt.name)
        (chosen if attempt.name in last else others).append(Contender(attempt.name, program, "proposed"))
    if not chosen:
        raise UserError(f"No finalist of {folder} was proposed, so there is nothing of its own to transfer.")
    found = _compared(config, lanes, first, [c.name for c in chosen])
    return Found(tuple(chosen), tuple(others), scores, frozenset(e.key.seed for e in lanes), found)


def _compared(
    config: Config, lanes: Sequence[Evaluation], trial: Trial, names: Sequence[str]
) -> dict[str, Comparison]:
    """Objectives against the baseline in a rung; none where the archive lacks a lane of these settings."""
    of = {
        (lane.key.objective, lane.key.beta, lane.key.seed): lane
        for lane in lanes
        if (lane.key.rung, lane.key.task, lane.key.split) == (trial.rung, trial.task, trial.split)
    }
    nothing = {"reward": np.full(trial.prompts, np.nan), "kl": np.full(trial.prompts, np.nan)}

    def grid(name: str, what: str, betas: Sequence[float] = trial.betas) -> np.ndarray:
        found = [[of[name, beta, seed] for seed in trial.seeds] for beta in betas]
        rows = [[(e.per_prompt if e.status == "ok" else nothing)[what] for e in row] for row in found]
        return np.asarray(rows, np.float64)

    try:
        samples = {name: Samples(grid(name, "reward"), grid(name, "kl")) for name in (BASELINE, *names)}
        (sft,) = grid(SFT, "reward", (0.0,))
    except KeyError:
        return {}
    return judged(config, Measured(samples, sft.mean(0), sft))


def _archived(config: Config, lanes, rung: int, task: str, split: str) -> dict[str, float]:
    """The frontier area of every objective in a rung, from the means that the archive keeps."""
    points: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for lane in lanes:
        key = lane.key
        if (key.rung, key.task, key.split) == (rung, task, split):
            pair = (lane.kl, lane.reward) if lane.status == "ok" else (np.nan, np.nan)
            points.setdefault(key.objective, {}).setdefault(key.beta, []).append(pair)
    base = np.mean([reward for _, reward in points.pop(SFT, {0.0: [(0.0, np.nan)]})[0.0]])
    found = {}
    for name, by_beta in points.items():
        kl, reward = np.asarray([np.mean(pairs, axis=0) for pairs in by_beta.values()]).T
        if np.isfinite(reward).any():
            found[name] = float(area(kl, reward, config.evaluation.kl_budget, (0.0, base)))
    return found


def _going(found: Found, baselines: Sequence[str], count: int) -> list[Contender]:
    """Finalists, baselines, and as many others, evenly over their ranks, as make up `count`."""
    going = [*found.finalists, *(given(name) for name in baselines)]
    rest = [c for c in found.others if c.name not in {g.name for g in going}]
    wanted = min(max(count - len(going), 0), len(rest))
    places = np.linspace(0, len(rest) - 1, wanted).round().astype(int).tolist()
    return [*going, *(rest[i] for i in dict.fromkeys(places))]
