"""Ctrl-C while a server is waited for: the run ends at once, and goes on later as if nothing had been."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
sys.path.insert(0, str(Path(__file__).parents[1] / "proposers"))

from bodies import losses
from server import Server

PROGRAM = Path(__file__).with_name("toy_run.py")
ATTEMPTS = (
    "SELECT number, generation, name, operator, status, source, request, seed FROM attempts ORDER BY number"
)


def start(folder: Path, url: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, str(PROGRAM), str(folder), "search.proposer=openai", f"proposer.base_url={url}/v1",
        "proposer.models=[qwen3:8b]", "search.candidates=2", "search.generations=1",
    ]  # fmt: skip
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def attempts(folder: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / "toy" / "archive.sqlite") as archive:
        return archive.execute(ATTEMPTS).fetchall()


def first_refused(body: dict[str, Any], number: int) -> str:
    """Losses that the gate refuses, and mended ones."""
    text = losses(body, number)
    return text if len(body["messages"]) > 2 else text.replace("return ", "return import_os(", 1)


@pytest.mark.slow
@pytest.mark.parametrize("answered", [0, 1], ids=["the question", "its repair"])
def test_ctrl_c_while_a_busy_server_is_waited_for(answered, tmp_path):
    """A pause of minutes, before the first answer or between it and the repair of what it holds."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with Server(answer=first_refused if answered else losses) as server:
        assert start(whole, server.url).wait(timeout=240) == 0, (whole / "log.txt").read_text()[-2000:]
        expected = attempts(whole)
        begun = len(server.state.generations)
        server.state.script, server.state.then = ["ok"] * answered, "rate_limited:290"
        process = start(stopped, server.url)
        while len(server.state.generations) < begun + answered + 1 and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, (stopped / "log.txt").read_text()[-2000:]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) != 0, "it ended, minutes before the pause would have"
        said = (stopped / "log.txt").read_text()
        assert "KeyboardInterrupt" in said or "stopping.Stopped" in said  # wherever the run just was
        assert {row[3] for row in attempts(stopped)} == {"library"}, "nothing is said of what is not known"

        sent = len(server.state.generations)
        server.state.then = "ok"
        assert start(stopped, server.url).wait(timeout=240) == 0, (stopped / "log.txt").read_text()[-2000:]
        assert attempts(stopped) == expected
        assert len(server.state.generations) - sent == begun - answered, (
            "what was answered is not asked again"
        )
