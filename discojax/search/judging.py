"""The judge of an evaluation: which it is, what it is shown, and the win rates that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rich.markup import escape

from discojax.config import Config
from discojax.errors import UserError, nearest
from discojax.places import going_on
from discojax.proposers.client import Request, Turn, request_hash
from discojax.proposers.connect import SERVERS, connect
from discojax.search.display import Display
from discojax.search.records import Evaluation
from discojax.search.rungs import BASELINE
from discojax.search.statistics import holm, mean, p_value
from discojax.search.trials import SFT, Trial
from discojax.search.tuning import Choice
from discojax.search.winrate import WinRate, win_rate
from discojax.tasks.judges import Judge, Kind, LanguageModelJudge, RewardJudge, Verdicts
from discojax.tasks.own_rewards import identify
from discojax.tasks.summaries import MARKER, bodies_of
from discojax.tasks.types import Task

__all__ = ["make_judge", "win_rates"]


def make_judge(config: Config, name: str | None = None) -> Judge | None:
    """The language model that `evaluation.judge`, or else `name`, names; None for the proxy.

    It is asked whether it is there.

    Raises:
      UserError: there is no such server, its SDK or its key is missing, or it has no such model.
    """
    wanted = config.evaluation.judge if name is None else name
    if wanted == "proxy":
        return None
    server, colon, model = wanted.partition(":")
    if not colon or not model or server not in SERVERS:
        where = "evaluation.judge" if name is None else "The judge of a reward"
        raise UserError(
            f"{where} ({wanted!r}) must be {'proxy, or ' if name is None else ''}SERVER:MODEL with a server "
            f"of {', '.join(SERVERS)}.{nearest(server, ('proxy', *SERVERS))}"
        )
    settings = config.proposer
    # Where the proposer's server is and what holds its key is not what another kind of server takes.
    shared = config.search.proposer == server or config.search.proposer not in SERVERS
    options: dict[str, Any] = {"api_version": settings.api_version} if server == "gemini" else {}
    client = connect(
        server,  # type: ignore[arg-type]
        model,
        base_url=(settings.base_url or None) if shared else None,
        key_variable=(settings.key_variable or None) if shared else None,
        thinking=settings.thinking,
        **options,
    )
    client.probe()

    kind: Kind = "summaries" if config.task.held_out == "tldr" or config.task.marker else "replies"
    request = Request(
        system=f"You compare {kind}.",
        turns=(),
        temperature=0.0,
        max_output_tokens=settings.output_tokens,
        timeout=settings.timeout,
    )

    def ask(text: str) -> str:
        return client.generate(replace(request, turns=(Turn("user", text),))).texts[0]

    return LanguageModelJudge(
        ask,
        f"{server}:{model}",
        partial(bodies_of, marker=config.task.marker or MARKER),
        kind=kind,
        settings=f"{client.base_url}\n{request_hash(client, request)}",
    )


def win_rates(
    config: Config,
    task: Task,
    judge: Judge | None,
    found: Mapping[tuple[str, float, int], Evaluation],
    chosen: Mapping[str, Choice],
    trial: Trial,
    screen: Display,
) -> tuple[WinRate, ...]:
    """Every objective at its chosen beta, and the untrained policy, against each opponent.

    Opponents are what people wrote, where the task has that, and the untrained policy's completion of
    the same prompt and seed; but to ROUGE, which compares with what people wrote, that is no opponent. A
    task without either a judge or references has no win rates. A judge that fails, now that everything is
    trained, leaves orders without an answer, which are counted, and the first reason is said.

    Args:
      config: of the run.
      task: whose references and reward are used.
      judge: see `make_judge`; None for the proxy, the reward that reports.
      found: every lane.
      chosen: the beta of each objective.
      trial: what they went through.
      screen: where progress is shown.
    """
    if not task.references and judge is None:
        return ()
    by_rouge = judge is None and task.rewards.get(trial.split) == identify("rouge")
    judge = judge or RewardJudge(task.reward[trial.split])
    count = min(config.evaluation.judged, trial.prompts)
    prompts = task.asked(trial.split)[:count]
    human = list(task.references.get(trial.split, ()))[:count]

    def texts(name: str, beta: float, seed: int) -> list[str] | None:
        lane = found[name, beta, seed]
        return [str(t) for t in lane.per_prompt["completion"][:count]] if lane.status == "ok" else None

    sides = {SFT: 0.0, **{name: choice.beta for name, choice in chosen.items()}}
    opponents = (["human"] if human and not by_rouge else []) + [SFT]
    bar = screen.bar(f"judged by {judge.name}", len(sides) * len(opponents) * len(trial.seeds))
    rates: list[WinRate] = []
    failed: list[UserError] = []

    def verdicts_of(own: Sequence[str], other: Sequence[str]) -> Verdicts:
        try:
            return judge.compare(prompts, own, other)
        except UserError as error:
            failed.append(error)
            none = np.zeros(len(own))
            return Verdicts(np.full(len(own), np.nan), none, none, none + 2)

    for opponent in opponents:
        outcomes: dict[str, np.ndarray] = {}
        for name, beta in sides.items():
            if name == opponent:
                continue
            ours, theirs, verdicts = [], [], []
            for seed in trial.seeds:
                bar.advance()
                own = texts(name, beta, seed)
                other = human if opponent == "human" else texts(SFT, 0.0, seed)
                if own is None or other is None:
                    continue
                ours.append(own)
                theirs.append(other)
                verdicts.append(verdicts_of(own, other))
            whole = len(verdicts) == len(trial.seeds)  # one that diverged is a failure, not a smaller sample
            rates.append(_rate(config, name, opponent, judge, ours, theirs, verdicts, whole, outcomes))
        rates = _against_baseline(rates, opponent, outcomes)
    bar.update(bar.total)
    if failed:
        screen.say(
            f"{escape(str(failed[0]))} What it did not answer is counted as such and the rest is kept; "
            f"`{going_on('evaluate', config.run.path)}` asks again, also of another evaluation.judge."
        )
    return tuple(rate for opponent in opponents for rate in _corrected(rates, opponent))


def _rate(
    config: Config, name: str, opponent: str, judge: Judge, ours, theirs, verdicts: list[Verdicts],
    whole: bool, outcomes: dict[str, np.ndarray],
) -> WinRate:  # fmt: skip
    rate = controlled = None
    p, count = np.nan, 0
    if whole:
        win = np.stack([v.win for v in verdicts])
        lengths, opposed = (
            np.asarray([[len(text.split()) for text in seed] for seed in side], np.float64)
            for side in (ours, theirs)
        )
        rng = np.random.default_rng(config.run.seed)
        rate, controlled, p, count = win_rate(
            win, lengths, opposed, rng=rng, replicates=config.evaluation.bootstrap
        )
        outcomes[name] = win
    return WinRate(
        name, opponent, judge.name, judge.proxy, rate, controlled, None, float(p),
        p_holm=np.nan,
        difference_p_holm=None,
        prompts=count,
        asked=len(ours[0]) if ours else 0,
        ties=int(sum(v.ties.sum() for v in verdicts)),
        unparseable=int(sum(v.unparseable.sum() for v in verdicts)),
        unanswered=int(sum(v.unanswered.sum() for v in verdicts)),
        verdicts=2 * sum(len(v.win) for v in verdicts),
        empty=sum(not text.strip() for seed in ours for text in seed),
    )  # fmt: skip


def _corrected(rates: Sequence[WinRate], opponent: str) -> list[WinRate]:
    """The rates against one opponent with Holm's p values; what has none counts as one of the hypotheses."""
    met = [rate for rate in rates if rate.opponent == opponent]
    differences = [np.nan if rate.difference is None else p_value(rate.difference) for rate in met]
    compared = [i for i, rate in enumerate(met) if rate.name != BASELINE]
    by_difference = dict(zip(compared, holm([differences[i] for i in compared]).tolist(), strict=True))
    return [
        replace(rate, p_holm=p, difference_p_holm=None if rate.difference is None else by_difference[i])
        for i, (rate, p) in enumerate(zip(met, holm([rate.p_value for rate in met]).tolist(), strict=True))
    ]


def _against_baseline(
    rates: list[WinRate], opponent: str, outcomes: Mapping[str, np.ndarray]
) -> list[WinRate]:
    base = outcomes.get(BASELINE)
    changed = []
    for rate in rates:
        win = outcomes.get(rate.name)
        if rate.opponent == opponent and rate.name != BASELINE and base is not None and win is not None:
            both = np.isfinite(win + base).all(axis=0)
            if both.sum() >= 2:
                rate = replace(rate, difference=mean(win[:, both] - base[:, both]))
        changed.append(rate)
    return changed
