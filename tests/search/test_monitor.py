"""What is shown live of a search: here what it has spent, of the real archive, as text without a terminal."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

from rich.console import Console

from discojax.config import load
from discojax.proposers.client import Reply, Request, Turn
from discojax.proposers.types import Exchange
from discojax.search import archive as archives
from discojax.search.display import Display
from discojax.search.ledger import RunLedger
from discojax.search.logs import Log
from discojax.search.monitor import Monitor
from discojax.search.schedule import Schedule


def exchange(number: int, cost: float | None) -> Exchange:
    request = Request("system", (Turn("user", f"question {number}"),))
    reply = Reply(("{}",), ("stop",), "model-001", 1000, 200, 50)
    return Exchange("openai", "model", "propose", "abc", request, reply, cost)


def test_requests_tokens_and_dollars_are_shown_and_logged_as_they_are_spent(tmp_path):
    config = load(None, ["budget.dollars=2", "search.proposer=openai", "search.candidates=8"])
    shown, lines = io.StringIO(), []
    screen = Display(Console(file=shown, width=200), None)
    with archives.open_archive(tmp_path / "archive.sqlite", "of a test") as archive:
        ledger = RunLedger(archive)
        monitor = Monitor(config, screen, 4, Schedule(), ledger, 1, Log((lines.append,)))
        monitor.arrived()
        assert "requests" not in shown.getvalue()  # nobody was asked anything yet
        for number, cost in enumerate((0.25, 0.5)):
            ledger.put(f"hash {number}", exchange(number, cost))
        monitor.done()
        assert monitor.candidates_bar.description == "candidates: 2 requests, 2,400 tokens, $0.7500"
        assert monitor.budget_bar is not None and monitor.budget_bar.done == 38  # of 2 dollars
        ledger.put("hash 2", exchange(2, None))
        monitor.done()
        assert monitor.candidates_bar.description.endswith("3 requests, 3,600 tokens, $0.7500 + unknown")
    spent = [line for line in lines if line["kind"] == "spent"]
    assert [line["requests"] for line in spent] == [0, 2, 3]
    assert spent[1]["dollars"] == 0.75 and spent[1]["tokens_in"] + spent[1]["tokens_out"] == 2400
    assert json.dumps(spent)


def test_on_a_terminal_the_bar_says_it(tmp_path):
    from discojax.search.display import display

    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    config = load(None, ["budget.tokens=5000"])
    with archives.open_archive(tmp_path / "archive.sqlite", "of a test") as archive:
        ledger = RunLedger(archive)
        with display(console) as screen:
            monitor = Monitor(config, screen, 4, Schedule(), ledger, 1, Log())
            ledger.put("hash", exchange(0, 0.125))
            monitor.trained(SimpleNamespace(useful=3, busy=2))
            screen.bars.refresh()
    text = console.file.getvalue()
    assert "candidates: 1 requests, 1,200 tokens, $0.1250" in text
    assert "budget, in per cent" in text and "2 of 4 lanes busy" in text
