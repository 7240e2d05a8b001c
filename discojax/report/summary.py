"""The end of a run: the leaderboard in the terminal, and the files beside it."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from discojax.objectives.curves import curve
from discojax.places import taking_along
from discojax.report import boards, controls, leaderboard, plots
from discojax.report.leaderboard import Row
from discojax.search.discover import BASELINE, Outcome, save_results
from discojax.search.statistics import Estimate, interval, mean
from discojax.search.trials import Contender

__all__ = ["rows", "sft_gain", "show"]

_CURVES = 4  # losses drawn beside the baseline


def show(
    outcome: Outcome, *, kl_budget: float, confidence: float, console: Console | None = None
) -> list[Row]:
    """Prints the leaderboard and writes it, its plots and `results.json` into the run's folder."""
    console = console or Console()
    board = rows(outcome, confidence)
    console.print()
    console.print(
        leaderboard.table(
            board,
            title=f"{outcome.trial.task}, held out" if outcome.proposed else outcome.trial.task,
            baseline=BASELINE,
            caption=_caption(outcome, kl_budget, confidence),
        )
    )
    if outcome.controls:
        console.print(controls.table(outcome.controls, baseline=BASELINE, confidence=confidence))
    for line in _write(outcome, board, kl_budget):
        console.print(line, highlight=False, soft_wrap=True)
    return board


def _caption(outcome: Outcome, kl_budget: float, confidence: float) -> str:
    trial = outcome.trial
    gain = sft_gain(outcome)
    low, high = interval(gain, confidence)
    sentences = [
        f"Score: mean height of the reward-KL frontier above the SFT policy, up to {kl_budget:g} nats, "
        f"over betas {', '.join(f'{beta:g}' for beta in trial.betas)}.",
        "Reward and KL are at each objective's best beta.",
        f"± is the {100 * confidence:g} % interval. Differences are paired by {len(trial.seeds)} seeds "
        f"and {trial.prompts} prompts; verdicts are Holm-corrected over all objectives but {BASELINE}.",
        f"{BASELINE}'s reward over the SFT policy's: {gain.value:+.3f} [{low:+.3f}, {high:+.3f}].",
    ]
    if outcome.proposed:
        sentences.append(
            f"The search scored {outcome.scored} objectives, {outcome.accepted} of them accepted "
            f"out of {outcome.proposed} proposed."
        )
    if outcome.spent is not None and (outcome.spent.requests or outcome.spent.unanswered):
        spent = outcome.spent
        sentences.append(f"It made {spent.requests} requests: {spent.tokens:,} tokens, {spent.cost}.")
    return " ".join(sentences)


def rows(outcome: Outcome, confidence: float) -> list[Row]:
    """The leaderboard's lines, best first. Reward and KL are those of the beta with the highest reward."""
    return boards.rows(outcome.measured, outcome.comparisons, confidence)


def sft_gain(outcome: Outcome) -> Estimate:
    """The baseline's reward at its best beta minus the SFT policy's, paired by seed and prompt."""
    reward = outcome.measured.samples[BASELINE].reward
    best = int(np.nanargmax(reward.mean(axis=(1, 2))))
    return mean(reward[best] - outcome.measured.sft_by_seed)


def _write(outcome: Outcome, board: list[Row], kl_budget: float) -> list[str]:
    folder = outcome.folder
    by_name = {contender.name: contender for contender in outcome.contenders}
    order = [by_name[row.name] for row in board if row.status == "ok"]
    files = {
        "leaderboard": folder / "leaderboard.csv",
        "frontier": folder / "frontier.png",
        "losses": folder / "curves.png",
        "results": save_results(outcome),
    }
    files["leaderboard"].write_text(leaderboard.to_csv(board), encoding="utf-8")
    plots.frontier_png(
        files["frontier"],
        [
            boards.series(name, outcome.measured.samples[name], outcome.trial.betas)
            for name in (contender.name for contender in order)
        ],
        sft_reward=float(outcome.measured.sft.mean()),
        budget=kl_budget,
        baseline=BASELINE,
        title=f"{outcome.trial.task}: reward against KL",
        reward_name="reward, P(positive)",
    )
    drawn = [contender for contender in order if contender.name != BASELINE][:_CURVES]
    beta = outcome.trial.betas[0]
    plots.curves_png(
        files["losses"],
        [_curve(contender, beta) for contender in (*drawn, by_name[BASELINE])],
        baseline=BASELINE,
        title=f"losses at beta {beta:g}",
    )
    lines = [f"{what}: {file}" for what, file in files.items()]
    proposed = next((contender.name for contender in order if contender.origin == "proposed"), None)
    return lines if proposed is None else [*lines, f"to PyTorch: {taking_along(proposed, folder)}"]


def _curve(contender: Contender, beta: float) -> plots.Curve:
    margins = np.linspace(-4.0, 4.0, 201) / beta
    values, slopes = curve(contender.program, beta, margins)
    return plots.Curve(contender.name, margins, np.asarray(values), np.asarray(slopes))
