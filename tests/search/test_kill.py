"""`kill -9` at any moment: nothing is paid or counted twice, and the archive ends as if nothing had been."""

from __future__ import annotations

import random
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

    def kill_after(self, rows: int, seconds: float) -> bool:
        """Kills it once it has added so many rows and so many seconds; false if it ended before."""
        before = count(self.folder)
        while count(self.folder) < before + rows and self.process.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGKILL)
        code = self.process.wait()
        assert code in (0, -signal.SIGKILL), (self.folder / "log.txt").read_text()[-2000:]
        return code != 0


def count(folder: Path) -> int:
    try:
        with sqlite3.connect(f"file:{folder}/toy/archive.sqlite?mode=ro", uri=True, timeout=10) as archive:
            tables = ("attempts", "evaluations")
            return sum(archive.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
    except sqlite3.OperationalError:  # not there yet
        return 0


def survives(folder: Path, candidates: int, kills: int, seed: int) -> dict[str, int]:
    """Runs once to the end and once with kills, compares, and returns figures."""
    source = transcript(folder / "transcript.jsonl", candidates)
    overrides = (
        "search.proposer=replay", f"proposer.path={source}", f"search.candidates={candidates}",
        f"search.generations={max(candidates // 20, 2)}",
    )  # fmt: skip
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    broken.mkdir()
    Life(whole, overrides).end()
    expected = toy.rows(whole / "toy/archive.sqlite")
    total = sum(map(len, expected))
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        rows = rng.randrange(0, max(2 * total // (kills + 2), 1))
        killed += Life(broken, overrides).kill_after(rows, rng.uniform(0, 0.05))
    Life(broken, overrides).end()
    attempts, evaluations = toy.rows(broken / "toy/archive.sqlite")
    assert attempts == expected[0]
    assert evaluations == expected[1]
    assert len(attempts) == len(set(attempts)) and len(evaluations) == len(set(map(repr, evaluations)))
    with sqlite3.connect(broken / "toy/archive.sqlite") as archive:
        assert archive.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        resumed = archive.execute("SELECT count(*) FROM events WHERE kind = 'resumed'").fetchone()[0]
    return {"attempts": len(attempts), "evaluations": len(evaluations), "kills": killed, "resumed": resumed}


@pytest.mark.slow
def test_a_run_survives_three_kills(tmp_path):
    figures = survives(tmp_path, candidates=12, kills=3, seed=1)
    assert figures["kills"] == 3 and figures["attempts"] == 12 + 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_of_two_hundred_proposals_survives_twenty_kills(tmp_path):
    figures = survives(tmp_path, candidates=200, kills=20, seed=2)
    print(figures)
    assert figures["kills"] == 20 and figures["attempts"] == 200 + 4 and figures["resumed"] >= 15


@pytest.mark.slow
def test_a_run_that_pays_for_its_requests_pays_for_none_twice(tmp_path, monkeypatch):
    """But those under way when it was killed, which no one could know to be answered."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    kills, concurrency = 3, 2
    with Server() as server:
        server.state.then = "ok:0.05"
        overrides = (
            "search.proposer=openai", f"proposer.base_url={server.url}/v1", "proposer.models=[qwen3:8b]",
            f"proposer.concurrency={concurrency}", "proposer.candidates=1", "search.candidates=12",
            "search.generations=3",
        )  # fmt: skip
        killed = sum(Life(tmp_path, overrides).kill_after(rows, 0.02) for rows in (1, 9, 14))
        Life(tmp_path, overrides).end()
        asked = len(server.state.generations)
    with sqlite3.connect(tmp_path / "toy/archive.sqlite") as archive:
        hashes = [row[0] for row in archive.execute("SELECT hash FROM requests")]
        made = archive.execute("SELECT count(*) FROM attempts WHERE status = 'accepted' "
                               "AND operator != 'library'").fetchone()[0]  # fmt: skip
    assert killed == kills and made == 12
    assert len(hashes) == len(set(hashes)) >= 12
    assert len(hashes) <= asked <= len(hashes) + kills * concurrency
