"""Patience, with scripted failures and no clock but an injected one."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from clients import CANARY, KEY_NAMES, KINDS, REQUEST, make
from hypothesis import given
from hypothesis import strategies as st
from server import Server

from discojax.proposers.client import ClientError, Kind, Reply, Request
from discojax.proposers.retry import Patience, Retrying, within

REPLY = Reply(("x",), ("stop",))


class Scripted:
    """A client that fails as it is told; then it answers."""

    name, model = "scripted", "m"
    options: Mapping[str, Any] = {}

    def __init__(self, *failures: ClientError | None):
        self.failures = list(failures)
        self.asked = 0

    def generate(self, request: Request) -> Reply:
        self.asked += 1
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return REPLY

    def probe(self) -> None:
        self.generate(REQUEST)


def failure(kind: Kind, retry_after: float | None = None) -> ClientError:
    return ClientError(f"it is {kind}", kind, retry_after=retry_after)


def patient(client: Scripted, **patience: Any) -> tuple[Retrying, list[float]]:
    pauses: list[float] = []
    return Retrying(client, Patience(**patience), sleep=pauses.append, rng=random.Random(0)), pauses


def test_what_may_pass_is_sent_again() -> None:
    client = Scripted(failure("transient"), failure("rate_limited"), failure("transient"))
    retrying, pauses = patient(client)
    assert retrying.generate(REQUEST) is REPLY
    assert client.asked == 4 and len(pauses) == 3


@pytest.mark.parametrize("kind", ["fatal", "refused", "quota"])
def test_what_cannot_succeed_is_sent_once(kind: Kind) -> None:
    client = Scripted(failure(kind))
    retrying, pauses = patient(client)
    with pytest.raises(ClientError, match=kind):
        retrying.generate(REQUEST)
    assert client.asked == 1 and pauses == []


@pytest.mark.parametrize(("kind", "sent"), [("quota", 2), ("fatal", 2), ("refused", 4)])
def test_after_what_ends_all_asking_nothing_more_is_sent(kind: Kind, sent: int) -> None:
    client = Scripted(None, *[failure(kind)] * 3)
    retrying, _ = patient(client)
    retrying.generate(REQUEST)
    for _ in range(3):
        with pytest.raises(ClientError, match=f"it is {kind}") as caught:
            retrying.generate(REQUEST)
        assert caught.value.kind == kind
    assert client.asked == sent


def test_attempts_have_an_end() -> None:
    client = Scripted(*[failure("transient")] * 10)
    retrying, pauses = patient(client, attempts=4)
    with pytest.raises(ClientError, match="it is transient"):
        retrying.generate(REQUEST)
    assert client.asked == 4 and len(pauses) == 3


def test_the_pause_a_server_asks_for_is_the_least() -> None:
    retrying, pauses = patient(Scripted(failure("rate_limited", 17.0)))
    retrying.generate(REQUEST)
    assert 17.0 <= pauses[0] <= 18.0


def test_a_pause_beyond_patience_is_not_made() -> None:
    client = Scripted(failure("rate_limited", 40_000.0))
    retrying, pauses = patient(client)
    with pytest.raises(ClientError):
        retrying.generate(REQUEST)
    assert client.asked == 1 and pauses == []


@given(attempt=st.integers(0, 2000), asked=st.none() | st.floats(0, 300), seed=st.integers())
def test_pauses_are_jittered_over_the_full_range(attempt: int, asked: float | None, seed: int) -> None:
    patience = Patience(first=0.5, longest=30.0)
    pause = patience.pause(attempt, asked, random.Random(seed))
    if asked is None:
        assert 0.0 <= pause <= min(30.0, 0.5 * 2.0 ** min(attempt, 10))
    else:
        assert asked <= pause <= asked + 0.5


def test_pauses_grow_on_average() -> None:
    patience, rng = Patience(), random.Random(0)
    means = [sum(patience.pause(attempt, None, rng) for _ in range(500)) / 500 for attempt in range(6)]
    assert all(1.5 * before < after for before, after in itertools.pairwise(means))


def test_failure_after_failure_ends_the_asking() -> None:
    client = Scripted(*[failure("refused")] * 3)
    retrying, _ = patient(client, give_up_after=3)
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            retrying.generate(REQUEST)
        assert not caught.value.final
    for _ in range(2):  # the third, and then without asking
        with pytest.raises(ClientError, match=r"3 requests.*it is refused.*--resume") as caught:
            retrying.generate(REQUEST)
        assert caught.value.kind == "stopped" and caught.value.final
    assert client.asked == 3


def test_one_success_starts_the_count_anew() -> None:
    client = Scripted(failure("refused"), None, failure("refused"), failure("refused"))
    retrying, _ = patient(client, give_up_after=2)
    kinds = []
    for _ in range(4):
        try:
            retrying.generate(REQUEST)
            kinds.append("ok")
        except ClientError as error:
            kinds.append(error.kind)
    assert kinds == ["refused", "ok", "refused", "stopped"]


def test_a_probe_is_not_patient_for_long() -> None:
    client = Scripted(*[failure("transient")] * 10)
    retrying, _ = patient(client)
    with pytest.raises(ClientError):
        retrying.probe()
    assert client.asked == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_storm_is_weathered_over_http(kind: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_NAMES:
        monkeypatch.setenv(name, CANARY)
    server.state.script = ["rate_limited:0.01", "unavailable", "cut", "closed", "invalid_json", "ok"]
    pauses: list[float] = []
    retrying = Retrying(make(kind, server.url), sleep=pauses.append)
    assert retrying.generate(REQUEST).finishes == ("stop",)
    assert len(server.state.generations) == 6 and len(pauses) == 5
    assert pauses[0] >= 0.01


def test_a_stop_ends_the_pause_and_the_attempts() -> None:
    client = Scripted(*[failure("rate_limited", 250.0)] * 3)
    retrying = Retrying(client)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            retrying.generate(REQUEST)
        except ClientError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    retrying.stop()
    thread.join(60.0)  # otherwise it would be minutes
    assert not thread.is_alive() and len(caught) == 1
    assert client.asked <= 1  # none, if it was stopped before it began
    # Not what the server said: what it would have answered is not known.
    assert isinstance(caught[0], ClientError) and caught[0].kind == "stopped" and caught[0].final


def test_nothing_is_sent_after_a_stop() -> None:
    client = Scripted()
    retrying = Retrying(client)
    retrying.stop()
    with pytest.raises(ClientError, match="stopped while scripted"):
        retrying.generate(REQUEST)
    assert not client.asked


def test_within_gives_what_comes_in_time() -> None:
    def broken() -> None:
        raise KeyError("x")

    assert within(30.0, lambda: 7, lambda: failure("transient")) == 7
    with pytest.raises(KeyError):
        within(30.0, broken, lambda: failure("transient"))


def test_within_leaves_what_does_not_come() -> None:
    never = threading.Event()
    call: Callable[[], bool] = never.wait
    with pytest.raises(ClientError, match="it is transient"):
        within(0.05, call, lambda: failure("transient"))
    never.set()
