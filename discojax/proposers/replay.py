"""Transcripts: what language models were asked and what was made of it, as JSON lines; and repeating them.

A line is a request with its reply (`"kind": "exchange"`), or a proposal as it was handed to the search
(`"kind": "proposal"`). No line holds a key. `search.proposer=replay` proposes the latter again, offline.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from discojax.errors import UserError
from discojax.proposers import json_lines
from discojax.proposers.types import Exchange, Proposal, Provenance, Scored

__all__ = ["Replay", "Transcript", "recorded"]

_CONTROLS = 1_000_000  # where the numbers of the attempts of `search.controls` begin


@dataclass(frozen=True)
class Transcript:
    """A transcript being written. Adding what is there already changes nothing.

    Attributes:
      path: of the file; it and its folder are made with the first line.
    """

    path: Path
    _known: set[str] = field(init=False, repr=False, default_factory=set)
    _turn: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._known.update(_key(line) for line in json_lines.read(self.path))

    def add_exchange(self, request: str, exchange: Exchange) -> None:
        """Notes an answered request under its hash."""
        self._add([{"kind": "exchange", "hash": request, **asdict(exchange)}])

    def add_proposals(self, proposals: Sequence[Proposal]) -> None:
        """Notes what was handed to the search."""
        self._add([{"kind": "proposal", **asdict(proposal)} for proposal in proposals])

    def _add(self, lines: list[dict[str, Any]]) -> None:
        with self._turn:
            new = [line for line in lines if _key(line) not in self._known]
            if new:
                json_lines.append(self.path, new)
                self._known.update(map(_key, new))


def _key(line: dict[str, Any]) -> str:
    return f"{line.get('kind')} {line.get('hash') or line.get('name')}"


@dataclass(frozen=True)
class Replay:
    """Proposes what is known beforehand, in that order, each once. `propose` needs no network.

    Attributes:
      proposals: as recorded, or given.
      name: what archives and reports call it.
    """

    proposals: tuple[Proposal, ...] = field(repr=False)
    name: str = "replay"

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        """The next `count` that the history does not have; it knows them by name."""
        seen = {past.name for past in history}
        return [proposal for proposal in self.proposals if proposal.name not in seen][:count]


def recorded(path: str | Path) -> tuple[Proposal, ...]:
    """The proposals of a run: its folder, its `archive.sqlite`, or its transcript.

    What they cost was paid then, so it is not repeated.

    Raises:
      UserError: if there is nothing of the kind at `path`, or no proposal in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        candidates = (path / "archive.sqlite", path / "transcripts" / "transcript.jsonl")
        path = next((file for file in candidates if file.is_file()), path)
    if not path.is_file():
        raise UserError(
            f"There is no recorded run at {str(path)!r}: set proposer.path to a run's folder, its "
            "archive.sqlite or its transcripts/transcript.jsonl."
        )
    with path.open("rb") as file:
        database = file.read(16).startswith(b"SQLite format 3")
    found = _of_archive(path) if database else _of_transcript(path)
    if not found:
        raise UserError(f"{path} has no proposal in it, so there is nothing to replay.")
    return tuple(replace(p, tokens_in=None, tokens_out=None, cost=None) for p in found)


def _of_transcript(path: Path) -> list[Proposal]:
    names = [f.name for f in fields(Proposal)]
    proposals = []
    for line in json_lines.read(path):
        if line.get("kind") == "proposal":
            try:
                values = {name: line[name] for name in names}
                proposals.append(Proposal(**{**values, "parents": tuple(values["parents"])}))
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} has a proposal that is not whole: {error}.") from error
    return proposals


def _of_archive(path: Path) -> list[Proposal]:
    """Attempts as proposals again; columns that an older archive lacks are left at their defaults."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute("SELECT * FROM attempts ORDER BY number")]
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be replayed: {error}.") from error
    names = {row["number"]: row["name"] for row in rows}
    optional = [f.name for f in fields(Provenance)]
    return [
        Proposal(
            name=row["name"],
            source=row["source"] or "",
            operator=row["operator"],
            parents=tuple(names[number] for number in json.loads(row["parents"])),
            thought=row["thought"],
            unanswered=row["reason"] if row["status"] == "unanswered" else "",
            **{name: row[name] for name in optional if name in row},
        )
        for row in rows
        if row["operator"] != "library" and row["number"] < _CONTROLS
    ]
