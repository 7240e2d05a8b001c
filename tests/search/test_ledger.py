"""Paid requests: written once, kept through kills, summed over sessions; and archives of an older schema."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from discojax.errors import UserError
from discojax.proposers.client import Reply, Request, Turn
from discojax.proposers.replay import Replay, recorded
from discojax.proposers.types import Exchange, Ledger, Proposal, Sent
from discojax.search import archive as archives
from discojax.search import schema
from discojax.search.archive import Attempt
from discojax.search.ledger import RunLedger, spent


def exchange(text: str = "{}", cost: float | None = 0.5) -> Exchange:
    turns = (Turn("user", "first"), Turn("model", "reply β"), Turn("user", "second"))
    request = Request("system", turns, schema={"type": "object"}, seed=3)
    reply = Reply((text,), ("stop",), "gemini-3.8-flash-001", 100, 20, 5, raw=json.dumps({"text": text}))
    return Exchange("gemini", "gemini-flash-latest", "propose", "abc", request, reply, cost)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "archive.sqlite"


def test_an_exchange_comes_back_as_it_was_and_is_kept_once(path):
    with archives.open_archive(path, "c") as archive:
        ledger: Ledger = RunLedger(archive)
        assert ledger.get("h") is None
        ledger.put("h", exchange())
        ledger.put("h", exchange("other", 9.0))
    with archives.open_archive(path, "c") as archive:
        ledger = RunLedger(archive)
        assert ledger.get("h") == exchange()
        assert ledger.spent().requests == 1 and ledger.spent().dollars == 0.5
    lines = (path.parent / "transcripts/transcript.jsonl").read_text().splitlines()
    assert [json.loads(line)["hash"] for line in lines] == ["h"]


def test_what_was_spent_is_summed_and_says_what_is_not_known(path):
    with archives.open_archive(path, "c") as archive:
        ledger = RunLedger(archive)
        ledger.put("a", exchange())
        ledger.put("b", exchange(cost=0.25))
        ledger.put("c", exchange(cost=None))
        kept = Attempt(0, 1, "x", "fresh", "rejected", stage="syntax", reason="a loop")
        archives.add_attempts(
            archive,
            [
                kept,
                Attempt(1, 1, "y", "fresh", "unanswered", reason="it was empty"),
                Attempt(2, 0, "dpo", "library", "accepted", source="def", hash="h"),
            ],
        )
        found = spent(archive)
        assert (found.dollars, found.unpriced, found.requests, found.candidates) == (0.75, 1, 3, 1)
        assert (found.tokens_in, found.tokens_out, found.tokens) == (300, 60, 360)
        assert found.cost == "$0.7500 + unknown"
        (row,) = archives.export_rows(archive, "spending")
        assert (row["requests"], row["dollars"], row["unpriced"]) == (3, 0.75, 1)
        assert row["tokens_thinking"] == 15 and row["model_version"] == "gemini-3.8-flash-001"
        failures = archives.export_rows(archive, "failures")
        assert [(f["name"], f["stage"]) for f in failures] == [("x", "syntax"), ("y", "unanswered")]


SENT = Sent("gemini", "gemini-flash-latest", "propose", 1000, 2000, 0.25)


def test_what_got_no_answer_is_spent_at_its_most_and_what_is_under_way_when_it_ends(path):
    with archives.open_archive(path, "c") as archive:
        ledger = RunLedger(archive)
        for request in ("slow", "refused", "paid", "killed"):
            ledger.send(request, SENT)
        assert ledger.spent().unanswered == 0 and ledger.spent().tokens == 0
        ledger.unanswered("slow", "it took too long")
        ledger.unanswered("refused", "")
        ledger.put("paid", exchange())
        ledger.send("slow", SENT)  # once more, and this time it is answered
        ledger.put("slow", exchange())
        found = ledger.spent()
        assert (found.requests, found.unanswered, found.dollars) == (2, 1, 1.25)
        assert found.tokens == 2 * 120 + 3000 and found.unanswered_dollars == 0.25
        assert spent(archive).unanswered == 2, "whoever reads a run that is stopped counts what was under way"
    with archives.open_archive(path, "c") as archive:  # as after `kill -9`
        found = RunLedger(archive).spent()
        assert (found.requests, found.unanswered, found.dollars) == (2, 2, 1.5)
        answered, lost = archives.export_rows(archive, "spending")
        assert (answered["requests"], answered["unanswered"]) == (2, 0)
        assert (lost["unanswered"], lost["dollars"], lost["tokens_out"]) == (2, 0.5, 4000)


def test_an_arm_has_spent_what_is_its_own(path):
    with archives.open_archive(path, "c") as archive:
        whole, search, control = RunLedger(archive), RunLedger(archive, 0), RunLedger(archive, 2)
        search.put("a", exchange())
        control.put("b", exchange(cost=0.25))
        control.send("c", SENT)
        control.unanswered("c", "it took too long")
        kept = Attempt(0, 1, "x", "fresh", "rejected", stage="syntax", reason="a loop")
        archives.add_attempts(archive, [kept, replace(kept, number=2_000_000, name="y")])
        assert search.spent().dollars == 0.5 and control.spent().dollars == 0.5 == 0.25 + 0.25
        assert (search.spent().requests, control.spent().requests, whole.spent().requests) == (1, 1, 2)
        assert (search.spent().candidates, whole.spent().candidates) == (1, 2)
        assert whole.spent().dollars == 1.0
        assert search.get("b") == control.get("b"), "what is paid for is paid for, whoever asks"


def test_time_is_that_of_all_sessions_without_the_pauses_between(path, monkeypatch):
    from discojax.search import archive as module

    clock = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    with archives.open_archive(path, "c") as archive:
        clock[0] = 1060.0
        archives.add_event(archive, "rung")
    clock[0] = 5000.0
    with archives.open_archive(path, "c") as archive:
        archives.add_event(archive, "resumed")
        clock[0] = 5007.0
        archives.add_event(archive, "rung")
        assert spent(archive).seconds == pytest.approx(67.0)
        assert spent(archive, now=5010.0).seconds == pytest.approx(70.0)


_PAY = """
import runpy, sys, time
from discojax.search import archive as archives
from discojax.search.ledger import RunLedger
exchange = runpy.run_path(sys.argv[2])["exchange"]
with archives.open_archive(sys.argv[1], "c") as archive:
    RunLedger(archive).put("paid", exchange())
    print("paid", flush=True)
    time.sleep(60)
