"""Runs to report on: archives written through the archive's own API, of candidates that evolution made.

What their lanes measured is drawn at random; everything else is as a search leaves it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from discojax import candidates, objectives
from discojax.config import Config, dump, load
from discojax.population.margins import MARGIN_EDGES
from discojax.proposers.evolution import Evolution
from discojax.proposers.types import Scored
from discojax.search import archive as archives
from discojax.search.archive import Archive, Attempt, Evaluation, EvaluationKey
from discojax.search.records import plain
from discojax.search.rungs import final_trial, rung_trial
from discojax.search.statistics import Comparison, Estimate
from discojax.search.trials import Control

LIBRARY = ("dpo", "ipo", "slic", "discopop")
_NEITHER = Comparison(
    "found", Estimate(0.03, 0.01, 0.5, 8, 16), Estimate(0.02, 0.01, 0.5, 8, 16), (-0.01, 0.05), (-0.01, 0.05),
    0.07, 0.07, "no difference shown", 0, 8,
)  # fmt: skip
_UNKNOWN = Estimate(math.nan, math.nan, math.nan, 8, 16)
CONTROLS = (
    Control("search", 24, 22, 48_000, "found", _NEITHER),
    Control("random_mutation", 24, 20, 47_000, "mutant", _NEITHER, Estimate(0.04, 0.01, 0.5, 8, 16)),
    Control("best_of_n", 24, 19, 46_000, "lone", _NEITHER, _UNKNOWN),
    Control("tuned_baselines", 24, 0, 45_000),
)
"""The search with its controls; one could not be compared, and in one nothing trained."""
OVERRIDES = ["evaluation.prompts=16", "evaluation.search_prompts=16", "evaluation.bootstrap=100"]


def config_of(folder: Path, *more: str) -> Config:
    return load(None, [f"run.name={folder.name}", f"run.directory={folder.parent}", *OVERRIDES, *more])


def write_run(
    folder: Path,
    *,
    proposed: int = 24,
    generations: int = 4,
    scored: bool = True,
    finished: bool = True,
    seed: int = 0,
    hostile: tuple[tuple[str, str], ...] = (),
) -> Config:
    """A run of an evolution over `LIBRARY`; `hostile` are names and thoughts of further candidates."""
    config = config_of(folder)
    rng = np.random.default_rng(seed)
    with archives.open_archive(folder / "archive.sqlite", "of a test") as archive:
        (folder / "config.yaml").write_text(dump(config))
        archives.set_meta(archive, "hardware", {"platform": "cpu", "devices": ["cpu"]})
        archives.set_meta(archive, "tasks", {"rotten_tomatoes": {"pairs": 2000, "parameters": 1_121_024}})
        attempts = _library()
        history = [Scored(a.name, a.source or "", "ok", score=0.0) for a in attempts]
        for generation in range(1, generations + 1):
            share = proposed * generation // generations - proposed * (generation - 1) // generations
            made = _generation(generation, share, attempts, history, seed)
            attempts += made
            history += [Scored(a.name, a.source or "", "ok", score=float(rng.normal(0, 0.01))) for a in made]
        for name, thought in hostile:
            attempts.append(
                Attempt(
                    len(attempts), generations, name, "fresh", "accepted", (0,), thought,
                    _SOURCE % len(attempts),
                    candidates.parse(_SOURCE % len(attempts)).hash, proposer="gemini", model=thought,
                )
            )  # fmt: skip
        attempts += [
            Attempt(len(attempts), generations, "broken", "mutate", "rejected", (1,), "Divide by nothing.",
                    "def loss(policy_chosen_logps):\n    return policy_chosen_logps / 0", None, "numbers",
                    "not finite at margin 0", "evolution"),
            Attempt(len(attempts) + 1, generations, "silent", "fresh", "unanswered", (), "", None, None, None,
                    "the server said nothing", "gemini", "gemini-flash", tokens_in=900, tokens_out=0),
        ]  # fmt: skip
        archives.add_attempts(archive, attempts)
        if scored:
            _score(folder, config, archive, attempts, rng)
        if finished:
            archives.set_meta(archive, "finished", True)
    if finished and scored:
        results = {"controls": [asdict(control) for control in CONTROLS]}
        (folder / "results.json").write_text(json.dumps(plain(results)))
    return config


_SOURCE = """def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
         reference_rejected_logps, beta):
    margin = policy_chosen_logps - policy_rejected_logps - reference_chosen_logps + reference_rejected_logps
    return -jax.nn.log_sigmoid(beta * margin / %d)
