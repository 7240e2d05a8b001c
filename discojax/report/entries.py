"""Every objective of a run with all that became of it: one line of the report's table, and its card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from discojax import candidates, objectives
from discojax.candidates.errors import CandidateError
from discojax.data import cache
from discojax.errors import UserError
from discojax.report.boards import Board
from discojax.report.gather import Run
from discojax.report.leaderboard import Row
from discojax.report.portraits import Gallery, Portrait
from discojax.search.records import Attempt, Evaluation
from discojax.search.rungs import FINAL, REPORT, TRAIN, TUNING
from discojax.search.trials import SEARCH, SFT

if TYPE_CHECKING:
    from discojax.candidates import Program

__all__ = ["Entry", "ancestors", "entries", "stage"]

_ARM = 1_000_000  # attempts of a control are numbered from multiples of this


@dataclass(frozen=True)
class Entry:
    """An objective.

    Attributes:
      name: as it is called.
      arm: "search", or the control whose it is.
      how: the operator that made it; "library", "tuned" or "given" where none did.
      status: "ok", "diverged", "failed", "rejected", "duplicate", "unanswered", "training", "waiting".
      attempt: its proposal; None if it was not proposed.
      program: what is shown of it; None if it never became one.
      row: its line in the first rung, against the baseline there; None before its lanes have ended.
      reached: the last round that it entered; "" if none.
      parents: names.
      failures: what went wrong, a sentence each.
    """

    name: str
    arm: str
    how: str
    status: str
    attempt: Attempt | None
    program: Portrait | None
    row: Row | None
    reached: str
    parents: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def proposed(self) -> bool:
        """Whether somebody thought of it in this run."""
        return self.attempt is not None and self.attempt.operator != "library"


def stage(run: Run, rung: int) -> str:
    """What a rung is called."""
    named = {FINAL: "held out", TRAIN: "training", TUNING: "tuning", REPORT: "held out"}
    rungs = len(run.config.search.rungs)
    return named.get(rung) or (f"rung {rung}" if rung < rungs else "elites" if rung == rungs else f"{rung}")


def entries(run: Run, boards: Mapping[int, Board], gallery: Gallery) -> list[Entry]:
    """All proposals in order, and then what was measured without having been proposed."""

    def entry(name: str, attempt: Attempt | None, names: Mapping[int, str]) -> Entry:
        return _entry(run, name, attempt, lanes.get(name, []), rows.get(name), names, gallery)

    lanes: dict[str, list[Evaluation]] = defaultdict(list)
    for rung in sorted(run.evaluations):
        for evaluation in run.evaluations[rung]:
            lanes[evaluation.key.objective].append(evaluation)
    first = boards.get(min(boards)) if boards else None
    rows = {row.name: row for row in first.rows} if first else {}
    names = {attempt.number: attempt.name for attempt in run.attempts}
    found = [entry(attempt.name, attempt, names) for attempt in run.attempts]
    known = {*names.values(), SFT}
    others = [name for name in lanes if name not in known and " at " not in name]  # while rates are tuned
    return [*found, *(entry(name, None, {}) for name in others)]


def _entry(
    run: Run,
    name: str,
    attempt: Attempt | None,
    lanes: Sequence[Evaluation],
    row: Row | None,
    names: Mapping[int, str],
    gallery: Gallery,
) -> Entry:
    failures = [
        f"{stage(run, lane.key.rung)}, β {lane.key.beta:g}, seed {lane.key.seed}: "
        f"{lane.status}; {lane.reason or ''}"
        for lane in lanes
        if lane.status != "ok"
    ]
    arm = SEARCH
    parents: tuple[str, ...] = ()
    if attempt is None:
        status = "ok"
        found, how = _given(run, name, gallery)
    else:
        place = attempt.number // _ARM
        controls = run.config.search.controls
        arm = controls[place - 1] if 0 < place <= len(controls) else SEARCH
        how, status = attempt.operator, attempt.status
        parents = tuple(names[number] for number in attempt.parents if number in names)
        found = _library(name, gallery) if how == "library" else None
        if found is None and status == "accepted":
            found = _written(name, attempt.source, gallery)
        if attempt.reason:
            failures.insert(0, f"{attempt.stage or attempt.status}: {attempt.reason}")
    if status in ("accepted", "ok"):
        ended = "ok" if run.state == "finished" else "training"
        status = row.status if row is not None else ended if lanes else "waiting"
    reached = stage(run, max(lane.key.rung for lane in lanes)) if lanes else ""
    return Entry(name, arm, how, status, attempt, found, row, reached, parents, tuple(failures))


def _library(name: str, gallery: Gallery) -> Portrait | None:
    def make() -> Program | None:
        try:
            return candidates.from_function(objectives.get(name))
        except UserError:
            return None

    return gallery.portrait(f"library {name}", make)


def _written(name: str, source: str | None, gallery: Gallery) -> Portrait | None:
    """Of a text that the gate has seen."""

    def make() -> Program | None:
        try:
            return candidates.parse(source or "", name)
        except CandidateError:
            return None

    return gallery.portrait(f"text {cache.content_hash(source)}", make)


def _given(run: Run, name: str, gallery: Gallery) -> tuple[Portrait | None, str]:
    """The program of what was measured and not proposed: of the library, tuned, or in a file."""
    kept = (run.results.get("objectives") or {}).get(name)
    if (program := _library(name, gallery)) is not None:
        return program, "library"
    if isinstance(kept, dict) and kept.get("source"):
        return _written(name, str(kept["source"]), gallery), str(kept.get("origin") or "given")
    if (program := _library(name.partition("_lr")[0], gallery)) is not None:
        return program, "tuned"
    return None, "given"


def ancestors(everyone: Sequence[Entry], name: str) -> set[str]:
    """An objective, those it was made from, and those they were."""
    parents = {entry.name: entry.parents for entry in everyone}
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += parents.get(one, ())
    return found
