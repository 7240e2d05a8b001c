"""Every fault that a server can be scripted to have, met through the real SDKs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from clients import CANARY, KEY_NAMES, KINDS, REQUEST, installed, make
from hypothesis import given, settings
from hypothesis import strategies as st
from server import FAULTS, Server

from discojax.proposers import faults, replies
from discojax.proposers.client import ClientError
from discojax.proposers.gemini import read_reply
from discojax.proposers.openai import _read
from discojax.proposers.sdk import SdkClient

ERRORS = {
    "rate_limited:17": ("rate_limited", 17.0, "too many requests"),
    "retry_after:23": ("rate_limited", 23.0, "too many requests"),
    "quota": ("quota", None, "quota is used up"),
    "error_500": ("transient", None, "internal error"),
    "unavailable": ("transient", None, "overloaded"),
    "bad_gateway": ("transient", None, "502 Bad Gateway"),
    "slow:30": ("transient", None, "did not answer within 0.3 s"),
    "cut": ("transient", None, "connection"),
    "closed": ("transient", None, "connection"),
    "invalid_json": ("transient", None, "JSON"),
    "not_an_object": ("transient", None, "JSON"),
    "expired_key": ("fatal", None, "expired"),
    "wrong_key": ("fatal", None, "missing, wrong or expired"),
    "forbidden": ("fatal", None, "denied access"),
    "no_model": ("fatal", None, "404"),
    "too_long": ("refused", None, "token count exceeds"),
    "echo_key": ("transient", None, "Panic"),
}
TEXTS = {
    "ok": ("stop", None),
    "prose": ("stop", None),
    "huge": ("stop", "repair"),
    "wrong_schema": ("stop", "repair"),
    "no_candidates": ("empty", "ask_again"),
    "empty_parts": ("empty", "ask_again"),
    "thinking_only": ("length", "more_tokens"),
    "max_tokens": ("length", "more_tokens"),
    "safety": ("safety", "ask_again"),
    "blocked": ("safety", "ask_again"),
    "recitation": ("recitation", "ask_again"),
}


def test_every_fault_of_the_server_has_a_test() -> None:
    met = {name.partition(":")[0] for name in [*ERRORS, *TEXTS]}
    assert met | {"drip"} == set(FAULTS)


V1 = pytest.param(
    "gemini/v1", marks=pytest.mark.skipif(not installed("google.genai"), reason="google.genai is missing")
)


@pytest.fixture(scope="module", params=[*KINDS, V1])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Server, SdkClient]]:
    kind, _, version = request.param.partition("/")
    with Server(thoughts=kind == "gemini") as server:
        yield server, make(kind, server.url, **({"api_version": version} if version else {}))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_NAMES:
        monkeypatch.setenv(name, CANARY)


@pytest.mark.parametrize("fault", ERRORS)
def test_a_failure_says_what_it_is_and_whether_to_wait(pair: tuple[Server, SdkClient], fault: str) -> None:
    server, client = pair
    kind, retry_after, words = ERRORS[fault]
    server.state.then = fault
    request = dataclasses.replace(REQUEST, timeout=0.3) if fault.startswith("slow") else REQUEST
    before = len(server.state.generations)
    with pytest.raises(ClientError) as caught:
        client.generate(request)
    assert caught.value.kind == kind
    assert caught.value.retry_after == retry_after
    assert words in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None and caught.value.__cause__ is None  # the SDK's may hold the key
    # No SDK tries again by itself; only what may be a refused feature is asked in plainer ways.
    sent = len(server.state.generations) - before
    assert sent == 1 if kind != "refused" else sent > 1


@pytest.mark.parametrize("fault", TEXTS)
def test_an_answer_says_why_it_ends_and_what_to_do(pair: tuple[Server, SdkClient], fault: str) -> None:
    server, client = pair
    finish, remedy = TEXTS[fault]
    server.state.then = fault
    reply = client.generate(REQUEST)
    if client.name == "gemini":
        assert server.state.generations[-1].path.startswith(f"/{client.api_version}/models/")
    if client.name == "openai" and finish == "recitation":
        finish = "safety"  # OpenAI's API has one word for both
    assert reply.finishes == (finish,)
    read = replies.read(reply.texts[0], reply.finishes[0], reply.detail)
    assert (read.remedy if isinstance(read, replies.Untidy) else None) == remedy
    assert len(reply.texts[0]) < 300_000 and len(reply.raw) < 3_000_000
    assert "Let me think" not in reply.texts[0]
    assert CANARY not in reply.to_json()


def test_what_thinking_took_and_what_was_kept_is_told(pair: tuple[Server, SdkClient]) -> None:
    server, client = pair
    server.state.then = "thinking_only"
    reply = client.generate(REQUEST)
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_thinking) == (200, 500, 500)
    server.state.then = "ok"
    reply = client.generate(REQUEST)
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_thinking) == (200, 150, 100)
    assert reply.tokens_cached == 120 and not reply.estimated


def test_a_server_that_drips_is_left_in_time(pair: tuple[Server, SdkClient]) -> None:
    server, client = pair
    server.state.script = ["drip:60"]
    server.state.then = "ok"
    with pytest.raises(ClientError, match=r"did not answer within 0\.2 s") as caught:
        client.generate(dataclasses.replace(REQUEST, timeout=0.2))
    assert caught.value.kind == "transient"
    assert client.generate(REQUEST).finishes == ("stop",)  # while the other one still drips


def test_a_server_that_is_not_there_is_named(pair: tuple[Server, SdkClient]) -> None:
    client = make(pair[1].name, "http://127.0.0.1:9")
    for call in (client.probe, lambda: client.generate(REQUEST)):
        with pytest.raises(ClientError, match=r"http://127\.0\.0\.1:9.*server\s+running") as caught:
            call()
        assert caught.value.kind == "transient"


def test_a_retired_model_is_explained_by_the_nearest_there_are(pair: tuple[Server, SdkClient]) -> None:
    server, client = pair
    server.state.then = "ok"
    retired = make(client.name, server.url, "gemini-2.0-flash")
    for call in (retired.probe, lambda: retired.generate(REQUEST)):
        with pytest.raises(ClientError, match=r"no model 'gemini-2\.0-flash'.*gemini-3\.7-flash") as caught:
            call()
        assert caught.value.final


def test_a_key_that_is_not_good_is_found_by_the_probe(
    pair: tuple[Server, SdkClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = pair
    monkeypatch.setattr(server.state, "key", "another")
    with pytest.raises(ClientError, match=r"the key in \w+_API_KEY.* is missing, wrong or expired") as caught:
        client.probe()
    assert caught.value.final and CANARY not in str(caught.value)
    monkeypatch.setattr(server.state, "key", CANARY)
    client.probe()


@pytest.mark.skipif(not installed("google.genai"), reason="google.genai is not installed")
def test_a_missing_key_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make("gemini", server.url, key_variable="MY_KEY_FOR_GEMINI")
    with pytest.raises(ClientError, match="set the environment variable MY_KEY_FOR_GEMINI") as caught:
        client.probe()
    assert caught.value.final
    monkeypatch.setenv("MY_KEY_FOR_GEMINI", "two words")
    with pytest.raises(ClientError, match="spaces"):
        client.probe()
    monkeypatch.setenv("MY_KEY_FOR_GEMINI", "abcdefgh")  # read when it is used: no new client is needed
    client.probe()
    assert server.state.exchanges[-1].headers["x-goog-api-key"] == "abcdefgh"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({}, None),
    ],
)
def test_the_pause_a_header_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert faults.explain("x", ("K",), 429, {}, headers).retry_after == seconds


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 451])
def test_what_cannot_succeed_is_never_sent_again(status: int) -> None:
    assert faults.explain("x", ("K",), status, {}, {}).kind in ("fatal", "refused")


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 529])
def test_what_may_succeed_later_is_transient(status: int) -> None:
    error = faults.explain("x", ("K",), status, "", {"Retry-After": "3"})
    assert (error.kind, error.retry_after) == ("transient", 3.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = (
    "candidates content parts text finishReason promptFeedback blockReason usageMetadata promptTokenCount "
    "choices message finish_reason usage prompt_tokens completion_tokens_details reasoning_tokens refusal "
    "error details message code violations retryDelay @type param"
)
ODD = st.recursive(
    JSON,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS.split()), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=150)
@given(body=ODD, status=st.sampled_from([400, 401, 404, 418, 429, 500]))
def test_no_body_of_a_server_is_too_odd(body: object, status: int) -> None:
    assert str(faults.explain("x", ("K",), status, body, {}))
    payload = body if isinstance(body, dict) else {"candidates": [body], "choices": [body], "usage": body}
    for read in (read_reply, _read):
        reply = read(payload, REQUEST)
        assert len(reply.texts) == len(reply.finishes) >= 1
        assert reply.tokens_in >= 0 and reply.tokens_out >= 0
