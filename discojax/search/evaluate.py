"""The held-out evaluation of given objectives: their frontiers, what they cost, and who wins.

    every learning rate and beta, one seed, on prompts that choose -> every beta, all seeds, on those
    that report, at each objective's own learning rate -> statistics -> the judge

Every objective is tuned with the same budget, because a loss's scale acts as a learning rate. What the
tuning chose, learning rate and beta, it chose on other prompts and seeds than those that report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from discojax import candidates
from discojax.config import Config
from discojax.data import cache
from discojax.errors import UserError
from discojax.search import archive as archives
from discojax.search import logs
from discojax.search.archive import EvaluationKey
from discojax.search.display import display
from discojax.search.judging import make_judge, win_rates
from discojax.search.laboratory import Laboratory, measure, wanted
from discojax.search.opening import build_laboratory, given, open_run
from discojax.search.records import Evaluation
from discojax.search.rungs import BASELINE, REPORT, TUNING, assert_fresh, judged, learning_rates, seeds
from discojax.search.statistics import Comparison, Estimate, holm, mean, p_value
from discojax.search.trials import SFT, Contender, Measured, Trial
from discojax.search.tuning import Choice, tune, tuning_trials
from discojax.search.winrate import WinRate
from discojax.tasks import overlap
from discojax.tasks.distinct import distinct_by_text
from discojax.tasks.own_rewards import counted, identify, own_reward
from discojax.tasks.types import Reward, Task

__all__ = ["Evaluated", "Line", "Tuned", "evaluate", "every_lane"]


@dataclass(frozen=True)
class Line:
    """One objective at one beta, over all seeds and prompts; None where no seed's policy trained.

    Attributes:
      name: the objective, or "sft" for the untrained policy, whose beta is 0.
      beta, learning_rate: of training.
      lanes, diverged: seeds, and those of them that did not end with finite numbers.
      reward: of the completions.
      gain: reward minus the untrained policy's, paired by seed and prompt.
      gain_p_holm, reward_difference_p_holm, kl_difference_p_holm: two-sided p values of no gain and no
        difference, each corrected by Holm over all objectives and betas.
      kl: sequence KL(policy‖reference) over completion tokens, nats.
      reverse_kl: KL(reference‖policy) per completion token, nats: what the DiscoPOP paper reports.
      length: completion tokens.
      distinct1, distinct2: different words, and pairs of words, per word and pair; a mean over seeds. None
        where nothing was written.
      accuracy: the share of held-out pairs with a margin above 0.
      margin: beta times the log-ratio margin on held-out pairs, and
      log_ratio: that margin itself, nats.
      reward_difference, kl_difference: to the baseline at the same beta, None for the baseline.
      rouge1, rouge2, rouge_l: F1 with what people wrote, where the task has that: a proxy.
      empty: completions without a word, of
      completions: all of them.
    """

    name: str
    beta: float
    learning_rate: float
    lanes: int
    diverged: int
    reward: Estimate | None = None
    gain: Estimate | None = None
    gain_p_holm: float | None = None
    kl: Estimate | None = None
    reverse_kl: Estimate | None = None
    length: Estimate | None = None
    distinct1: Estimate | None = None
    distinct2: Estimate | None = None
    accuracy: Estimate | None = None
    margin: Estimate | None = None
    log_ratio: Estimate | None = None
    reward_difference: Estimate | None = None
    reward_difference_p_holm: float | None = None
    kl_difference: Estimate | None = None
    kl_difference_p_holm: float | None = None
    rouge1: Estimate | None = None
    rouge2: Estimate | None = None
    rouge_l: Estimate | None = None
    empty: int = 0
    completions: int = 0


@dataclass(frozen=True)
class Tuned:
    """An objective minus the baseline, each at the beta chosen for it, paired by seed and prompt.

    Attributes:
      reward, kl: the differences.
      reward_p_holm, kl_p_holm: two-sided p values of none, each corrected by Holm over all objectives.
    """

    reward: Estimate
    kl: Estimate
    reward_p_holm: float
    kl_p_holm: float


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, for whoever prints, plots or tests it.

    Attributes:
      folder: the run's.
      trial: what every objective went through.
      contenders: the objectives, each with its own learning rate, the baseline among them.
      chosen: the learning rate and beta of each, of
      rates: all learning rates that were tried, and the trial's betas.
      measured: reward and KL of each, by beta, seed and prompt.
      comparisons: of frontiers, each against the baseline, Holm-corrected over all but it.
      lines: every objective at every beta, and the untrained policy.
      gains: Holm-corrected p value of each objective's gain over the untrained policy at its chosen beta.
      tuned: each objective at its chosen beta against the baseline at its own; none of what diverged there.
      wins: at each objective's chosen beta; none where the task has nothing to compare with.
      facts: of the task.
    """

    folder: Path
    trial: Trial
    contenders: tuple[Contender, ...]
    chosen: Mapping[str, Choice]
    rates: tuple[float, ...]
    measured: Measured
    comparisons: Mapping[str, Comparison]
    lines: tuple[Line, ...]
    gains: Mapping[str, float]
    tuned: Mapping[str, Tuned]
    wins: tuple[WinRate, ...]
    facts: Mapping[str, object]


