"""What an evaluation's findings say, either way: only what Holm's correction leaves is claimed."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from discojax.report import evaluation as report
from discojax.search.evaluate import Evaluated, Line, Tuned
from discojax.search.statistics import Estimate
from discojax.search.trials import Measured, Trial
from discojax.search.tuning import Choice


def estimate(value: float) -> Estimate:
    return Estimate(value, 0.01, 0.5, 3, 256)


def line(name: str, beta: float, gain: float, reward: float | None = None, kl: float = 0.0, p: float = 0.001):
    found = Line(name, beta, 1e-3, 3, 0, gain=estimate(gain), gain_p_holm=p)
    if reward is None:
        return found
    return dataclasses.replace(
        found, reward_difference=estimate(reward), kl_difference=estimate(kl),
        reward_difference_p_holm=p, kl_difference_p_holm=p,
    )  # fmt: skip


@pytest.fixture
def evaluated():
    trial = Trial(4000, "imdb", "report", 40, (0.01, 2.5), (4000, 4001, 4002), 256)
    lines = (
        Line("sft", 0.0, 0.0, 3, 0), line("dpo", 0.01, 0.2), line("dpo", 2.5, 0.1),
        line("discopop", 0.01, 0.3, 0.1, -2.0), line("discopop", 2.5, 0.05, -0.05, 1.0, p=0.2),
    )  # fmt: skip
    chosen = {"dpo": Choice(1e-3, 0.01), "discopop": Choice(2e-3, 2.5)}
    return Evaluated(
        Path("nowhere"), trial, (), chosen, (1e-3, 2e-3),
        Measured({}, np.zeros(256), np.zeros((3, 256))), {}, lines,
        {"dpo": 0.004, "discopop": 0.3},
        {"discopop": Tuned(estimate(-0.01), estimate(-3.0), 0.6, 0.012)}, (), {},
    )  # fmt: skip


def test_gains_over_the_supervised_policy_are_stated_with_interval_and_holms_p(evaluated):
    dpo, ours, *_ = report.findings(evaluated, 0.95)
    assert dpo.startswith(
        "At the beta chosen for it, 0.01, dpo's reward is above the supervised policy's (+0.200 ["
    )
    assert "p 0.004, Holm's over 2 objectives" in dpo
    assert "2.5, discopop's reward is neither shown above nor below the supervised policy's" in ours


def test_on_a_terminal_of_eighty_columns_no_name_and_no_number_is_cut(evaluated):
    values = {"reward": 0.123, "kl": 126.6, "reverse_kl": 1.27, "length": 118.9, "distinct1": 0.21,
              "distinct2": 0.58, "accuracy": 0.598, "margin": -11.55, "rouge_l": 0.065}  # fmt: skip
    filled = {name: Estimate(value, 0.051, 0.5, 2, 256) for name, value in values.items()}
    lines = tuple(dataclasses.replace(one, learning_rate=2.5e-4, **filled) for one in evaluated.lines)
    compared = {name: SimpleNamespace(verdict="", score=estimate(0.1)) for name in evaluated.chosen}
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for table in report._behaviour(dataclasses.replace(evaluated, lines=lines, comparisons=compared), 0.95):
        console.print(table)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for name, tables in {"sft": 2, "dpo": 3, "discopop": 3}.items():
        assert sum(line.startswith(f" {name} ") for line in shown.splitlines()) == tables
    for name, form in {"reward": "{:.3f}", "kl": "{:.1f}", "reverse_kl": "{:.2f}", "length": "{:.1f}",
                       "distinct1": "{:.2f}", "distinct2": "{:.2f}", "accuracy": "{:.3f}",
                       "margin": "{:.2f}", "rouge_l": "{:.3f}"}.items():  # fmt: skip
        assert shown.count(report._plus_minus(filled[name], 0.95, form)) == (
            2 if name in ("accuracy", "margin") else 3
        )


@pytest.mark.parametrize(
    ("reward", "kl", "answer"),
    [
        ((-0.01, 0.6), (-3.0, 0.012), "yes. Its reward is neither shown higher nor lower"),
        ((0.2, 0.01), (-3.0, 0.012), "yes. Its reward is higher"),
        ((-0.2, 0.01), (-3.0, 0.012), "no. Its reward is lower"),
        ((0.0, 1.0), (3.0, 0.012), "no. Its reward"),
        ((0.0, 1.0), (-3.0, 0.06), "not shown. Its reward"),
    ],
)
def test_the_papers_question_is_answered_at_the_betas_each_was_tuned_to(evaluated, reward, kl, answer):
    tuned = Tuned(estimate(reward[0]), estimate(kl[0]), reward[1], kl[1])
    said = report.findings(dataclasses.replace(evaluated, tuned={"discopop": tuned}), 0.95)[2]
    assert said.startswith(
        "Does discopop reach dpo's reward at a lower KL, each at the beta chosen for it (2.5 and"
    )
    assert f"Here: {answer}" in said and f"p {kl[1]:.3f}" in said


def test_what_is_said_of_each_beta_is_what_holm_leaves(evaluated):
    first, last, smallest, stable = report.findings(evaluated, 0.95)[3:]
    assert first.startswith("At beta 0.01 discopop's reward is higher than dpo's") and "its KL lower" in first
    assert "is neither shown higher nor lower" in last  # its own interval excludes zero; twenty tests do not
    assert "0.01, discopop is above the supervised policy" in smallest and "no NaN" in stable


def test_a_diverged_beta_is_a_finding_and_claims_nothing(evaluated):
    lines = (*evaluated.lines[:-1], Line("discopop", 2.5, 2e-3, 3, 2))
    said = report.findings(dataclasses.replace(evaluated, lines=lines, tuned={}), 0.95)
    assert said[0] == "discopop at beta 2.5: 2 of 3 seeds diverged, so it has no number there."
    assert not any("Does discopop" in one or "stable form" in one or "At beta 2.5" in one for one in said)
