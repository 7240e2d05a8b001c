"""Proposing: what is asked for, what is kept of a reply, and that a resumed run asks on where it was."""

from __future__ import annotations

import dataclasses

import pytest
import toy

from discojax.proposers.types import Proposal
from discojax.search import archive as archives
from discojax.search import proposals
from discojax.search.proposals import Notebook, admit_library, history, propose
from discojax.search.statistics import Comparison, Estimate


@pytest.fixture
def archive(tmp_path):
    with archives.open_archive(tmp_path / "archive.sqlite", "a test") as archive:
        admit_library(archive, ("dpo", "ipo"))
        yield archive


class Scripted:
    """Gives what it was made with, reply by reply, and notes how it was asked."""

    name = "scripted"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def propose(self, history, count, seed):
        self.asked.append(([(past.name, past.status) for past in history], count, seed))
        return self.replies.pop(0)[:count] if self.replies else []


def candidate(number, **fields):
    """One of 25 losses of which no two would train alike."""
    name = f"loss_{number}"
    weight, slope = (0.1, 0.3, 1.0, 3.0, 10.0)[number % 5], (0.2, 0.8, 1.4, 2.0, 3.0)[number // 5]
    source = toy.text(name, weight, slope, 1.0)
    return Proposal(name, source, "fresh", ("dpo",), "An idea.", **fields)


def run(notebook, proposer, wanted=4, generation=1, batch=2, **keywords):
    past = history(notebook, before=generation)
    found = propose(
        notebook, proposer, past, generation=generation, wanted=wanted, seed=3, batch=batch, **keywords
    )
    return [contender.name for contender in found]


def test_requests_are_small_and_show_what_became_of_those_before(archive):
    bad = dataclasses.replace(candidate(9), name="bad", source="import os")
    proposer = Scripted([candidate(0), bad], [candidate(0), candidate(1)], [candidate(2), candidate(3)])
    proposer.replies[1][0] = dataclasses.replace(candidate(0), name="again")
    notebook = Notebook(archive)
    assert run(notebook, proposer) == ["loss_0", "loss_1", "loss_2", "loss_3"]
    library = [("dpo", "pending"), ("ipo", "pending")]
    first = [("loss_0", "pending"), ("bad", "rejected")]
    second = [("again", "duplicate"), ("loss_1", "pending")]
    histories = [asked[0] for asked in proposer.asked]
    assert histories == [library, library + first, library + first + second]
    assert [count for _, count, _ in proposer.asked] == [2, 2, 2]
    assert len({seed for *_, seed in proposer.asked}) == 3
    kept = archives.attempts(archive)
    assert [(a.number, a.status) for a in kept[2:]] == [
        (2, "accepted"), (3, "rejected"), (4, "duplicate"), (5, "accepted"), (6, "accepted"), (7, "accepted"),
    ]  # fmt: skip
    assert kept[4].reason == "the same program as loss_0" and kept[3].stage == "syntax"
    assert kept[2].parents == (0,) and all(a.proposer == "scripted" for a in kept[2:])


def test_what_a_reply_cost_is_kept_also_where_it_held_no_candidate(archive):
    paid = candidate(
        0, model="m", model_version="m-001", request="r" * 64, prompt_hash="p", raw_reply="{}", tokens_in=10,
        tokens_out=20, cost=0.5,
    )  # fmt: skip
    nothing = Proposal("nothing", "", "fresh", (), "", unanswered="Safety.", model="m", request="s" * 64)
    heard = []
    run(Notebook(archive), Scripted([paid, nothing]), wanted=2, heard=heard.append)
    one, other = archives.attempts(archive)[2:]
    for field in ("model", "model_version", "request", "prompt_hash", "raw_reply", "tokens_in", "cost"):
        assert getattr(one, field) == getattr(paid, field)
    assert (other.status, other.reason, other.source, other.hash) == ("unanswered", "Safety.", None, None)
    assert heard == [[paid, nothing]]


def compared(name, value, verdict="no difference shown"):
    difference = Estimate(value, 0.1, 5.0, 2, 16)
    return Comparison(
        name, difference, difference, (value - 0.2, value + 0.3), (-9.0, 9.0), 0.5, 1.0, verdict, 3, 4
    )


def test_what_is_shown_of_a_loss_is_of_the_highest_rung_that_is_known(archive):
    notebook = Notebook(archive)
    names = run(notebook, Scripted([candidate(i) for i in range(4)]), batch=4)
    low = {name: compared(name, 0.1 * i) for i, name in enumerate(names[:3])}
    low["dpo"] = compared("dpo", 0.0, "baseline")
    high = {names[1]: compared(names[1], -0.7), names[2]: compared(names[2], 0.0, "failed")}
    rungs = (proposals.Rung(1, 20, low), proposals.Rung(2, 40, high), proposals.Rung(4, 80, {}))
    shown = {past.name: past for past in history(notebook, rungs)}
    measured = [
        (past.status, past.score, past.rung, past.seeds, past.steps, past.common_score)
        for past in (shown[name] for name in ("dpo", *names[:2]))
    ]
    assert measured == [("ok", 0.0, 0, 1, 20, 0.0), ("ok", 0.0, 0, 1, 20, 0.0), ("ok", -0.7, 1, 2, 40, 0.1)]
    assert shown[names[1]].interval == high[names[1]].interval and shown["dpo"].interval is None
    assert (shown[names[2]].status, shown[names[2]].score) == ("failed", None)
    assert shown[names[2]].reason == "3 of 4 lanes diverged at rung 1"
    assert shown[names[3]].status == shown["ipo"].status == "pending"


@pytest.mark.parametrize("lived", [1, 2])
def test_a_resumed_run_asks_on_where_it_was(archive, tmp_path, lived):
    replies = [[candidate(2 * i), candidate(2 * i + 1)] for i in range(3)]
    whole = Scripted(*replies)
    with archives.open_archive(tmp_path / "whole.sqlite", "a test") as other:
        admit_library(other, ("dpo", "ipo"))
        expected = run(Notebook(other), whole, wanted=6)
    stopped = Scripted(*replies)
    left = iter(range(lived))
    assert len(run(Notebook(archive), stopped, wanted=6, go_on=lambda: next(left, None) is not None)) < 6
    rest = Scripted(*replies[lived:])
    assert run(Notebook(archive), rest, wanted=6) == expected
    assert stopped.asked + rest.asked == whole.asked


def test_a_taken_name_gets_another_and_a_prefix_keeps_searches_apart(archive):
    main, control = Notebook(archive), Notebook(archive, 1, "random_")
    renamed = dataclasses.replace(candidate(0), name="dpo")
    assert run(main, Scripted([renamed]), wanted=1) == ["dpo_"]
    assert run(control, Scripted([candidate(0)]), wanted=1) == [
        "random_loss_0"
    ]  # its own search: no duplicate
    assert [a.number for a in archives.attempts(archive)] == [0, 1, 2, 1_000_000]
    again = Notebook(archive, 1, "random_")
    assert [a.name for a in again.attempts] == ["dpo", "ipo", "random_loss_0"]
    assert again.next_number == 1_000_001


def test_it_gives_up_on_a_proposer_that_only_repeats_itself(archive):
    proposer = Scripted(*[[candidate(0)] for _ in range(100)])
    assert run(Notebook(archive), proposer, wanted=2, batch=1) == ["loss_0"]
    assert len(proposer.asked) == proposals._TRIES * 2


def test_attempts_are_read_once_however_many_there_are(archive, monkeypatch):
    reads, read = [], archives.attempts
    monkeypatch.setattr(archives, "attempts", lambda *a, **k: reads.append(1) or read(*a, **k))
    notebook = Notebook(archive)
    for generation in range(1, 6):
        made = [candidate(4 * generation + i) for i in range(4)]
        assert len(run(notebook, Scripted(made[:2], made[2:]), generation=generation)) == 4
    assert len(reads) == 1
