"""A hang, a crash, exhausted memory in the checking process is a rejection here, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discojax.candidates.checker import Checker
from discojax.errors import UserError

HERE = str(Path(__file__).parent)
linux = pytest.mark.skipif(sys.platform != "linux", reason="measured by /proc, confined by Linux")


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checker]:
    """A checker whose process does what the text says, however bad."""
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    one = Checker(seconds=1.0, memory=400 * 2**20, module="misbehaving", path=HERE)
    yield one
    one.close()


@pytest.mark.parametrize("how", ["hang", "spin", "ignore the alarm"])
def test_a_hang_is_a_rejection(wild: Checker, how: str) -> None:
    wild.warm()
    begin = time.monotonic()
    answer = wild.ask(how)
    assert time.monotonic() - begin < 30.0  # of the 1.0 it has, on a machine that does much else
    assert answer == {
        "accepted": False, "stage": "numbers", "line": None,
        "reason": "the checking process took too long; simplify the loss",
    }  # fmt: skip
    assert wild.ask("anything")["reason"].isdigit(), "the next check has a new process"


@pytest.mark.parametrize("how", ["crash", "exit"])
def test_a_crash_is_a_rejection_after_one_more_try(wild: Checker, how: str) -> None:
    answer = wild.ask(how)
    assert not answer["accepted"]
    assert "crashed" in answer["reason"]
    assert wild.ask("anything")["reason"].isdigit()


@linux
def test_memory_without_end_is_a_rejection() -> None:
    # Time enough that memory ends first: a loaded machine takes over a second to hand out 400 MB.
    patient = Checker(seconds=20.0, memory=400 * 2**20, module="misbehaving", path=HERE)
    try:
        answer = patient.ask("eat memory")
    finally:
        patient.close()
    assert not answer["accepted"]
    assert "memory" in answer["reason"] or "crashed" in answer["reason"]


def test_memory_error_is_a_rejection_and_the_process_lives(wild: Checker) -> None:
    before = wild.ask("pid")["reason"]
    assert "out of memory" in wild.ask("memory error")["reason"]
    assert wild.ask("pid")["reason"] == before


def test_noise_on_standard_output_is_no_answer(wild: Checker) -> None:
    assert wild.ask("print")["reason"] == "printed"


def test_the_environment_holds_no_key_of_the_parent(wild: Checker) -> None:
    names = wild.ask("environment")["reason"].split()
    assert "GEMINI_API_KEY" not in names
    assert set(names) <= {
        "HOME", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PLATFORMS", "LANG", "LC_CTYPE",
        "MALLOC_ARENA_MAX", "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "PATH", "XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "TPU_SKIP_MDS_QUERY",
    }  # fmt: skip


def test_it_has_its_own_session_and_group(wild: Checker) -> None:
    pid, session, group = wild.ask("session")["reason"].split()
    assert pid == session == group
    assert int(session) != os.getsid(0)


@linux
@pytest.mark.parametrize(
    "what",
    [
        "read a secret", "read the environment of the parent", "write a file",
        "write beside the package",
        "make a folder", "open a socket", "open a local socket", "start a program", "fork",
        "signal the parent",
    ],
)  # fmt: skip
def test_code_that_got_through_would_still_be_confined(wild: Checker, what: str) -> None:
    wild.warm()
    needs = "landlock" if what.startswith("read") else "seccomp"
    if needs not in wild.layers:
        pytest.skip(f"this kernel has no {needs}")
    assert wild.ask(f"attempt to {what}")["reason"].startswith("refused")


@linux
@pytest.mark.parametrize("what", ["start a thread", "read Python's own file"])
def test_what_jax_needs_stays_allowed(wild: Checker, what: str) -> None:
    assert wild.ask(f"attempt to {what}")["reason"].startswith("done")


def test_the_process_is_replaced_after_its_share_of_checks() -> None:
    one = Checker(checks=3, module="misbehaving", path=HERE)
    try:
        pids = []
        for _ in range(40):
            pids.append(one.ask("pid")["reason"])
            time.sleep(0.02)
        assert len(set(pids)) >= 2, "the successor takes over once it is warm"
        assert pids == sorted(pids, key=pids.index), "and the first one never comes back"
    finally:
        one.close()


def test_close_ends_the_process_and_the_next_check_starts_another() -> None:
    one = Checker(module="misbehaving", path=HERE)
    first = one.ask("pid")["reason"]
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(first), 0)
    assert one.ask("pid")["reason"] != first
    one.close()


def test_a_process_that_cannot_start_is_a_sentence() -> None:
    with pytest.raises(UserError, match="while it started"):
        Checker(module="no.such.module").warm()


def test_warming_in_the_background_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    one = Checker(module="misbehaving", path=HERE)
    one.warm(wait=False)
    assert len(started) == 1 and one.layers == []  # it has not been heard yet
    assert one.ask("pid")["reason"] == str(started[0].pid)
    assert len(started) == 1 and one.layers
    one.close()
