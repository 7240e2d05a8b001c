"""The search in the toy laboratory: what a generation may know, controls at equal budget, budgets, stops."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
import toy
import toy_run

from discojax.config import Budget, load
from discojax.errors import UserError
from discojax.proposers.budget import Spent
from discojax.report import summary
from discojax.search import archive as archives
from discojax.search import arms, brackets, discover, proposals
from discojax.search.rungs import shares


@pytest.fixture
def settings(tmp_path):
    def settings(*overrides):
        given = (
            *toy_run.SETTINGS, f"run.directory={tmp_path}", "search.candidates=8", "search.generations=4",
            *overrides,
        )  # fmt: skip
        return load("quickstart", given)

    return settings


@pytest.fixture
def drawn(monkeypatch):
    """Proposers are cheap, and told what they were shown: `(arm's share of history, count, seed)`."""
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Watched(toy.Drawn):
        def propose(self, history, count, seed):
            asked.append((list(history), count, seed, threading.current_thread().name))
            return super().propose(history, count, seed)

    def build(config, archive, names, screen, log):
        return toy.laboratory(archive, config.run.path, lanes=config.population.lanes, chunk=10)

    monkeypatch.setattr(discover, "build_laboratory", build)
    monkeypatch.setattr(arms, "make_proposer", lambda config, library, ledger: Watched())
    return asked


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_generation_knows_the_scores_of_those_before_the_lag(lag, settings, drawn):
    discover.run(settings(f"search.lag={lag}"))
    asked = [history for history, _, _, _ in drawn]
    library = {"dpo", "ipo", "exp", "slic"}
    first = {}  # the first request of each generation of two
    for history in asked:
        made = [p for p in history if p.name not in library and p.status in ("ok", "failed", "pending")]
        first.setdefault(len(made) // 2, history)
    assert set(first) == {0, 1, 2, 3}
    for generation, history in first.items():  # the first is number 0 here
        scored = [past.name for past in history if past.status in ("ok", "failed")]
        pending = [past.name for past in history if past.status == "pending"]
        known = max(generation - lag, 0)
        assert len(set(scored) - library) == 2 * known
        assert (library <= set(scored)) == (generation >= lag)
        assert len(set(pending) - library) == 2 * (generation - known)
    assert {name for *_, name in drawn} == {"proposer"}


@pytest.fixture
def told(monkeypatch):
    """What each generation of a search is told of those before, as often as it is asked for."""
    told, propose = {}, proposals.propose

    def watched(notebook, proposer, past, *, generation, **rest):
        told.setdefault(generation, []).append(list(past))
        return propose(notebook, proposer, past, generation=generation, **rest)

    monkeypatch.setattr(proposals, "propose", watched)
    return told


THREE = ("search.rungs=[[1, 20, 64], [2, 40, 2], [2, 80, 1]]", "search.candidates=12", "search.generations=6")


@pytest.mark.parametrize("lag", [0, 1])
def test_a_generation_knows_how_the_best_of_older_ones_did_in_later_rungs(lag, settings, drawn, told):
    config = settings(*THREE, f"search.lag={lag}")
    discover.run(config)
    with archives.open_archive(config.run.path / "archive.sqlite") as archive:
        of = {attempt.name: attempt.generation for attempt in archives.attempts(archive)}
        reached = {n: {e.key.objective for e in archives.evaluations(archive, rung=n)} for n in (1, 2)}
    assert set(told) == set(range(1, 7))
    for generation, (past,) in told.items():
        for rung, names in reached.items():
            known = {name for name in names & set(of) if of[name] <= generation - 1 - lag - rung} - {"dpo"}
            assert {p.name for p in past if p.rung >= rung} - {"dpo"} == known, (generation, rung)
            assert known or generation - 1 - lag - rung < 0
        for p in past:
            assert (p.seeds, p.steps) == {0: (1, 20), 1: (2, 40), 2: (2, 80)}[p.rung] or p.score is None
            assert (p.first_score is None) == (p.rung == 0 or p.name == "dpo")


def stopped(config, monkeypatch, when):
    """Runs it until its proposer is asked with a history of which `when` is true, and then gives up."""

    class Failing(toy.Drawn):
        def propose(self, history, count, seed):
            if when(history):
                raise UserError("The server is gone; resume when it is back.")
            return super().propose(history, count, seed)

    with monkeypatch.context() as patch:
        patch.setattr(arms, "make_proposer", lambda config, library, ledger: Failing())
        with pytest.raises(UserError, match="server is gone"):
            discover.run(config)


def test_a_resumed_run_is_told_what_one_left_alone_is_told(settings, drawn, told, monkeypatch):
    """Though it knows more: all that the stopped one had measured, of every rung."""
    discover.run(settings(*THREE, "run.name=whole"))
    whole = {generation: told.pop(generation) for generation in list(told)}
    config = settings(*THREE)

    known = {past.name for past in whole[6][0]}
    stopped(config, monkeypatch, lambda history: known <= {past.name for past in history})
    discover.run(config, resume=True)
    assert {generation: len(pasts) for generation, pasts in told.items()} == dict.fromkeys(range(1, 7), 2)
    assert all(past == whole[generation][0] for generation, pasts in told.items() for past in pasts)
    assert any(p.rung == 2 for p in whole[6][0])


def test_rungs_that_nothing_reaches_are_not_waited_for(settings, drawn, told):
    """Of three candidates in seven generations most brackets are empty."""
    outcome = discover.run(settings(*THREE, "search.candidates=3", "search.generations=7", "search.lag=0"))
    assert outcome.accepted == 3 and set(told) == set(range(1, 8))


def test_the_controls_have_the_same_budget_and_their_table(settings, drawn, capsys):
    config = settings("search.controls=[random_mutation, best_of_n, tuned_baselines]")
    outcome = discover.run(config)
    table = {control.name: control for control in outcome.controls}
    assert list(table) == ["search", "random_mutation", "best_of_n", "tuned_baselines"]
    assert {control.accepted for control in table.values()} == {8}
    longest = max(control.lane_steps for control in table.values())
    assert all(control.lane_steps >= 0.8 * longest for control in table.values())  # a few may diverge
    assert table["search"].lead is None and table["tuned_baselines"].lead is not None
    assert table["tuned_baselines"].best.split("_lr")[0] in ("dpo", "ipo", "slic")
    names = [contender.name for contender in outcome.contenders]
    assert not any(name.startswith(("random_", "unled_")) or "_lr" in name for name in names)

    summary.show(outcome, kl_budget=10.0, confidence=0.95)
    printed = capsys.readouterr().out
    assert "the search against its controls" in printed
    assert all(word in printed for word in ("random", "best of", "tuned", "lane-steps"))
    print(printed)
    written = json.loads((config.run.path / "results.json").read_text())["controls"]
    assert [line["name"] for line in written] == list(table)
    assert (
        written[3]["comparison"]["difference"]["value"]
        == table["tuned_baselines"].comparison.difference.value
    )


def test_elites_of_the_library_take_no_place_of_the_search(settings, drawn):
    outcome = discover.run(settings("search.controls=[random_mutation]", "search.elites=[2, 40, 3]"))
    with archives.open_archive(outcome.folder / "archive.sqlite") as archive:
        elites = {e.key.objective for e in archives.evaluations(archive, rung=2)}
    assert sum(name.startswith("drawn_") for name in elites) == 3
    assert sum(name.startswith("random_") for name in elites) == 3
    assert elites & {"ipo", "exp", "slic"} and "dpo" in elites


def test_arms_share_a_budget_equally(settings, drawn, tmp_path):
    limits = ("budget.dollars=3", "budget.tokens=1001", "budget.candidates=9", "budget.minutes=5")
    controls = "search.controls=[random_mutation, best_of_n, tuned_baselines]"
    for proposer, (dollars, tokens) in {"gemini": (1.5, 500), "evolution": (3.0, 1001)}.items():
        config = settings(f"search.proposer={proposer}", controls, *limits)
        with archives.open_archive(tmp_path / proposer / "a.sqlite", "x") as archive:
            made = arms.make_arms(config, archive, ("dpo",))
        assert {arm.budget for arm in made} == {Budget(dollars, tokens, 3, 5.0)}
        assert [arm.ledger.arm for arm in made] == [0, 1, 2, 3]


def test_each_arm_proposes_within_its_own_share(settings, drawn):
    config = settings("budget.candidates=10", "search.controls=[random_mutation]")
    outcome = discover.run(config)
    made = {control.name: control.proposed for control in outcome.controls}
    assert all(5 <= count < 8 for count in made.values()), made
    with archives.open_archive(config.run.path / "archive.sqlite") as archive:
        told = archives.events(archive, kind="budget")
    assert {event["data"]["arm"] for event in told} == {"search", "random_mutation"}


def test_best_of_n_is_told_nothing_and_arms_know_nothing_of_each_other(settings, drawn):
    config = settings("search.controls=[random_mutation, best_of_n]")
    discover.run(config)
    with archives.open_archive(config.run.path / "archive.sqlite") as archive:
        attempts = archives.attempts(archive)
    told = [history for history, *_ in drawn]
    assert sum(not history for history in told) >= 4  # all of best_of_n's requests, and no other
    for history in told:
        prefixes = {past.name.split("_")[0] for past in history if past.operator == "fresh"}
        assert prefixes <= {"random"} or prefixes <= {"drawn"}
    places = {attempt.number // 1_000_000 for attempt in attempts}
    assert places == {0, 1, 2} and len({attempt.name for attempt in attempts}) == len(attempts)


def test_the_grid_of_tuned_baselines_surrounds_the_runs_learning_rate():
    tuned = arms.tuned(8, 1e-3)
    assert len(tuned) == 8 == len({contender.name for contender in tuned})
    rates = [contender.learning_rate for contender in tuned]
    assert min(rates) == pytest.approx(2.5e-4) and max(rates) == pytest.approx(4e-3)
    assert arms.tuned(0, 1e-3) == ()


def test_best_of_n_of_a_recording_is_refused(settings, tmp_path):
    config = settings("search.proposer=replay", "search.controls=[best_of_n]", f"proposer.path={tmp_path}")
    with (
        pytest.raises(UserError, match="best_of_n"),
        archives.open_archive(tmp_path / "a.sqlite", "x") as archive,
    ):
        arms.make_arms(config, archive, ("dpo",))


def test_a_budget_of_candidates_ends_the_search_cleanly_and_may_be_raised(settings, drawn):
    config = settings("budget.candidates=4")
    outcome = discover.run(config)
    assert 4 <= outcome.proposed < 8 and outcome.comparisons["dpo"].verdict == "baseline"
    assert outcome.spent is not None and outcome.spent.candidates == outcome.proposed
    path = config.run.path / "archive.sqlite"
    with archives.open_archive(path) as archive:
        assert [event["data"]["reason"] for event in archives.events(archive, kind="budget")] == [
            "the budget of 4 candidates is spent"
        ]
    rows = toy.rows(path)
    again = discover.run(config, resume=True)  # what was spent survives the stop
    assert toy.rows(path) == rows and again.proposed == outcome.proposed
    assert [c.name for c in again.contenders] == [c.name for c in outcome.contenders]
    more = discover.run(dataclasses.replace(config, budget=load(None).budget), resume=True)
    assert more.accepted == 8


@pytest.mark.parametrize(
    ("limit", "spent"), [("dollars=2", Spent(dollars=2.5)), ("minutes=1", Spent(seconds=61.0))]
)
def test_money_and_time_end_it_too(limit, spent, settings, drawn, monkeypatch):
    monkeypatch.setattr(brackets.RunLedger, "spent", lambda self: spent)
    outcome = discover.run(settings(f"budget.{limit}"))
    assert outcome.proposed == 0 and not drawn and {c.name for c in outcome.contenders} >= {"dpo", "slic"}


def test_a_proposer_that_gives_up_leaves_a_run_that_goes_on(settings, drawn, monkeypatch):
    config, calls = settings(), []

    def third(history):
        calls.append(history)
        return len(calls) == 3

    stopped(config, monkeypatch, third)
    path = config.run.path / "archive.sqlite"
    discover.run(config, resume=True)
    whole = settings("run.name=whole")
    discover.run(whole)
    assert toy.rows(path) == toy.rows(whole.run.path / "archive.sqlite")


def test_candidates_are_shared_out_evenly():
    assert sum(shares(load(None, ["search.candidates=10", "search.generations=4"]))) == 10
    assert shares(load(None, ["search.candidates=3", "search.generations=5"])) == [0, 1, 0, 1, 1]