"""


def _library() -> list[Attempt]:
    found = []
    for number, name in enumerate(LIBRARY):
        program = candidates.from_function(objectives.get(name))
        found.append(
            Attempt(number, 0, name, "library", "accepted", thought=objectives.get(name).reference,
                    source=program.source, hash=program.hash, proposer="library")
        )  # fmt: skip
    return found


def _generation(
    generation: int, share: int, attempts: list[Attempt], history: list[Scored], seed: int
) -> list[Attempt]:
    numbers = {attempt.name: attempt.number for attempt in attempts}
    known = {attempt.hash for attempt in attempts}
    made = []
    evolution = Evolution(library=LIBRARY, novelty=0.0)
    for proposal in evolution.propose(history[-200:], share, seed=1000 * seed + generation):
        program = candidates.parse(proposal.source, proposal.name)
        if program.hash not in known:
            known.add(program.hash)
            made.append(
                Attempt(
                    len(attempts) + len(made), generation, proposal.name, proposal.operator, "accepted",
                    tuple(numbers[p] for p in proposal.parents if p in numbers), proposal.thought,
                    proposal.source, program.hash, proposer="evolution",
                )
            )  # fmt: skip
    return made


def _score(
    folder: Path, config: Config, archive: Archive, attempts: list[Attempt], rng: np.random.Generator
) -> None:
    accepted = [a for a in attempts if a.status == "accepted"]
    quality = {a.name: 0.0 if a.operator == "library" else float(rng.normal(0, 0.02)) for a in accepted}
    best = sorted(accepted, key=lambda a: -quality[a.name])[:3]
    finalists = [*(a for a in accepted if a.name in LIBRARY), *(b for b in best if b.name not in LIBRARY)]
    lines, evaluations, now = [], [], (begun := time.time())
    for trial, several in (
        (rung_trial(config, 0), accepted), (rung_trial(config, 1), best), (final_trial(config), finalists)
    ):  # fmt: skip
        present = [*several, *(a for a in accepted if a.name == "dpo" and a not in several)]
        for seed in trial.seeds:
            noise = rng.normal(0, 0.05, trial.prompts)
            for name, hash_, beta in [
                ("sft", "sft", 0.0),
                *((a.name, a.hash or "", beta) for a in present for beta in trial.betas),
            ]:
                steps = 0 if name == "sft" else trial.steps
                key = EvaluationKey(
                    hash_,
                    name,
                    trial.task,
                    trial.split,
                    trial.rung,
                    beta,
                    seed,
                    steps,
                    2e-3 if steps else 0.0,
                )
                now += 0.05
                diverged = steps and name not in LIBRARY and trial.rung == 0 and rng.random() < 0.02
                spread = 3.0 if name == "sft" else 5.0
                margins = np.sort(rng.normal(1.0 / (beta or 1.0) ** 0.5, spread, 400))
                reached = [float((margins >= edge).mean()) for edge in MARGIN_EDGES] if steps else []
                lines.append(
                    {"time": now, "kind": "lane", "objective": name, "rung": trial.rung, "beta": beta,
                     "seed": seed, "steps": steps, "status": "diverged" if diverged else "ok",
                     "train_steps": steps, "train_reached": reached}
                )  # fmt: skip
                if len(lines) % 16 == 0:
                    lines.append(
                        {"time": now, "kind": "progress", "rung": trial.rung, "seconds": now - begun,
                         "useful": int(rng.integers(90, 129)), "room": 128, "ended": 16, "busy": 16,
                         "waited": 0.0}
                    )  # fmt: skip
                if diverged:
                    evaluations.append(Evaluation(key, "diverged", reason="a loss was not finite"))
                    continue
                gain = 0.0 if name == "sft" else 0.1 + quality[name] - 0.05 * beta
                reward = np.clip(0.5 + gain + noise + rng.normal(0, 0.02, trial.prompts), 0, 1)
                kl = np.abs(
                    rng.normal(0.0 if name == "sft" else 2.0 / (beta or 1.0) ** 0.5, 0.3, trial.prompts)
                )
                arrays = {"reward": reward.astype(np.float32), "kl": kl.astype(np.float32)}
                evaluations.append(
                    Evaluation(
                        key, "ok", float(reward.mean()), float(kl.mean()), 0.01, 12.0, arrays, created=now
                    )
                )
    archives.add_evaluations(archive, evaluations)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
