"""What an evaluation ends with: its table, its findings, its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from discojax.data import cache
from discojax.report import boards, leaderboard, plots, tables
from discojax.search.evaluate import Evaluated, Line
from discojax.search.records import plain
from discojax.search.rungs import BASELINE
from discojax.search.statistics import Estimate, interval
from discojax.search.trials import SFT
from discojax.search.winrate import WinRate, rate_interval

__all__ = ["findings", "show"]

_OURS = "discopop"  # whom the paper's claims are about


def show(
    evaluated: Evaluated, *, kl_budget: float, confidence: float, console: Console | None = None
) -> None:
    """Prints tables and findings, and writes them and the plot into the run's folder."""
    console = console or Console()
    console.print()
    console.print(_frontiers(evaluated, kl_budget, confidence))
    for table in (*_behaviour(evaluated, confidence), *_winners(evaluated.wins, confidence)):
        console.print(table)
    for sentence in findings(evaluated, confidence):
        console.print(f"- {sentence}", highlight=False)
    for what, file in _write(evaluated, kl_budget, confidence).items():
        console.print(f"{what}: {file}", highlight=False, soft_wrap=True)


def _table(
    title: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> RenderableType:
    table = tables.plain(title)
    for i, heading in enumerate(headings):
        words = i == 0 or heading == "verdict"
        # On a narrow terminal names and words fold; a number is never cut.
        table.add_column(
            Text(heading), justify="left" if words else "right", no_wrap=not words, overflow="fold",
            min_width=10 if words else None,
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(Text, row))  # Text: names may hold markup
    return tables.captioned(table, caption)


def _best(evaluated: Evaluated) -> dict[str, Line]:
    """The line of each objective at the beta that tuning chose, and the untrained policy's."""
    at = {(line.name, line.beta): line for line in evaluated.lines}
    return {SFT: at[SFT, 0.0]} | {name: at[name, choice.beta] for name, choice in evaluated.chosen.items()}


def _ranked(evaluated: Evaluated) -> list[str]:
    scores = {
        name: -np.inf if c.verdict == "failed" else c.score.value for name, c in evaluated.comparisons.items()
    }
    return sorted(scores, key=lambda name: (-scores[name], name))


def _frontiers(evaluated: Evaluated, kl_budget: float, confidence: float) -> RenderableType:
    trial, lines = evaluated.trial, _best(evaluated)
    rows = []
    for name in _ranked(evaluated):
        comparison = evaluated.comparisons[name]
        failed = comparison.verdict == "failed"
        notes = [] if np.isnan(comparison.p_holm) else [f"p {comparison.p_holm:.3f}"]
        if comparison.failures:
            notes.append(f"{comparison.failures} of {comparison.lanes} lanes diverged")
        rows.append(
            [
                name,
                _plus_minus(None if failed else comparison.score, confidence),
                _plus_minus(
                    None if failed or name == BASELINE else comparison.difference, confidence, "{:+.3f}"
                ),
                _plus_minus(lines[name].gain, confidence, "{:+.3f}")
                + ("*" if evaluated.gains[name] < 1 - confidence else ""),
                f"{comparison.verdict} ({', '.join(notes)})" if notes else comparison.verdict,
            ]
        )
    caption = (
        f"Area: mean height of the reward-KL frontier above the supervised policy, up to {kl_budget:g} "
        f"nats, over betas {', '.join(f'{beta:g}' for beta in trial.betas)}. Gain: reward above the "
        "supervised policy's at the beta chosen, * if it is not zero after Holm's correction. "
        f"{len(trial.seeds)} seeds x {trial.prompts} prompts, paired; ± is the {100 * confidence:g} % "
        "interval; verdicts are Holm-corrected over all. Rates and betas were chosen on other prompts."
    )
    headings = ["objective", "area", f"vs {BASELINE}", "gain", "verdict"]
    return _table(f"{trial.task}, held out", caption, headings, rows)


def _behaviour(evaluated: Evaluated, confidence: float) -> list[RenderableType]:
    """What each did at its chosen beta, in tables that a terminal of 80 columns has room for."""
    lines = _best(evaluated)
    shown = [(name, lines[name]) for name in (SFT, *_ranked(evaluated))]
    costs = [
        [
            name,
            f"{line.learning_rate:g}" if name != SFT else "",
            f"{line.beta:g}" if name != SFT else "",
            _plus_minus(line.reward, confidence),
            _plus_minus(line.kl, confidence, "{:.1f}"),
            _plus_minus(line.reverse_kl, confidence, "{:.2f}"),
        ]
        for name, line in shown
    ]
    caption = (
        f"At each objective's chosen learning rate and beta; ± is the {100 * confidence:g} % interval. KL: "
        "sequence KL(policy‖reference) over completion tokens, nats; /tok: KL(reference‖policy) per "
        f"completion token, the DiscoPOP paper's. {_edges(evaluated)}"
    )
    empty, every = (sum(getattr(x, what) for x in evaluated.lines) for what in ("empty", "completions"))
    said = (
        "Len: completion tokens. d-1, d-2: different words and pairs of words per word and pair. "
        f"{empty} of all {every} completions are empty."
    )
    words = ["objective", "len", "d-1", "d-2"]
    texts = [
        [
            name,
            _plus_minus(line.length, confidence, "{:.1f}"),
            _plus_minus(line.distinct1, confidence, "{:.2f}"),
            _plus_minus(line.distinct2, confidence, "{:.2f}"),
        ]
        for name, line in shown
    ]
    if any(line.rouge_l is not None for line in lines.values()):
        words.append("RG-L")
        said += " RG-L: ROUGE-L F1 with the human's, a proxy of what is said."
        texts = [[*row, _plus_minus(lines[row[0]].rouge_l, confidence)] for row in texts]
    pairs = [
        [name, _plus_minus(line.accuracy, confidence), _plus_minus(line.margin, confidence, "{:.2f}")]
        for name, line in shown
        if name != SFT
    ]
    return [
        _table("", caption, ["objective", "rate", "β", "reward", "KL", "/tok"], costs),
        _table("", said, words, texts),
        _table("", "On held-out pairs; the margin is beta times the log-ratio margin.",
               ["objective", "accuracy", "margin"], pairs),
    ]  # fmt: skip


def _edges(evaluated: Evaluated) -> str:
    """How many objectives were tuned to an end of what was tried, beyond which they might do better."""
    grids = (("rate", evaluated.rates), ("beta", evaluated.trial.betas))
    said = [
        f"{sum(choice[of] in (min(grid), max(grid)) for choice in evaluated.chosen.values())} chose the "
        f"lowest or highest {what} of {len(grid)}"
        for of, (what, grid) in enumerate(grids)
        if len(grid) > 1
    ]
    return f"Of {len(evaluated.chosen)} objectives {' and '.join(said)}." if said else "Nothing was tuned."


def _winners(wins: Sequence[WinRate], confidence: float) -> list[RenderableType]:
    """A table for each opponent; the last says how they are to be read."""
    if not wins:
        return []
    total = {what: sum(getattr(win, what) for win in wins) for what in
             ("ties", "unparseable", "unanswered", "verdicts", "empty")}  # fmt: skip
    caption = (
        f"Judged by {wins[0].judge}, each pair once in each order"
        + (
            ", which is a proxy: no person and no language model compared anything. "
            if wins[0].proxy
            else ". "
        )
        + f"LC: at equal length. Of {total['verdicts']} verdicts {total['ties']} are ties, "
        f"{total['unparseable']} could not be read and {total['unanswered']} never came; a post that lacks "
        "one for any order or seed is left out. Intervals are by post and seed, and posts are unique. p: of "
        f"one half, and of no difference to {BASELINE}'s, each after Holm's correction over the table."
    )
    headings = ["objective", "win rate", "p", "LC", f"vs {BASELINE}", "p", "posts"]
    opponents = {win.opponent: "SFT's" if win.opponent == SFT else f"{win.opponent}'s" for win in wins}
    tables = []
    for opponent, whose in opponents.items():
        rows = [
            [
                win.name,
                _share(win.rate, confidence),
                _p(win.p_holm),
                _share(win.controlled, confidence),
                _plus_minus(win.difference, confidence, "{:+.3f}"),
                _p(win.difference_p_holm),
                f"{win.prompts}/{win.asked}",
            ]
            for win in wins
            if win.opponent == opponent
        ]
        last = opponent == list(opponents)[-1]
        tables.append(_table(f"win rates against the {whose}", caption if last else "", headings, rows))
    return tables


def _p(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def findings(evaluated: Evaluated, confidence: float) -> list[str]:
    """What the paper says of DiscoPOP against DPO, checked here and stated either way; and failures."""
    found = [
        f"{line.name} at beta {line.beta:g}: {line.diverged} of {line.lanes} seeds diverged, so it has no "
        "number there."
        for line in evaluated.lines
        if line.diverged
    ]
    best = _best(evaluated)
    for name in (BASELINE, _OURS):
        if name in best and (gain := best[name].gain) is not None:
            p = evaluated.gains[name]
            found.append(
                f"At the beta chosen for it, {best[name].beta:g}, {name}'s reward is "
                f"{_side(gain, p, confidence, 'above', 'below')} the supervised policy's "
                f"({_span(gain, p, confidence)}, Holm's over {len(evaluated.gains)} objectives)."
            )
    if _OURS not in evaluated.chosen:
        return found
    return [*found, *_at_lower_kl(evaluated, confidence), *_by_beta(evaluated, confidence)]


def _at_lower_kl(evaluated: Evaluated, confidence: float) -> list[str]:
    """The paper's question, with each of the two at the beta that was chosen for it."""
    if _OURS not in evaluated.tuned:
        return []
    tuned, betas = evaluated.tuned[_OURS], [evaluated.chosen[name].beta for name in (_OURS, BASELINE)]
    reward = _side(tuned.reward, tuned.reward_p_holm, confidence, "higher", "lower")
    kl = _side(tuned.kl, tuned.kl_p_holm, confidence, "higher", "lower")
    if kl != "lower":
        answer = "no" if kl == "higher" else "not shown"
    else:
        answer = "no" if reward == "lower" else "yes"
    return [
        f"Does {_OURS} reach {BASELINE}'s reward at a lower KL, each at the beta chosen for it "
        f"({betas[0]:g} and {betas[1]:g})? Here: {answer}. Its reward is {reward} "
        f"({_span(tuned.reward, tuned.reward_p_holm, confidence)}), its KL {kl} "
        f"({_span(tuned.kl, tuned.kl_p_holm, confidence, '{:+.2f}', ' nats')}), "
        f"Holm's over {len(evaluated.chosen) - 1} objectives."
    ]


def _by_beta(evaluated: Evaluated, confidence: float) -> list[str]:
    """The two at every beta, and at the ends of the sweep, where the paper's numbers are odd."""
    found = []
    at = {(line.name, line.beta): line for line in evaluated.lines}
    for beta in evaluated.trial.betas:
        line = at[_OURS, beta]
        reward, kl = line.reward_difference, line.kl_difference
        if reward is None or kl is None:
            continue
        p, q = line.reward_difference_p_holm, line.kl_difference_p_holm
        found.append(
            f"At beta {beta:g} {_OURS}'s reward is {_side(reward, p, confidence, 'higher', 'lower')} than "
            f"{BASELINE}'s ({_span(reward, p, confidence)}), its KL "
            f"{_side(kl, q, confidence, 'higher', 'lower')} "
            f"({_span(kl, q, confidence, '{:+.2f}', ' nats')}), "
            "Holm's over all objectives and betas."
        )
    smallest, largest = min(evaluated.trial.betas), max(evaluated.trial.betas)
    small = at[_OURS, smallest]
    if small.gain is not None:
        found.append(
            f"At the smallest beta, {smallest:g}, {_OURS} is "
            f"{_side(small.gain, small.gain_p_holm, confidence, 'above', 'below')} the supervised policy "
            f"({_span(small.gain, small.gain_p_holm, confidence)}, Holm's over all objectives and betas)."
        )
    if largest >= 2.5 and not at[_OURS, largest].diverged:
        found.append(f"At beta {largest:g} {_OURS} trains to the end: the stable form has no NaN there.")
    return found


def _side(estimate: Estimate, p_holm: float | None, confidence: float, above: str, below: str) -> str:
    if p_holm is None or not p_holm < 1 - confidence:
        return f"neither shown {above} nor {below}"
    return above if estimate.value > 0 else below


def _span(
    estimate: Estimate, p_holm: float | None, confidence: float, form: str = "{:+.3f}", unit: str = ""
) -> str:
    low, high = interval(estimate, confidence)
    return f"{form} [{form}, {form}]{unit}, p {_p(p_holm)}".format(estimate.value, low, high)


def _plus_minus(estimate: Estimate | None, confidence: float, form: str = "{:.3f}") -> str:
    if estimate is None:
        return ""
    low, high = interval(estimate, confidence)
    places = form.rpartition(".")[2]
    return f"{form} ± {{:.{places}".format(estimate.value, (high - low) / 2)


def _share(rate: Estimate | None, confidence: float) -> str:
    if rate is None:
        return "no verdict"
    low, high = rate_interval(rate, confidence)
    return f"{rate.value:.3f} ± {max(high - rate.value, rate.value - low):.3f}"


def _write(evaluated: Evaluated, kl_budget: float, confidence: float) -> dict[str, Path]:
    folder, trial = evaluated.folder, evaluated.trial
    files = {
        "leaderboard": folder / "leaderboard.csv",
        "every beta": folder / "evaluation.csv",
        "frontier": folder / "frontier.png",
        "results": folder / "evaluation.json",
    }
    lines = _best(evaluated)
    board = leaderboard.ranked(
        leaderboard.row(
            comparison,
            reward=_value(lines[name].reward),
            kl=_value(lines[name].kl),
            confidence=confidence,
        )
        for name, comparison in evaluated.comparisons.items()
    )
    files["leaderboard"].write_text(leaderboard.to_csv(board), encoding="utf-8")
    files["every beta"].write_text(_csv(evaluated.lines, confidence), encoding="utf-8")
    if evaluated.wins:
        files["win rates"] = folder / "winrates.csv"
        files["win rates"].write_text(_csv(evaluated.wins, confidence), encoding="utf-8")
    plots.frontier_png(
        files["frontier"],
        [
            boards.series(name, evaluated.measured.samples[name], evaluated.trial.betas, confidence)
            for name in _ranked(evaluated)
        ],
        sft_reward=float(evaluated.measured.sft.mean()),
        budget=kl_budget,
        baseline=BASELINE,
        title=f"{trial.task}: reward against KL, {100 * confidence:g} % intervals",
    )
    cache.write_json(
        files["results"],
        plain(
            {
                "trial": asdict(trial),
                "chosen": {name: choice._asdict() for name, choice in evaluated.chosen.items()},
                "rates": list(evaluated.rates),
                "comparisons": {name: asdict(c) for name, c in evaluated.comparisons.items()},
                "gains": dict(evaluated.gains),
                "tuned": {name: asdict(tuned) for name, tuned in evaluated.tuned.items()},
                "lines": [asdict(line) for line in evaluated.lines],
                "wins": [asdict(win) for win in evaluated.wins],
                "findings": findings(evaluated, confidence),
                "facts": dict(evaluated.facts),
            }
        ),
    )
    return files


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _csv(records: Sequence[Line] | Sequence[WinRate], confidence: float) -> str:
    """Every field; an estimate takes three columns, `x`, `x_low` and `x_high`, empty where there is none."""
    kind = type(records[0])
    estimates = {f.name for f in fields(kind) if "Estimate" in str(f.type)}
    bounds = rate_interval if kind is WinRate else interval
    names: list[str] = []
    for field in fields(kind):
        names += [field.name, *([f"{field.name}_low", f"{field.name}_high"] * (field.name in estimates))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        row: list[Any] = []
        for field in fields(kind):
            value = getattr(record, field.name)
            if field.name not in estimates:
                row.append("" if value is None else value)
            elif value is None:
                row += ["", "", ""]
            else:
                of = interval if field.name == "difference" else bounds
                row += [value.value, *of(value, confidence)]
        writer.writerow(row)
    return buffer.getvalue()
