"""What was run: the facts at the head of a report, each a term and what there is to say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from discojax.places import going_on
from discojax.report.boards import Board
from discojax.report.gather import Run
from discojax.search.rungs import REPORT, TRAIN

__all__ = ["facts"]


def facts(run: Run, headline: Board | None) -> list[tuple[str, str]]:
    """Terms and descriptions, in the order to read them."""
    config = run.config
    found = [
        ("state", _state(run)),
        ("task", _task(run, headline)),
        ("policy", _policy(run)),
        ("proposer", _proposer(run)),
        (
            "training",
            f"{config.population.lanes} lanes, batches of {config.population.batch} pairs, learning rate "
            f"{config.population.learning_rate:g}, β {', '.join(f'{b:g}' for b in config.search.betas)}",
        ),
        ("seeds", _seeds(run)),
        ("hardware", _hardware(run.facts)),
        ("time", _time(run)),
        ("cost", _cost(run)),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in (run.facts.get("versions") or {}).items()) or "not noted",
        ),
    ]
    return [(term, text) for term, text in found if text]


def _state(run: Run) -> str:
    if run.state == "finished":
        return "finished" + (f", after {_times(run.resumed)} being resumed" if run.resumed else "")
    if run.state == "running":
        return "running: this page is as of when it was written"
    command = going_on(run.facts.get("command") or "discover", run.folder)
    return f"stopped before its end; `{command}` goes on with it"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _task(run: Run, headline: Board | None) -> str:
    task = run.config.task
    words = f"searched on {task.name}, held out on {task.held_out}"
    if headline is not None and headline.rung in (TRAIN, REPORT):
        words = headline.task
    prompts = f"; {headline.prompts} prompts ({headline.split})" if headline else ""
    return (
        f"{words}; {task.pairs:,} preference pairs, completions of {task.completion_tokens} tokens{prompts}"
    )


def _policy(run: Run) -> str:
    policy = run.config.policy
    tasks: Mapping[str, Any] = run.facts.get("tasks") or {}
    counts = {
        (task["parameters"] + task.get("frozen parameters", 0), task["parameters"])
        for task in tasks.values()
        if isinstance(task, dict) and "parameters" in task
    }
    whole, trained = max(counts, default=(0, 0))
    size = f", {whole:,} parameters" if counts else ""
    if whole > trained:
        size += f", of which {trained:,} of adapters of rank {policy.lora.rank} train"
    if policy.pretrained is not None:
        return policy.pretrained + size
    return f"{policy.layers} layers, width {policy.width}, {policy.heads} heads{size}"


def _proposer(run: Run) -> str:
    made = [a for a in run.attempts if a.operator != "library"]
    if not made:
        return ""
    who = sorted({" ".join(x for x in (a.proposer, a.model_version or a.model) if x) for a in made} - {""})
    accepted = sum(a.status == "accepted" for a in made)
    counts = {
        status: sum(a.status == status for a in made) for status in ("rejected", "duplicate", "unanswered")
    }
    rest = "".join(f", {count} {status}" for status, count in counts.items() if count)
    return f"{', '.join(who)}: {len(made)} proposals, {accepted} accepted{rest}"


def _seeds(run: Run) -> str:
    by_rung = {}
    for rung, evaluations in sorted(run.evaluations.items()):
        seeds = sorted({evaluation.key.seed for evaluation in evaluations})
        if seeds:
            by_rung[rung] = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    trained = "; ".join(f"rung {rung}: {seeds}" for rung, seeds in by_rung.items())
    return f"run {run.config.run.seed}, task {run.config.task.seed}" + (
        f"; of lanes: {trained}" if trained else ""
    )


def _hardware(known: Mapping[str, Any]) -> str:
    hardware, host = known.get("hardware") or {}, known.get("host") or {}
    devices = hardware.get("devices") or []
    kinds = ", ".join(f"{devices.count(kind)} × {kind}" for kind in sorted(set(devices)))
    parts = [f"{hardware.get('platform', '')} ({kinds})" if kinds else ""]
    if host:
        parts.append(f"{host.get('cpus')} CPUs, {host.get('system')}")
    return "; ".join(part for part in parts if part) or "not noted"


def _time(run: Run) -> str:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created)) if run.created else "?"
    minutes, seconds = divmod(round(run.spent.seconds), 60)
    return f"{minutes} min {seconds:02d} s, from {begun}"


def _cost(run: Run) -> str:
    spent = run.spent
    if not (spent.requests or spent.unanswered):
        return "no request was paid for"
    return f"{spent.cost}: {spent.requests} requests, {spent.tokens_in:,} tokens in, {spent.tokens_out:,} out"