"""


def test_a_paid_reply_survives_kill_9_and_its_transcript_is_mended(path):
    process = subprocess.Popen([sys.executable, "-c", _PAY, str(path), __file__], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"paid\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    transcript = path.parent / "transcripts/transcript.jsonl"
    transcript.write_bytes(transcript.read_bytes()[:50])  # as if the kill had come earlier
    with archives.open_archive(path, "c") as archive:
        assert RunLedger(archive).get("paid") == exchange()
    torn, whole = transcript.read_text().splitlines()
    assert torn.startswith('{"kind"') and json.loads(whole)["hash"] == "paid"


def old_archive(path) -> None:
    """As the first released schema wrote it."""
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(schema.MIGRATIONS[0] + schema.MIGRATIONS[1] + "PRAGMA user_version = 2;")
    connection.execute("INSERT INTO meta VALUES ('config_hash', '\"c\"'), ('created', '1.0')")
    connection.execute(
        "INSERT INTO attempts (number, generation, name, operator, status, parents, thought, source, hash, "
        "proposer, model, cost, created) VALUES (0, 0, 'dpo', 'library', 'accepted', '[]', '', 'def', 'h0', "
        "'library', '', NULL, 2.0), (1, 1, 'child', 'mutate', 'accepted', '[0]', 'so', 'def c', 'h1', "
        "'evolution', 'gemini-1', 0.5, 3.0)"
    )
    connection.close()


def test_an_old_archive_is_brought_up_to_date_with_its_rows(path):
    old_archive(path)
    with archives.open_archive(path, "c") as archive:
        child = archives.attempts(archive, name="child")[0]
        assert child.parents == (0,) and child.model_version == "gemini-1" and child.request is None
        assert child.cost == 0.5 and child.created == 3.0
        archives.add_attempts(archive, [Attempt(2, 1, "z", "fresh", "unanswered", reason="nothing came")])
        assert len(archives.export_rows(archive, "proposals")) == 3
        RunLedger(archive).put("h", exchange())
    with archives.open_archive(path, "c") as archive:  # and only once
        assert len(archives.attempts(archive)) == 3


def test_an_old_archive_is_read_without_being_changed(path):
    old_archive(path)
    before = path.read_bytes()
    with archives.open_archive(path) as archive:
        assert [a.name for a in archives.attempts(archive)] == ["dpo", "child"]
        assert spent(archive).requests == 0 and spent(archive).candidates == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        Attempt(0, 1, "x", "fresh", "unanswered"),  # no reason
        Attempt(0, 1, "x", "fresh", "unanswered", source="def", reason="so"),
        Attempt(0, 1, "x", "fresh", "accepted"),
    ],
)
def test_a_row_cannot_contradict_itself(path, bad):
    with archives.open_archive(path, "c") as archive, pytest.raises(ValueError, match="CHECK"):
        archives.add_attempts(archive, [bad])


def test_a_run_is_replayed_from_its_archive_or_its_transcript(path):
    first = Proposal("one", "def one", "fresh", (), "an idea", model="m", request="r", tokens_in=3, cost=0.1)
    second = Proposal("two", "def two", "refine", ("one", "dpo"), "better", raw_reply="```β```")
    third = Proposal("three", "", "refine", ("two",), "", unanswered="it was cut off")
    with archives.open_archive(path, "c") as archive:
        RunLedger(archive).hand_over([first, second, third])
        rows = [Attempt(0, 0, "dpo", "library", "accepted", source="def", hash="h0")]
        numbers = {"dpo": 0, "one": 1, "two": 2}
        for number, p in enumerate((first, second, third), 1):
            rows.append(
                Attempt(
                    number,
                    1,
                    p.name,
                    p.operator,
                    "unanswered" if p.unanswered else "rejected",
                    tuple(numbers[name] for name in p.parents),
                    p.thought,
                    p.source or None,
                    stage=None if p.unanswered else "text",
                    reason=p.unanswered or "no",
                    model=p.model,
                    request=p.request,
                    raw_reply=p.raw_reply,
                )
            )
        archives.add_attempts(archive, rows)
    transcript = recorded(path.parent / "transcripts/transcript.jsonl")
    assert transcript == recorded(path.parent) == recorded(path)
    assert [p.name for p in transcript] == ["one", "two", "three"]
    assert transcript[1:] == (second, third) and transcript[0].request == "r"
    assert transcript[0].cost is None and transcript[0].tokens_in is None
    replay = Replay(transcript)
    assert replay.propose([], 2, 0) == list(transcript[:2])
    from discojax.proposers import Scored

    assert replay.propose([Scored("one", "", "rejected"), Scored("dpo", "", "ok")], 9, 1) == list(
        transcript[1:]
    )


def test_nothing_to_replay_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"proposer\.path"):
        recorded(tmp_path)
    (tmp_path / "empty.jsonl").write_text("not json\n[1]\n")
    with pytest.raises(UserError, match="no proposal"):
        recorded(tmp_path / "empty.jsonl")
    (tmp_path / "half.jsonl").write_text('{"kind": "proposal", "name": "x"}\n')
    with pytest.raises(UserError, match="not whole"):
        recorded(tmp_path / "half.jsonl")
