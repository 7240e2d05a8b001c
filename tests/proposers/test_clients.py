"""What the clients send, through the real SDKs, and how they get on with servers that know less."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from typing import Any

import pytest
from clients import CANARY, KEY_NAMES, KINDS, REQUEST, installed, make
from server import Server

from discojax.errors import UserError
from discojax.proposers import replies
from discojax.proposers.client import ClientError, Reply, Request, Turn, request_hash
from discojax.proposers.connect import connect
from discojax.proposers.dialect import Dialect, Feature
from discojax.proposers.faults import RefusalError
from discojax.proposers.retry import Retrying

WHOLE = dataclasses.replace(
    REQUEST,
    turns=(Turn("user", "Write a loss."), Turn("model", "def"), Turn("user", "That is no loss.")),
    temperature=0.7,
    candidates=3,
    seed=11,
)
needs_gemini = pytest.mark.skipif(not installed("google.genai"), reason="google.genai is not installed")
needs_openai = pytest.mark.skipif(not installed("openai"), reason="openai is not installed")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_NAMES:
        monkeypatch.setenv(name, CANARY)


def config(server: Server) -> dict[str, Any]:
    return server.state.exchanges[-1].body["generationConfig"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_comes_with_all_that_the_archive_needs(kind: str, server: Server) -> None:
    client = make(kind, server.url)
    client.probe()
    assert not server.state.generations  # a probe generates nothing
    reply = client.generate(WHOLE)
    assert reply.model_version == "gemini-flash-latest-001"
    assert len(reply.texts) == 3 and reply.finishes == ("stop",) * 3
    drafts = [replies.read(text) for text in reply.texts]
    assert len({d[0].name for d in drafts if isinstance(d, tuple)}) == 3
    assert Reply.from_json(reply.to_json()) == reply
    assert "gemini-flash-latest-001" in reply.raw
    assert client.generate(WHOLE) == reply  # the same question has the same answer here


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refuses", ["n", "n_silently"])
def test_candidates_come_one_by_one_where_they_must(kind: str, refuses: str, server: Server) -> None:
    server.state.refuses = {refuses}
    client = make(kind, server.url)
    reply = client.generate(WHOLE)
    assert len(reply.texts) == len(reply.finishes) == 3
    assert (reply.tokens_in, reply.tokens_out) == (600, 450)
    before = len(server.state.exchanges)
    client.generate(WHOLE)
    assert len(server.state.exchanges) - before == 3  # it is remembered
    if kind != "gemini-legacy":  # which has no seed; otherwise all three would be alike
        assert len(set(reply.texts)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_paid_for_survive_a_failure_of_the_next(kind: str, server: Server) -> None:
    server.state.refuses = {"n"}
    server.state.script = ["ok", "ok", "unavailable"]
    assert len(make(kind, server.url).generate(WHOLE).texts) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "refuses", ["json_schema", "json_object", "system", "temperature", "seed", "max_tokens"]
)
def test_a_refused_feature_is_asked_for_in_a_plainer_way(kind: str, refuses: str, server: Server) -> None:
    server.state.refuses = {"json_schema", "json_object"} if refuses == "json_object" else {refuses}
    client = make(kind, server.url)
    assert client.generate(WHOLE).finishes == ("stop",) * 3
    before = len(server.state.exchanges)
    assert client.generate(WHOLE).finishes == ("stop",) * 3
    assert len(server.state.exchanges) - before == 1  # it is remembered
    sent = str(server.state.exchanges[-1].body)
    assert WHOLE.system in sent and "That is no loss." in sent


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_client(kind: str, server: Server) -> None:
    server.state.refuses = {"json_schema"}
    server.state.answer = lambda body, number: str(body["contents" if "contents" in body else "messages"][-1])
    client = make(kind, server.url)
    questions = [dataclasses.replace(REQUEST, turns=(Turn("user", f"question {n}."),)) for n in range(24)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.generate, questions))
    assert all(f"question {n}." in reply.texts[0] for n, reply in enumerate(answers))


@pytest.mark.parametrize("kind", KINDS)
def test_seconds_are_seconds(kind: str, server: Server) -> None:
    server.state.script = ["ok:0.5"]  # late, yet in time: milliseconds taken for seconds would not wait
    reply = make(kind, server.url).generate(dataclasses.replace(REQUEST, timeout=41.0))
    assert reply.finishes == ("stop",)
    headers = server.state.exchanges[-1].headers
    seconds = headers.get("x-server-timeout") or headers.get("x-stainless-read-timeout")
    assert kind == "gemini-legacy" or float(seconds or 0) == 41.0


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_guessed_high_where_the_server_does_not_count(kind: str, server: Server) -> None:
    server.state.no_usage = True
    reply = make(kind, server.url).generate(REQUEST)
    assert reply.estimated
    assert reply.tokens_in > len(REQUEST.system) / 4 and reply.tokens_out > len(reply.texts[0]) / 4


@needs_gemini
def test_what_gemini_is_sent(server: Server) -> None:
    make("gemini", server.url, thinking=256).generate(WHOLE)
    exchange = server.state.exchanges[-1]
    assert exchange.path == "/v1beta/models/gemini-flash-latest:generateContent"
    assert exchange.headers["x-goog-api-key"] == CANARY and CANARY not in exchange.path
    assert [turn["role"] for turn in exchange.body["contents"]] == ["user", "model", "user"]
    assert exchange.body["systemInstruction"]["parts"] == [{"text": WHOLE.system}]
    assert list(config(server).pop("thinkingConfig").values()) == [256]
    assert config(server) == {
        "temperature": 0.7,
        "maxOutputTokens": 500,
        "candidateCount": 3,
        "seed": 11,
        "responseMimeType": "application/json",
        "responseJsonSchema": replies.schema(),
    }
    make("gemini", server.url, thinking="low", api_version="v1").generate(REQUEST)
    assert server.state.exchanges[-1].path.startswith("/v1/models/")
    assert [str(v).lower() for v in config(server)["thinkingConfig"].values()] == ["low"]
    server.state.refuses = {"json_schema"}
    make("gemini", server.url).generate(dataclasses.replace(REQUEST, schema=replies.schema(several=True)))
    items = config(server)["responseSchema"]["properties"]["candidates"]["items"]
    assert items["type"] == "OBJECT" and "additionalProperties" not in items


@needs_openai
def test_what_openai_is_sent(server: Server) -> None:
    make("openai", server.url, thinking="low").generate(WHOLE)
    exchange = server.state.exchanges[-1]
    assert exchange.headers["authorization"] == f"Bearer {CANARY}"
    assert [message["role"] for message in exchange.body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert exchange.body["response_format"]["json_schema"]["schema"] == replies.schema()
    assert {k: exchange.body[k] for k in ("n", "seed", "max_tokens", "reasoning_effort", "temperature")} == {
        "n": 3, "seed": 11, "max_tokens": 500, "reasoning_effort": "low", "temperature": 0.7,
    }  # fmt: skip


@needs_openai
def test_a_local_server_needs_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    client = make("openai", server.url, "qwen3:8b")
    client.probe()
    assert client.generate(REQUEST).finishes == ("stop",)
    make("openai", server.url, "qwen3").probe()  # which stands for qwen3:8b there
    official = connect("openai", "gpt-5")
    with pytest.raises(ClientError, match="set the environment variable OPENAI_API_KEY"):
        official.generate(REQUEST)


@needs_openai
def test_thoughts_in_the_answer_are_dropped(server: Server) -> None:
    server.state.answer = lambda body, number: f"<think>def loss(x): no</think>\n{number}: def loss(y): yes"
    assert make("openai", server.url).generate(REQUEST).texts == ("\n0: def loss(y): yes",)


@pytest.mark.parametrize(
    ("kind", "variable"), [("gemini", "GOOGLE_GEMINI_BASE_URL"), ("openai", "OPENAI_BASE_URL")]
)
def test_the_address_may_come_from_the_environment(
    kind: str, variable: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed({"gemini": "google.genai", "openai": "openai"}[kind]):
        pytest.skip(f"the SDK of {kind} is not installed")
    monkeypatch.setenv(variable, server.url if kind == "gemini" else f"{server.url}/v1")
    connect(kind, "gemini-flash-latest").probe()
    assert len(server.state.exchanges) == 1


@needs_gemini
def test_connect_gives_patience_and_names_what_is_wrong(server: Server) -> None:
    client = connect("gemini", "models/gemini-flash-latest", base_url=server.url, thinking=0)
    assert isinstance(client, Retrying) and client.name == "gemini" and client.model == "gemini-flash-latest"
    client.probe()
    with pytest.raises(UserError, match="Did you mean 'gemini'"):
        connect("gemmini", "x")
    with pytest.raises(UserError, match="minimal, low, medium, high"):
        connect("gemini", "x", thinking="much")
    with pytest.raises(UserError, match="levels of thinking"):
        connect("openai", "x", thinking=256)
    with pytest.raises(UserError, match="needs the name of a model"):
        connect("gemini", " ")


def test_a_missing_sdk_names_the_extra() -> None:
    if not installed("google.generativeai"):
        with pytest.raises(UserError, match=r"pip install 'discojax\[gemini-legacy\]'"):
            connect("gemini-legacy", "gemini-flash-latest")
    if not installed("google.genai"):
        with pytest.raises(UserError, match=r"pip install 'discojax\[gemini\]'"):
            connect("gemini", "gemini-flash-latest")


class _Named:
    name, model = "gemini", "m"

    def __init__(self, **options: Any):
        self.options = options


def test_the_hash_is_over_all_that_decides_an_answer() -> None:
    base = request_hash(_Named(thinking=None), WHOLE)
    assert base == request_hash(_Named(thinking=None), dataclasses.replace(WHOLE, timeout=1.0))
    changed: list[dict[str, Any]] = [
        {"system": "x"}, {"turns": WHOLE.turns[:1]}, {"temperature": None}, {"max_output_tokens": 501},
        {"candidates": 1}, {"seed": None}, {"schema": None},
    ]  # fmt: skip
    hashes = {request_hash(_Named(thinking=None), dataclasses.replace(WHOLE, **c)) for c in changed}
    hashes |= {base, request_hash(_Named(thinking=0), WHOLE)}
    assert len(hashes) == len(changed) + 2
    # Written down, because a cache outlives the program that made it.
    plain = Request("s", (Turn("user", "t"),))
    assert request_hash(_Named(), plain).startswith("63fcd3b6e937897f")


def test_a_request_refused_in_every_way_teaches_nothing() -> None:
    dialect = Dialect({"schema": Feature(("best", "plain"), ("schema",), suspected=True)}, "x")
    asked = []

    def send(ways: dict[str, str]) -> None:
        asked.append(ways["schema"])
        raise RefusalError("too long", "too long", 400)

    with pytest.raises(RefusalError):
        dialect.attempt({"schema"}, send)
    assert asked == ["best", "plain"] and dialect.ways == {"schema": "best"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"texts": 1}', '{"texts": ["a"], "finishes": ["x"]}'])
def test_what_is_no_reply_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValueError):
        Reply.from_json(text)
