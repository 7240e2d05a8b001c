"""What language models were asked and what that cost, in the run's archive and its transcript.

A reply is written to the archive before anything else is done with it. So no request is paid for
twice, whatever kills the run, and what was spent is known after any stop. `transcripts/` holds the same
as JSON lines, for people and for `search.proposer=replay`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from discojax.proposers import replay
from discojax.proposers.budget import Spent
from discojax.proposers.client import Reply, Request, Turn
from discojax.proposers.types import Exchange, Proposal
from discojax.search.archive import Archive, events, get_meta, insert, select, transaction

__all__ = ["RunLedger", "spent"]

_COLUMNS = ("server", "model", "purpose", "prompt_hash", "request", "reply", "cost")


@dataclass(frozen=True)
class RunLedger:
    """The ledger of one run; `proposers.Ledger` says what the methods are for.

    Attributes:
      archive: open for writing.
      transcript: the JSONL file, beside the archive in `transcripts/` by default.
    """

    archive: Archive
    transcript: replay.Transcript = field(init=False)

    def __post_init__(self) -> None:
        folder = Path(self.archive.path).parent / "transcripts"
        object.__setattr__(self, "transcript", replay.Transcript(folder / "transcript.jsonl"))

    def get(self, request: str) -> Exchange | None:
        """The exchange of this hash."""
        rows = select(self.archive, "requests", ("hash", *_COLUMNS), {"hash": request}, "id")
        if not rows:
            return None
        row = {name: rows[0][name] for name in _COLUMNS}
        asked = json.loads(row["request"])
        asked["turns"] = tuple(Turn(*turn) for turn in asked["turns"])
        exchange = Exchange(**{**row, "request": Request(**asked), "reply": Reply.from_json(row["reply"])})
        self.transcript.add_exchange(request, exchange)  # in case the run was killed between the two
        return exchange

    def put(self, request: str, exchange: Exchange) -> None:
        """Archive first, and safely on the disk; then the transcript."""
        reply = exchange.reply
        row = {
            "hash": request,
            "server": exchange.server,
            "model": exchange.model,
            "model_version": reply.model_version,
            "purpose": exchange.purpose,
            "prompt_hash": exchange.prompt_hash,
            "request": json.dumps(asdict(exchange.request), ensure_ascii=False),
            "reply": reply.to_json(),
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "tokens_thinking": reply.tokens_thinking,
            "cost": exchange.cost,
            "created": time.time(),
        }
        with transaction(self.archive) as connection:
            connection.execute(
                f"{insert('requests', list(row))} ON CONFLICT (hash) DO NOTHING", [*row.values()]
            )
        self.transcript.add_exchange(request, exchange)

    def hand_over(self, proposals: Sequence[Proposal]) -> None:
        """Notes in the transcript what the search was handed, for a replay of it."""
        self.transcript.add_proposals(proposals)

    def spent(self) -> Spent:
        """Up to this moment."""
        return spent(self.archive, time.time())


def spent(archive: Archive, now: float | None = None) -> Spent:
    """What the run has used up in all its sessions.

    A session's time is from its start ("created", or the event "resumed") to the last thing it wrote.

    Args:
      archive: of the run.
      now: seconds since 1970, if the last session is still going.
    """
    with archive.turn:
        one = archive.connection.execute(
            "SELECT count(*), total(tokens_in), total(tokens_out), total(cost), total(cost IS NULL) "
            "FROM requests"
        ).fetchone()
        candidates = archive.connection.execute(
            "SELECT count(*) FROM attempts WHERE operator != 'library' AND status != 'unanswered'"
        ).fetchone()[0]
    requests, tokens_in, tokens_out, dollars, unpriced = one
    return Spent(
        dollars=dollars,
        unpriced=int(unpriced),
        tokens_in=int(tokens_in),
        tokens_out=int(tokens_out),
        requests=requests,
        candidates=candidates,
        seconds=_seconds(archive, now),
    )


def _seconds(archive: Archive, now: float | None) -> float:
    starts = [get_meta(archive, "created", 0.0)]
    starts += [event["created"] for event in events(archive, kind="resumed")]
    total = 0.0
    for start, end in zip(starts, [*starts[1:], now or math.inf], strict=True):
        last = now if now is not None and end == now else _last_written(archive, start, end)
        total += max(0.0, last - start)
    return total


def _last_written(archive: Archive, start: float, end: float) -> float:
    latest = " UNION ALL ".join(
        f"SELECT max(created) AS at FROM {table} WHERE created >= :start AND created < :end"
        for table in ("attempts", "evaluations", "events", "requests")
    )
    with archive.turn:
        found = archive.connection.execute(f"SELECT max(at) FROM ({latest})", {"start": start, "end": end})
        return float(found.fetchone()[0] or start)
