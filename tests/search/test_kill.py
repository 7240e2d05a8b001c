"""`kill -9` at any moment: nothing is paid or counted twice, and the archive ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import toy

from discojax.proposers.replay import Transcript
from discojax.proposers.types import Proposal

sys.path.insert(0, str(Path(__file__).parents[1] / "proposers"))

from server import Server

PROGRAM = Path(__file__).with_name("toy_run.py")


def transcript(path: Path, count: int) -> Path:
    """`count` proposals of a language model, one in eight no candidate: what `replay` proposes."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        name = f"loss_{number}"
        source = "import os" if number % 8 == 5 else toy.text(name, *rng.uniform(0.2, 2.0, 3))
        made.append(Proposal(name, source, "fresh", ("dpo",), "Drawn."))
    Transcript(path).add_proposals([replace(one, raw_reply=one.source) for one in made])
    return path


@dataclass
class Life:
    """One process that makes, or goes on with, a run."""

    folder: Path
    overrides: tuple[str, ...]

    def __post_init__(self):
        # A log, not a pipe: nobody reads it, and the run must not wait for that.
        self.log = (self.folder / "log.txt").open("a")
        command = [sys.executable, str(PROGRAM), str(self.folder), *self.overrides]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def end(self) -> None:
        assert self.process.wait(timeout=240) == 0, (self.folder / "log.txt").read_text()[-2000:]

    def kill_when(self, question: str, least: int) -> None:
        """Kills it, unfinished, once the archive answers a question with so large a number."""
        while ask(self.folder, question) < least:
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
            time.sleep(0.002)
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, (self.folder / "log.txt").read_text()[-2000:]
        assert not ask(self.folder, "SELECT count(*) FROM meta WHERE key = 'finished' AND value = 'true'")


def ask(folder: Path, question: str) -> int:
    """A number that the run's archive answers with; 0 as long as it is not there."""
    try:
        path = f"file:{folder}/toy/archive.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True, timeout=10)) as archive:
            return archive.execute(question).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


ATTEMPTS = "SELECT count(*) FROM attempts"
ELITES = "SELECT count(*) FROM evaluations WHERE rung = 2"
UNDER_WAY = "SELECT count(*) FROM unanswered WHERE reason IS NULL"
WHILE_ASKING = f"SELECT CASE ({UNDER_WAY}) WHEN 0 THEN 0 ELSE ({ATTEMPTS}) END"


def survives(folder: Path, settings: tuple[str, ...], candidates: int, kills: int) -> dict[str, int]:
    """Runs once to the end and once with kills, compares, and returns figures of the second.

    The kills are spread evenly over the attempts that the archive comes to have; the last is among the
    elites.
    """
    overrides = (
        *settings,
        f"search.candidates={candidates}",
        f"search.generations={max(candidates // 20, 2)}",
    )
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    broken.mkdir()
    Life(whole, overrides).end()
    expected = toy.rows(whole / "toy/archive.sqlite")
    # Of a server's requests some are to be under way at each kill.
    moment = ATTEMPTS if "search.proposer=replay" in settings else WHILE_ASKING
    under_way = 0
    for kill in range(1, kills):
        least = max(len(expected[0]) * kill // kills, ask(broken, ATTEMPTS) + 1)
        Life(broken, overrides).kill_when(moment, least)
        under_way += ask(broken, UNDER_WAY)
    Life(broken, overrides).kill_when(ELITES, 1)
    Life(broken, overrides).end()
    attempts, evaluations = toy.rows(broken / "toy/archive.sqlite")
    assert attempts == expected[0]
    assert evaluations == expected[1]
    assert len(attempts) == len(set(attempts)) and len(evaluations) == len(set(map(repr, evaluations)))
    with contextlib.closing(sqlite3.connect(broken / "toy/archive.sqlite")) as archive:
        assert archive.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert ask(broken, "SELECT count(*) FROM events WHERE kind = 'resumed'") == kills
    return {"attempts": len(attempts), "evaluations": len(evaluations), "under way": under_way}


@pytest.mark.slow
def test_a_run_survives_three_kills(tmp_path):
    source = transcript(tmp_path / "transcript.jsonl", 12)
    figures = survives(tmp_path, ("search.proposer=replay", f"proposer.path={source}"), 12, 3)
    assert figures["attempts"] == 12 + 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("candidates", "kills"), [(12, 3), (200, 20)])
def test_a_run_that_pays_for_its_requests_survives_kills_and_pays_for_none_twice(
    candidates, kills, tmp_path, monkeypatch
):
    """But those under way when it was killed, which no one could know to be answered."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with Server() as server:
        server.state.then = "ok:0.05"
        settings = (
            "search.proposer=openai", f"proposer.base_url={server.url}/v1", "proposer.models=[qwen3:8b]",
            "proposer.concurrency=2", "proposer.candidates=1",
        )  # fmt: skip
        figures = survives(tmp_path, settings, candidates, kills)
        asked = [json.dumps(exchange.body, sort_keys=True) for exchange in server.state.generations]
    paid = ask(tmp_path / "whole", "SELECT count(DISTINCT hash) FROM requests")
    assert paid == ask(tmp_path / "broken", "SELECT count(*) FROM requests") >= candidates
    accepted = f"{ATTEMPTS} WHERE status = 'accepted' AND operator != 'library'"
    assert ask(tmp_path / "broken", accepted) == candidates
    assert len(set(asked)) == paid  # both runs asked the same
    again = len(asked) - 2 * paid  # the whole run's, and the broken one's
    print(figures, {"paid": paid, "again": again})
    assert 0 <= again <= figures["under way"] and kills - 1 <= figures["under way"] <= 2 * kills
