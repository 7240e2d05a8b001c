"""A language model proposes, over real HTTP through the real SDKs: replies good and bad, repairs, budgets."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from bodies import losses
from clients import CANARY, KEY_NAMES, KINDS

from discojax import objectives
from discojax.candidates import check, parse
from discojax.config import Config, load
from discojax.errors import UserError
from discojax.proposers import LanguageModel, Proposal, Scored, bandit, faults, make_proposer, prompt
from discojax.proposers.budget import Spent
from discojax.proposers.types import Exchange, Sent

HEAD = (
    "def loss(policy_chosen_logps, policy_rejected_logps,"
    " reference_chosen_logps, reference_rejected_logps, beta):\n"
    "    margin = (policy_chosen_logps - policy_rejected_logps)"
    " - (reference_chosen_logps - reference_rejected_logps)\n"
)
GOOD = HEAD + "    return jax.nn.softplus({} - beta * margin)\n"
NAN = HEAD + "    return jnp.log(beta * margin)\n"
LOOP = HEAD + "    for i in range(3):\n        margin = margin * 2\n    return -margin\n"


class Memory:
    """A ledger that forgets at the end of a test."""

    def __init__(self) -> None:
        self.kept: dict[str, Exchange] = {}
        self.under_way: dict[str, Sent] = {}
        self.lost: list[tuple[Sent, str]] = []

    def get(self, request: str) -> Exchange | None:
        return self.kept.get(request)

    def put(self, request: str, exchange: Exchange) -> None:
        self.kept.setdefault(request, exchange)
        del self.under_way[request]

    def send(self, request: str, sent: Sent) -> None:
        assert request not in self.under_way
        self.under_way[request] = sent

    def unanswered(self, request: str, reason: str) -> None:
        sent = self.under_way.pop(request)
        if reason:
            self.lost.append((sent, reason))

    def spent(self) -> Spent:
        made, lost = self.kept.values(), [sent for sent, _ in self.lost]
        return Spent(
            dollars=sum(e.cost or 0.0 for e in (*made, *lost)),
            unpriced=sum(e.cost is None for e in (*made, *lost)),
            tokens_in=sum(e.tokens_in for e in (*(e.reply for e in made), *lost)),
            tokens_out=sum(e.tokens_out for e in (*(e.reply for e in made), *lost)),
            requests=len(made),
            unanswered=len(lost),
            unanswered_dollars=sum(e.cost or 0.0 for e in lost),
        )


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in KEY_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def config(kind: str, url: str, *overrides: str) -> Config:
    given = (
        f"search.proposer={kind}",
        f"proposer.base_url={url}{'/v1' if kind == 'openai' else ''}",
        "proposer.models=[gemini-flash-latest]",
        "proposer.attempts=2",
    )
    return load("quickstart", (*given, *overrides))


def asked(server, kind: str = "gemini", *overrides: str, ledger: Memory | None = None) -> LanguageModel:
    made = make_proposer(config(kind, server.url, *overrides), ("dpo",), ledger=ledger or Memory())
    assert isinstance(made, LanguageModel)
    return made


def past(*more: Scored) -> list[Scored]:
    scored = [
        Scored(
            n,
            objectives.get(n).source,
            "ok",
            0.01 * i,
            (0.01 * i - 0.02, 0.01 * i + 0.02),
            operator="library",
        )
        for i, n in enumerate(("dpo", "ipo", "exp", "slic"))
    ]
    return [*scored, *more]


def replies(*texts: str | list[dict[str, Any]]):
    """What the server answers, one after another; the last for ever."""
    left = list(texts)

    def answer(body: dict[str, Any], number: int) -> str:
        text = left.pop(0) if len(left) > 1 else left[0]
        return text if isinstance(text, str) else json.dumps({"candidates": text})

    return answer


def draft(name: str, code: str, thought: str = "because") -> dict[str, str]:
    return {"thought": thought, "name": name, "code": code}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_writes_is_proposed_with_where_it_comes_from(server, kind):
    ledger = Memory()
    model = asked(server, kind, "proposer.candidates=3", ledger=ledger)
    made = model.propose(past(), 5, seed=1)
    assert len(made) == 5 == len({p.name for p in made}) and model.name == kind
    assert all(check(p.source).accepted for p in made)
    assert {p.operator for p in made} <= set(prompt.OPERATORS)
    assert all(p.model == "gemini-flash-latest" and p.prompt_hash == prompt.version() for p in made)
    assert all(p.thought and p.raw_reply and p.model_version and p.request in ledger.kept for p in made)
    # Two requests; what they cost stands with the first proposal of each.
    assert [bool(p.tokens_in) for p in made] == [True, False, False, True, False]
    spent = ledger.spent()
    assert sum(p.tokens_in or 0 for p in made) == spent.tokens_in > 0
    assert sum(p.tokens_out or 0 for p in made) == spent.tokens_out > 0
    assert sum(p.cost or 0 for p in made) == pytest.approx(spent.dollars) and spent.dollars > 0
    assert CANARY not in repr(ledger.kept) + repr(made)


def test_several_requests_are_under_way_and_the_order_of_answers_changes_nothing(server):
    together = threading.Barrier(3)

    def at_once(body: dict[str, Any], number: int) -> str:
        if len(body["contents"]) == 1:  # no repair
            together.wait(timeout=100)  # for the others: one after the other they would never come
        return losses(body, number)

    server.state.answer = at_once
    ledger = Memory()
    several = ("proposer.candidates=2", "proposer.concurrency=3")
    made = asked(server, "gemini", *several, ledger=ledger).propose(past(), 6, seed=1)
    assert len(made) == 6 == len({p.name for p in made}) and len({p.request for p in made}) == 3
    sent = len(server.state.generations)

    server.state.answer = lambda body, number: time.sleep(0.1 * random.random()) or losses(body, number)
    for _ in range(2):
        again = asked(server, "gemini", *several).propose(past(), 6, seed=1)
        assert again == made
    server.state.exchanges.clear()
    assert asked(server, "gemini", *several, ledger=ledger).propose(past(), 6, seed=1) == made
    assert not server.state.generations and sent >= 3, "what the ledger has is not asked again"

    # Together they stay within what is left, each counting what the others may cost.
    limits = ("budget.tokens=20000", "proposer.output_tokens=4096", "proposer.candidates=1")
    model = asked(server, "gemini", *limits, "proposer.concurrency=4")
    model.propose(past(), 500, seed=1)
    assert 0 < model.purse.ledger.spent().tokens <= 20_000 and "budget" in model.why


def test_the_server_is_sent_the_prompt_and_a_schema(server):
    asked(server).propose(past(), 2, seed=1)
    (exchange,) = server.state.generations
    whole = json.dumps(exchange.body)
    assert "jax.nn.softplus" in whole and "# Your task" in whole and "slic: score" in whole
    assert "responseJsonSchema" in whole and CANARY not in whole


def test_what_was_paid_for_is_not_asked_again_and_gives_the_same(server):
    ledger = Memory()
    first = asked(server, ledger=ledger).propose(past(), 6, seed=3)
    count = len(server.state.generations)
    again = asked(server, ledger=ledger)  # another process
    assert again.propose(past(), 6, seed=3) == first
    assert len(server.state.generations) == count
    assert again.propose(past(), 6, seed=4) != first and len(server.state.generations) > count


def test_a_run_killed_between_two_requests_pays_for_the_second_alone(server):
    ledger = Memory()
    whole = asked(server, "gemini", "proposer.candidates=2", ledger=ledger).propose(past(), 4, seed=3)
    assert len(ledger.kept) == 2
    ledger.kept.pop(list(ledger.kept)[1])
    count = len(server.state.generations)
    again = asked(server, "gemini", "proposer.candidates=2", ledger=ledger).propose(past(), 4, seed=3)
    assert len(server.state.generations) == count + 1 and [p.name for p in again[:2]] == [
        p.name for p in whole[:2]
    ]


def test_what_the_gate_refuses_is_repaired_once_with_its_reason(server):
    mended = GOOD.format(0.7)
    server.state.answer = replies(
        [draft("sound", GOOD.format(0.5)), draft("looped", LOOP), draft("nan", NAN)],
        [draft("looped", mended, "no loop"), draft("nan_again", NAN.replace("log(", "sqrt("))],
    )
    ledger = Memory()
    made = asked(server, ledger=ledger).propose(past(), 3, seed=1)
    operator = bandit.operator_of(made[0].operator)
    assert [p.name for p in made] == ["sound", "looped", "nan"]
    assert [p.operator for p in made] == [operator, operator + "+repair", operator + "+repair"]
    assert made[1].source == mended and made[1].thought == "no loop" and "sqrt(" in made[2].source
    assert not check(made[2].source).accepted  # handed over, for the search to note why
    assert [e.purpose for e in ledger.kept.values()] == ["propose", "repair"]
    _, second = server.state.generations
    told = json.dumps(second.body)
    assert (
        "looped: refused: syntax" in told and "nan: refused: numbers" in told and "sound: refused" not in told
    )
    assert made[0].tokens_in == sum(e.reply.tokens_in for e in ledger.kept.values())


def test_a_repair_that_names_one_of_two_mends_that_one(server):
    server.state.answer = replies(
        [draft("looped", LOOP), draft("nan", NAN)], [draft("nan", GOOD.format(0.9))]
    )
    made = asked(server).propose(past(), 2, seed=1)
    assert made[0].source == LOOP and made[1].source == GOOD.format(0.9)


def test_a_repair_that_fails_leaves_what_was_written(server):
    server.state.answer = replies([draft("looped", LOOP)])
    server.state.script = ["ok", "safety"]
    (made,) = asked(server).propose(past(), 1, seed=1)
    assert made.source == LOOP and not made.operator.endswith("+repair")


def test_an_answer_without_a_candidate_is_asked_for_once_more(server):
    server.state.answer = replies("I would rather not.", [draft("late", GOOD.format(0.4))])
    (made,) = asked(server).propose(past(), 1, seed=1)
    assert made.name == "late" and made.operator.endswith("+repair")
    server.state.answer = replies("I would rather not.")
    ledger = Memory()
    (made,) = asked(server, ledger=ledger).propose(past(), 1, seed=1)
    assert made.unanswered and not made.source and made.raw_reply == "I would rather not."
    assert [e.purpose for e in ledger.kept.values()] == ["propose", "repair"]  # once, and no more
    assert made.tokens_in and made.cost


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_that_took_all_tokens_is_given_twice_as_many_once(server, kind):
    server.state.script = ["thinking_only", "ok"]
    ledger = Memory()
    made = asked(server, kind, "proposer.output_tokens=1000", ledger=ledger).propose(past(), 1, seed=1)
    assert made[0].source and [e.purpose for e in ledger.kept.values()] == ["propose", "more_tokens"]
    assert [e.request.max_output_tokens for e in ledger.kept.values()] == [1000, 2000]
    server.state.script = ["thinking_only", "thinking_only", "thinking_only"]
    (none,) = asked(server, kind).propose(past(), 1, seed=1)
    assert none.unanswered and len(server.state.script) == 1


@pytest.mark.parametrize("fault", ["safety", "empty_parts", "no_candidates", "blocked"])
def test_an_empty_answer_is_a_proposal_that_says_why(server, fault):
    server.state.script = [fault]
    made = asked(server, "gemini", "proposer.candidates=1").propose(past(), 2, seed=1)
    assert made[0].unanswered and made[0].name.startswith("unanswered_") and made[0].tokens_in is not None
    assert made[1].source and not made[1].unanswered


def test_a_server_that_fails_is_a_proposal_too_until_it_fails_too_often(server):
    server.state.then = "error_500"
    model = asked(server, "gemini", "proposer.attempts=1", "proposer.failures=3")
    ledger = model.purse.ledger
    made = [model.propose(past(), 1, seed)[0] for seed in range(2)]
    assert all(p.unanswered and p.tokens_in is None and p.cost is None for p in made)
    with pytest.raises(UserError, match="resume"):
        model.propose(past(), 1, 9)
    assert not ledger.kept  # nothing was answered, so nothing is kept from being asked again


def test_answers_that_are_no_use_stop_the_run_as_well(server):
    server.state.then = "safety"
    model = asked(server, "gemini", "proposer.failures=3")
    with pytest.raises(UserError, match="3 requests in a row"):
        model.propose(past(), 9, 0)
    assert len(model.purse.ledger.kept) == 3


@pytest.mark.parametrize(("fault", "words"), [("expired_key", "key"), ("forbidden", "denied|permission|403")])
def test_what_no_request_can_mend_ends_at_once(server, fault, words):
    model = asked(server)
    server.state.then = fault
    with pytest.raises(UserError, match=f"(?i){words}"):
        model.propose(past(), 1, 0)
    assert len(server.state.generations) == 1


def test_a_model_that_does_not_exist_is_told_before_the_run(server):
    with pytest.raises(UserError, match=r"gemini-flash-latest"):
        asked(server, "gemini", "proposer.models=[gemini-flash-lates]")
    assert not server.state.generations


def test_names_are_new_and_identifiers(server):
    server.state.answer = replies(
        [
            draft("dpo", GOOD.format(0.1)),
            draft("dpo", GOOD.format(0.2)),
            draft("The <b>Best</b>", GOOD.format(0.3)),
        ]
    )
    made = asked(server).propose(past(), 3, seed=1)
    assert [p.name for p in made] == ["dpo_2", "dpo_3", "the_b_best_b"]


def test_more_than_was_asked_for_is_left_out(server):
    server.state.answer = replies([draft(f"n{i}", GOOD.format(0.1 + i)) for i in range(9)])
    assert [p.name for p in asked(server).propose(past(), 2, seed=1)] == ["n0", "n1"]


def test_the_second_request_of_a_call_knows_the_first_ones_answer(server):
    asked(server, "gemini", "proposer.candidates=2").propose(past(), 4, seed=1)
    first, second = (json.dumps(e.body) for e in server.state.generations)
    assert "Being trained now" in second and "Being trained now" not in first


def test_without_history_a_request_shows_nothing_of_it_and_still_differs(server):
    model = asked(server, "gemini", "proposer.history=false")
    one = model.propose(past(), 2, seed=1)
    other = model.propose(past(), 2, seed=2)
    assert all("score" not in e.body["contents"][0]["parts"][0]["text"] for e in server.state.generations)
    assert [p.source for p in one] != [p.source for p in other]
    assert {p.operator for p in one} == {"fresh"} and one[0].request != other[0].request


def test_a_budget_is_never_overspent(server):
    model = asked(
        server, "gemini", "budget.tokens=20000", "proposer.output_tokens=4096", "proposer.candidates=1"
    )
    made = model.propose(past(), 500, seed=1)
    assert 1 < len(made) < 500 and model.purse.ledger.spent().tokens <= 20_000
    assert "budget does not cover" in model.why


def test_dollars_bound_a_run_whose_prices_are_known(server):
    price = "proposer.price=[10, 100]"
    model = asked(server, "gemini", "budget.dollars=1.08", price, "proposer.output_tokens=10000")
    made = model.propose(past(), 50, seed=1)
    spent = model.purse.ledger.spent()
    assert made and 0 < spent.dollars <= 1.08 and spent.unpriced == 0
    assert made[0].cost == pytest.approx((made[0].tokens_in * 10 + made[0].tokens_out * 100) / 1e6)


def test_tokens_that_the_server_had_kept_cost_what_they_cost(server):
    cached = asked(server, "gemini", "proposer.price=[10, 100, 1]")
    again = cached.propose(past(), 1, seed=1)[0]
    kept = sum(exchange.reply.tokens_cached for exchange in cached.purse.ledger.kept.values())
    assert kept == 120 * len(cached.purse.ledger.kept)
    assert again.cost == pytest.approx((again.tokens_in * 10 + again.tokens_out * 100 - 9 * kept) / 1e6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["slow", "cut", "closed", "invalid_json"])
def test_what_is_sent_and_not_answered_may_have_been_paid_for(server, kind, fault):
    server.state.script = [fault, fault]
    price = ("proposer.price=[1, 10]", "proposer.timeout=0.5", "proposer.output_tokens=1000")
    model = asked(server, kind, *price, "budget.dollars=1")
    (made,) = model.propose(past(), 1, seed=1)
    ledger = model.purse.ledger
    (one, why), (other, _) = ledger.lost
    assert one == other and one.tokens_out == 1000 and one.cost == pytest.approx(one.tokens_in / 1e6 + 0.01)
    assert made.unanswered and why and not ledger.under_way and not ledger.kept
    assert len(server.state.generations) == 2 == ledger.spent().unanswered
    assert ledger.spent().dollars == pytest.approx(2 * one.cost)

    # A third does not fit any more, though the answer to it would have cost less; nor does another attempt.
    server.state.script = [fault]
    rest = asked(server, kind, *price, f"budget.dollars={1.5 * one.cost}")
    assert rest.propose(past(), 1, seed=1) == [] and "does not cover" in rest.why
    assert len(server.state.generations) == 3 and rest.purse.ledger.spent().unanswered == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_server_did_not_take_costs_nothing(server, kind):
    server.state.script = ["error_500", "unavailable"]
    model = asked(server, kind)
    assert model.propose(past(), 1, seed=1)[0].unanswered
    assert model.purse.ledger.spent() == Spent() and not model.purse.ledger.under_way


def test_what_never_left_is_told_from_what_may_have_arrived():
    httpx = pytest.importorskip("httpx")
    for error in (httpx.ConnectError("refused"), httpx.ConnectTimeout("late"), httpx.PoolTimeout("busy")):
        wrapped = RuntimeError("Connection error.")
        wrapped.__cause__ = error
        assert not faults.reached(error) and not faults.reached(wrapped)
    assert faults.reached(httpx.ReadTimeout("late")) and faults.reached(httpx.RemoteProtocolError("cut"))


def test_an_unknown_price_is_said_to_be_unknown(server):
    with pytest.raises(UserError, match=r"proposer\.price"):
        asked(server, "gemini", "proposer.models=['qwen3:8b']", "budget.dollars=1")
    model = asked(
        server, "gemini", "proposer.models=['qwen3:8b']", "budget.dollars=1", "budget.tokens=100000"
    )
    made = model.propose(past(), 2, seed=1)
    assert made[0].cost is None and made[0].tokens_in and model.purse.ledger.spent().cost == "unknown"


def test_models_share_the_requests_by_what_they_gain(server):
    names = ["gemini-flash-latest", "gemini-pro-latest"]
    model = asked(server, "gemini", f"proposer.models={names}", "proposer.candidates=1")
    best = [Scored(f"a{i}", "", "ok", 0.1 * i, operator="fresh", model=names[1]) for i in range(1, 20)]
    worst = [
        Scored(f"b{i}", "", "rejected", reason="no", operator="fresh", model=names[0]) for i in range(20)
    ]
    made = [model.propose(past(*best, *worst), 1, seed)[0].model for seed in range(12)]
    assert made.count(names[1]) >= 10
    unknown = [model.propose(past(), 1, seed)[0].model for seed in range(12)]
    assert 2 < unknown.count(names[0]) < 10


def test_parents_are_in_the_history_and_fit_their_operator(server):
    failed = Scored("nan_loss", NAN, "rejected", reason="numbers, line 3: jnp.log gives nan at margin 0")
    model = asked(server, "gemini", "proposer.candidates=1")
    seen: dict[str, Proposal] = {}
    for seed in range(60):
        (made,) = model.propose(past(failed), 1, seed)
        seen[made.operator] = made
        if len(seen) == len(prompt.OPERATORS):
            break
    assert set(seen) == set(prompt.OPERATORS)
    names = {p.name for p in past(failed)}
    for operator, made in seen.items():
        assert len(set(made.parents)) == {"fresh": 0, "crossover": 2}.get(operator, 1)
        assert set(made.parents) <= names
    assert seen["fix"].parents == ("nan_loss",)
    assert all("nan_loss" not in p.parents for operator, p in seen.items() if operator != "fix")


def test_hostile_replies_do_no_harm(server):
    hostile = "import os\nos.system('touch /tmp/discojax_was_here')\n" + GOOD.format(0.5)
    long = HEAD + "    return " + "+".join(["margin"] * 3_000) + "\n"
    server.state.answer = replies(
        [
            draft("../../etc", hostile, "x" * 10_000 + CANARY),
            draft("long", long),
            draft("\x00\u202e", GOOD.format(0.6)),
        ]
    )
    made = asked(server).propose(past(), 3, seed=1)
    assert all(p.name.isidentifier() and len(p.thought) <= 400 for p in made)
    accepted = [p for p in made if check(p.source).accepted]
    assert [parse(p.source).name for p in accepted] == ["loss"]
    # and none of it is in the next prompt
    seen = [Scored(p.name, p.source, "ok", 0.5, reason=p.thought) for p in made]
    assert "xxxx" not in prompt.build(past(*seen), "fresh", [], 1, tokens=12_000).user


def test_the_default_model_is_an_alias_and_openai_has_none(server):
    settings = config("gemini", server.url)
    made = make_proposer(
        replace(settings, proposer=replace(settings.proposer, models=())), ("dpo",), ledger=Memory()
    )
    assert made.clients[0].model == "gemini-flash-latest"
    with pytest.raises(UserError, match=r"proposer\.models"):
        make_proposer(config("openai", server.url, "proposer.models=[]"), ("dpo",), ledger=Memory())