def evaluate(config: Config, names: Sequence[str], *, resume: bool = False) -> Evaluated:
    """Trains and measures objectives on `config.task.held_out`, in the folder `config.run.path`.

    Args:
      config: see `Config`; `search.betas` and `evaluation` say what is measured.
      names: of the library, or files of candidate text; the baseline is always among them.
      resume: whether the folder holds an evaluation that was stopped.

    Raises:
      UserError: an objective, a task or a judge does not exist; the baseline trained at no beta.
    """
    names = tuple(dict.fromkeys((BASELINE, *names)))
    candidates.warm()
    contenders = [given(name) for name in names]
    if len({c.name for c in contenders}) < len(contenders):
        raise UserError("Two of the objectives have the same name; rename the function in one of the files.")
    assert_fresh(seeds(config, TUNING, 1), seeds(config, REPORT, config.evaluation.seeds))
    judge = make_judge(config)  # a missing key is told before an hour of work, not after
    name = config.task.held_out
    other = config.evaluation.reward if name != "preferences" else ""  # which knows it by itself
    rescore = partial(_scored_by, own_reward(other), other) if other else None
    logs.require(config.run)
    with open_run(config, resume, "evaluate") as archive, display() as screen, logs.opened(config) as log:
        laboratory = build_laboratory(
            config, archive, (name,), screen, log,
            held_out_pairs=config.evaluation.held_out_pairs, rescore=rescore,
        )  # fmt: skip
        evaluation = config.evaluation
        trial = Trial(
            REPORT, name, "report", evaluation.steps, config.search.betas,
            seeds(config, REPORT, evaluation.seeds), evaluation.prompts,
        )  # fmt: skip
        laboratory.require(*tuning_trials(config, name), trial)
        chosen = tune(config, laboratory, contenders, name, screen)
        contenders = [replace(c, learning_rate=chosen[c.name].learning_rate) for c in contenders]
        measured = measure(laboratory, contenders, trial, screen, f"{len(contenders)} objectives on {name}")
        found = every_lane(laboratory, contenders, trial)
        _check(found, trial)
        laboratory.close()
        lines = _lines(laboratory.tasks[name], found, contenders, trial)
        return Evaluated(
            config.run.path, trial, tuple(contenders), chosen, tuple(learning_rates(config)), measured,
            judged(config, measured), lines,
            _gains(lines, chosen), _tuned(measured, chosen, trial),
            win_rates(config, laboratory.tasks[name], judge, found, chosen, trial, screen),
            laboratory.tasks[name].facts,
        )  # fmt: skip


def _check(found: Mapping[tuple[str, float, int], Evaluation], trial: Trial) -> None:
    """That there is something to compare with: the untrained policy, and the baseline at some beta."""
    for name, betas in ((SFT, (0.0,)), (BASELINE, trial.betas)):
        failed = [[found[name, b, s] for s in trial.seeds if found[name, b, s].status != "ok"] for b in betas]
        if all(failed):
            what = "The supervised policy" if name == SFT else f"{name}, the baseline,"
            raise UserError(f"{what} has no measurement to compare with: {failed[0][0].reason}.")


def _scored_by(reward: Reward, name: str, task: Task) -> Task:
    """The task with another reward for what chooses and what reports; its pairs keep their labels."""
    counts: dict[str, int] = {}
    return replace(
        task,
        reward=dict.fromkeys(task.reward, counted(reward, counts)),
        facts={**task.facts, "reward": name, "judged": counts},
        source=cache.content_hash([task.source, identify(name)]),
    )


def every_lane(
    laboratory: Laboratory, contenders: Sequence[Contender], trial: Trial
) -> dict[tuple[str, float, int], Evaluation]:
    """Every lane of the trial with all of its arrays, by objective, beta and seed."""
    keys: list[EvaluationKey] = list(wanted(laboratory, contenders, trial))
    found = {}
    for key in keys:
        evaluation = archives.get_evaluation(laboratory.archive, key)
        assert evaluation is not None
        found[key.objective, key.beta, key.seed] = evaluation
    return found


def _lines(
    task: Task,
    found: Mapping[tuple[str, float, int], Evaluation],
    contenders: Sequence[Contender],
    trial: Trial,
) -> tuple[Line, ...]:
    untrained = [found[SFT, 0.0, seed] for seed in trial.seeds]
    human = list(task.references.get(trial.split, ()))[: trial.prompts]
    lines = [_line(task, human, SFT, 0.0, 0.0, untrained, untrained, None)]
    for contender in contenders:
        for beta in trial.betas:
            lanes, base = (
                [found[name, beta, seed] for seed in trial.seeds] for name in (contender.name, BASELINE)
            )
            rate = contender.learning_rate or 0.0
            against = None if contender.name == BASELINE else base
            lines.append(_line(task, human, contender.name, beta, rate, lanes, untrained, against))
    return _corrected(lines)


