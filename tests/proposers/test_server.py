"""The scripted server as a command, for demonstrations."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from bodies import losses
from server import MODELS, Server

from discojax.candidates import parse
from discojax.proposers import replies


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    log = tmp_path / "requests.jsonl"
    script = Path(__file__).with_name("server.py")
    options = ["--port", "0", "--script", "unavailable", "--refuse", "n", "--log", str(log)]
    run = subprocess.Popen([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    said = run.stdout.readline()
    assert all(model in said for model in MODELS)
    yield said.split()[1], log
    run.kill()
    run.wait()
    run.stdout.close()


def ask(url: str, **config: object) -> dict[str, object]:
    body = {"contents": [{"parts": [{"text": "Write a loss."}]}], "generationConfig": config}
    request = urllib.request.Request(
        f"{url}/v1/models/{MODELS[0]}:generateContent",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_the_command_serves_its_script_and_keeps_a_log(command: tuple[str, Path]) -> None:
    url, log = command
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask(url)
    assert "candidates" in ask(url)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(url, candidateCount=2)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["method"] for line in lines] == ["POST"] * 3
    assert lines[0]["body"] == lines[1]["body"] != lines[2]["body"]  # who asks twice is seen


def test_its_losses_are_read_by_the_gate_and_depend_on_the_question_alone() -> None:
    texts = [losses({"question": number}) for number in range(50)]
    assert texts == [losses({"question": number}) for number in range(50)]
    assert len(set(texts)) > 40
    for text in texts:
        (draft,) = replies.read(text)
        parse(draft.code)
    several = losses({"schema": replies.schema(several=True)})
    assert len(replies.read(several)) == 3


def test_an_unknown_fault_is_named() -> None:
    with pytest.raises(ValueError, match="there is no fault 'storm'"), Server(then="storm") as server:
        server.state.next_fault()
