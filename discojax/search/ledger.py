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
from discojax.proposers.types import Exchange, Proposal, Sent
from discojax.search.archive import NUMBERS, Archive, events, get_meta, insert, select, transaction

__all__ = ["RunLedger", "spent"]

_UNDER_WAY = "reason IS NULL"
_KILLED = "the run was killed while it was under way"
_COLUMNS = ("server", "model", "purpose", "prompt_hash", "request", "reply", "cost")


@dataclass(frozen=True)
class RunLedger:
    """The ledger of one run; `proposers.Ledger` says what the methods are for.

    Attributes:
      archive: open for writing.
      arm: whose requests are paid; what is `spent` is its own, or that of all arms where this is None.
      transcript: the JSONL file, beside the archive in `transcripts/` by default.
    """

    archive: Archive
    arm: int | None = None
    transcript: replay.Transcript = field(init=False)

    def __post_init__(self) -> None:
        folder = Path(self.archive.path).parent / "transcripts"
        object.__setattr__(self, "transcript", replay.Transcript(folder / "transcript.jsonl"))
        if self.arm is None:  # nothing of this session is under way yet
            with transaction(self.archive) as connection:
                connection.execute(f"UPDATE unanswered SET reason = ? WHERE {_UNDER_WAY}", [_KILLED])

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
            "arm": self.arm or 0,
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
            connection.execute(f"DELETE FROM unanswered WHERE hash = ? AND {_UNDER_WAY}", [request])
        self.transcript.add_exchange(request, exchange)

    def send(self, request: str, sent: Sent) -> None:
        """On the disk before anything is sent."""
        row = {"hash": request, "arm": self.arm or 0, **asdict(sent), "created": time.time()}
        with transaction(self.archive) as connection:
            connection.execute(insert("unanswered", list(row)), [*row.values()])

    def unanswered(self, request: str, reason: str) -> None:
        """Keeps what may be billed."""
        with transaction(self.archive) as connection:
            if reason:
                change, given = "UPDATE unanswered SET reason = ?", [reason, request]
            else:
                change, given = "DELETE FROM unanswered", [request]
            connection.execute(f"{change} WHERE hash = ? AND {_UNDER_WAY}", given)

    def hand_over(self, proposals: Sequence[Proposal]) -> None:
        """Notes in the transcript what the search was handed, for a replay of it."""
        self.transcript.add_proposals(proposals)

    def spent(self) -> Spent:
        """Up to this moment."""
        return spent(self.archive, time.time(), self.arm)


def spent(archive: Archive, now: float | None = None, arm: int | None = None) -> Spent:
    """What the run has used up in all its sessions.

    A session's time is from its start ("created", or the event "resumed") to the last thing it wrote.

    Args:
      archive: of the run.
      now: seconds since 1970, if the last session is still going: what is then under way is left out.
      arm: whose requests and candidates count; None counts all.
    """
    sums = "SELECT count(*), total(tokens_in), total(tokens_out), total(cost), total(cost IS NULL) FROM"
    theirs = "" if arm is None else f"AND arm = {arm}"
    settled = "true" if now is None else f"NOT ({_UNDER_WAY})"
    made = "" if arm is None else f"AND number / {NUMBERS} = {arm}"
    with archive.turn:
        answered, lost = (
            archive.connection.execute(f"{sums} {table} WHERE {which} {theirs}").fetchone()
            for table, which in (("requests", "true"), ("unanswered", settled))
        )
        candidates = archive.connection.execute(
            f"SELECT count(*) FROM attempts WHERE operator != 'library' AND status != 'unanswered' {made}"
        ).fetchone()[0]
    tokens_in, tokens_out, dollars, unpriced = (a + b for a, b in zip(answered[1:], lost[1:], strict=True))
    return Spent(
        dollars=dollars,
        unpriced=int(unpriced),
        tokens_in=int(tokens_in),
        tokens_out=int(tokens_out),
        requests=answered[0],
        candidates=candidates,
        seconds=_seconds(archive, now),
        unanswered=lost[0],
        unanswered_dollars=lost[3],
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