def _corrected(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with Holm's p values; what diverged counts as one of the hypotheses."""
    corrected = list(lines)
    for what in ("gain", "reward_difference", "kl_difference"):
        tested = [
            i for i, line in enumerate(lines)
            if line.name != SFT and (line.name != BASELINE or what == "gain")
        ]  # fmt: skip
        for i, p in zip(tested, _holm([getattr(lines[i], what) for i in tested]), strict=True):
            if getattr(lines[i], what) is not None:
                changed: dict[str, Any] = {f"{what}_p_holm": p}
                corrected[i] = replace(corrected[i], **changed)
    return tuple(corrected)


def _holm(estimates: Sequence[Estimate | None]) -> list[float]:
    """Corrected p values of zero, NaN where nothing was measured."""
    return [float(p) for p in holm([np.nan if e is None else p_value(e) for e in estimates])]


def _line(
    task: Task,
    human: Sequence[str],
    name: str,
    beta: float,
    rate: float,
    lanes: Sequence[Evaluation],
    untrained: Sequence[Evaluation],
    baseline: Sequence[Evaluation] | None,
) -> Line:
    diverged = sum(lane.status != "ok" for lane in lanes)
    line = Line(name, beta, rate, len(lanes), diverged)
    if diverged:  # a mean over the seeds that survived would reward failing on the hard ones
        return line

    def grid(of: Sequence[Evaluation], what: str) -> Float[Array, "seeds prompts"]:
        return np.stack([np.asarray(lane.per_prompt[what], np.float64) for lane in of])

    texts = [lane.per_prompt["completion"].tolist() for lane in lanes]
    line = replace(
        line,
        reward=mean(grid(lanes, "reward")),
        kl=mean(grid(lanes, "kl")),
        reverse_kl=mean(grid(lanes, "reverse_kl")),
        length=mean(grid(lanes, "length")),
        distinct1=_distinct(texts, 1),
        distinct2=_distinct(texts, 2),
        empty=sum(not text.strip() for t in texts for text in t),
        completions=sum(map(len, texts)),
    )
    if human:
        scored = [overlap.rouge(t, human) for t in texts]
        rouge1, rouge2, rouge_l = (
            mean(np.stack([found[kind] for found in scored])) for kind in ("rouge1", "rouge2", "rougeL")
        )
        line = replace(line, rouge1=rouge1, rouge2=rouge2, rouge_l=rouge_l)
    if name != SFT and all(lane.status == "ok" for lane in untrained):
        line = replace(line, gain=mean(grid(lanes, "reward") - grid(untrained, "reward")))
    if task.held_out is not None and name != SFT:
        margin = grid(lanes, "margin")
        line = replace(line, accuracy=mean(margin > 0), margin=mean(beta * margin), log_ratio=mean(margin))
    if baseline is not None and all(lane.status == "ok" for lane in baseline):
        line = replace(
            line,
            reward_difference=mean(grid(lanes, "reward") - grid(baseline, "reward")),
            kl_difference=mean(grid(lanes, "kl") - grid(baseline, "kl")),
        )
    return line


def _distinct(texts: Sequence[Sequence[str]], size: int) -> Estimate | None:
    by_text = np.stack([distinct_by_text(seed, size) for seed in texts])
    return mean(by_text) if np.isfinite(by_text).all() else None


def _gains(lines: Sequence[Line], chosen: Mapping[str, Choice]) -> dict[str, float]:
    at = {(line.name, line.beta): line.gain for line in lines}
    return dict(zip(chosen, _holm([at[name, c.beta] for name, c in chosen.items()]), strict=True))


def _tuned(measured: Measured, chosen: Mapping[str, Choice], trial: Trial) -> dict[str, Tuned]:
    """Every objective at its chosen beta against the baseline at its own."""

    def minus_baseline(name: str, of: int) -> Estimate | None:
        ours, theirs = (
            measured.samples[one][of][trial.betas.index(chosen[one].beta)] for one in (name, BASELINE)
        )
        return mean(ours - theirs) if np.isfinite(ours - theirs).all() else None

    names = [name for name in chosen if name != BASELINE]
    rewards, kls = ([minus_baseline(name, of) for name in names] for of in (0, 1))
    found = {}
    for name, reward, kl, *p in zip(names, rewards, kls, _holm(rewards), _holm(kls), strict=True):
        if reward is not None and kl is not None:
            found[name] = Tuned(reward, kl, *p)
    return found
