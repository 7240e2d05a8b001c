"""Everything that a run's folder tells, whatever state the run is in: read, and nothing written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from discojax.config import Config
from discojax.population.margins import MARGIN_EDGES
from discojax.proposers.budget import Spent
from discojax.search import archive as archives
from discojax.search import schema
from discojax.search.ledger import spent
from discojax.search.records import Attempt, Evaluation

__all__ = ["Density", "Run", "State", "gather", "pooled"]

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class Density:
    """The margins that an objective's lanes of one beta met in training.

    Attributes:
      edges: log-ratio margins in nats, ascending.
      share: of the pairs between each edge and the next, per nat.
      steps: of training that they are from.
    """

    edges: np.ndarray
    share: np.ndarray
    steps: int


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
      folder: the run's.
      config: as it was started with.
      state: "running" while a process writes it; "stopped" if none does and it has not come to its end.
      attempts: proposals in order, the library's first.
      evaluations: of each rung, with the arrays that scores are made of.
      densities: of margins, by beta and by objective.
      progress: lines of `metrics.jsonl` of this kind, in order.
      spent: in all sessions.
      spending: rows of the archive's view, a language model and a purpose each.
      results: of `results.json` or `evaluation.json`; empty before the end.
      created, written: first and last sign of life, seconds since 1970.
      resumed: how many times.
      facts: of the archive's `meta`: command, versions, hardware, tasks.
    """

    folder: Path
    config: Config
    state: State
    attempts: Sequence[Attempt]
    evaluations: Mapping[int, Sequence[Evaluation]]
    densities: Mapping[float, Mapping[str, Density]]
    progress: Sequence[Mapping[str, Any]]
    spent: Spent
    spending: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    created: float
    written: float
    resumed: int
    facts: Mapping[str, Any]


def gather(folder: Path, config: Config) -> Run:
    """Reads a run's folder; a run that goes on is not disturbed.

    Raises:
      UserError: there is no archive, or it is damaged.
    """
    path = folder / "archive.sqlite"
    with archives.open_archive(path) as archive:
        by_rung: dict[int, list[Evaluation]] = defaultdict(list)
        for evaluation in archives.evaluations(archive, arrays=("reward", "kl")):
            by_rung[evaluation.key.rung].append(evaluation)
        created = float(archives.get_meta(archive, "created", 0.0))
        used = spent(archive)
        finished = bool(archives.get_meta(archive, "finished", False))
        known = ("command", "versions", "hardware", "host", "tasks")
        facts = {name: archives.get_meta(archive, name) for name in known}
        resumed = len(archives.events(archive, kind="resumed"))
        attempts = archives.attempts(archive)
        spending = archives.export_rows(archive, "spending")
    lines = _lines(folder / "metrics.jsonl")
    results = _json(folder / "results.json") or _json(folder / "evaluation.json")
    if finished or results:
        state: State = "finished"
    else:
        state = "running" if schema.is_locked(path) else "stopped"
    times = [line["time"] for line in lines[-1:] if isinstance(line.get("time"), float)]
    return Run(
        folder, config, state, attempts, dict(by_rung), _densities(lines),
        [line for line in lines if line.get("kind") == "progress"],
        used, spending, results, created, max([created + used.seconds, *times]), resumed, facts,
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; one that is half-written, as a crash leaves it, is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _densities(lines: Sequence[Mapping[str, Any]]) -> dict[float, dict[str, Density]]:
    """Of each objective's lanes of each beta together, every step of every lane counting alike."""
    edges = np.asarray(MARGIN_EDGES)
    totals: dict[float, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(lambda: [0, 0.0]))
    for line in lines:
        reached, taken = line.get("train_reached"), line.get("train_steps")
        if line.get("kind") == "lane" and taken and reached and len(reached) == len(edges):
            values = np.asarray(reached, np.float64)
            if np.isfinite(values).all():
                found = totals[line["beta"]][str(line.get("objective"))]
                found[0] += taken
                found[1] += taken * values
    return {
        beta: {
            name: Density(edges, -np.diff(total / steps) / np.diff(edges), steps)
            for name, (steps, total) in of.items()
        }
        for beta, of in totals.items()
    }


def pooled(densities: Collection[Density]) -> Density:
    """The margins that all of them met together; there is one of them at least."""
    steps = sum(each.steps for each in densities)
    share = sum(each.steps * each.share for each in densities) / steps
    return Density(next(iter(densities)).edges, np.asarray(share), steps)
