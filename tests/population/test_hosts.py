"""Real processes on this machine: one leads, the others follow; nobody waits for one that is gone."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from discojax.errors import UserError
from discojax.population import hosts
from discojax.population.joining import join
from discojax.population.placement import fetch, put

PROGRAM = Path(__file__).with_name("hosts_job.py")


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    out: list[str]
    err: list[str]


def job(scenario: str, processes: int = 2) -> Ended:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), scenario, "--coordinator", f"localhost:{port}",
             "--processes", str(processes), "--process", str(i)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return Ended([p.returncode for p in started], [out for out, _ in told], [err for _, err in told])


def said(text: str) -> list[str]:
    """Lines, but for the one that the library of a CPU's collectives says of itself."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


def test_arrays_and_messages_reach_the_others_and_the_exit_code_does():
    ended = job("share")
    assert ended.codes == [3, 3], ended.err
    assert said(ended.out[1]) == [] and "Error" not in ended.err[1]


def test_who_fails_says_why_and_the_job_ends():
    ended = job("fail")
    assert ended.codes == [2, 2], ended.err
    assert said(ended.out[0]) == ["Process 1 of this job failed: its disk is full."]
    assert said(ended.out[1]) == [] and "Traceback" not in ended.err[1]


@pytest.mark.slow
def test_who_is_killed_is_noticed_though_the_leader_waits_for_its_device():
    ended = job("die")
    assert ended.codes[0] == 2 and ended.codes[1] == -9, ended.err
    assert "Process 1 of this job is gone. Start the same command on every host again" in (
        ended.out[0] + ended.err[0]
    )
    assert "Traceback" not in ended.err[0]


@pytest.mark.slow
def test_a_leader_that_is_killed_takes_the_others_with_it():
    ended = job("leader dies")
    assert ended.codes[0] == -9 and ended.codes[1] not in (0, -9)


@pytest.mark.slow
def test_the_leader_leaves_without_one_that_hangs():
    assert job("hang").codes == [0, 0]


@pytest.mark.slow
def test_sigterm_anywhere_is_the_leaders_to_answer():
    ended = job("ask to stop", processes=3)
    assert ended.codes == [0, 0, 0], ended.err
    assert said(ended.out[0]) == ["stopped here"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1", None, None), "go together"),
        (("host", "2", "0"), "HOST:PORT"),
        (("host:1", "2", "2"), "from 0"),
        (("host:1", "two", "0"), "from 0"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(given, said):
    with pytest.raises(UserError, match=said):
        join(*given)


@pytest.mark.parametrize("tasks", ["1", "2"])
def test_jax_finds_the_processes_of_slurm_and_one_starts_nothing(monkeypatch, tasks):
    import jax

    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_NTASKS", tasks)

    def initialize(*given, **settings):
        assert not given and tasks == "2"  # found by JAX itself
        raise RuntimeError("the other does not come")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    if tasks == "1":
        assert join() == 0 and hosts.alone()
    else:
        with pytest.raises(UserError, match="The 2 processes did not find one another"):
            join()


def test_alone_nothing_is_sent_and_arrays_stay(one_device):
    import jax

    hosts.tell(("anything", object()))  # nobody to read it
    hosts.give("name", {"x": np.arange(2)})
    hosts.finish(1)
    assert join() == 0
    tree = {"x": np.arange(4.0, dtype=np.float32), "label": "kept"}
    placed = put(tree["x"], jax.NamedSharding(one_device, jax.P("lane")))
    np.testing.assert_array_equal(fetch({"x": placed, "label": "kept"})["x"], tree["x"])


def test_a_message_holds_nothing_that_runs():
    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="may not hold"):
        hosts._Reader(io.BytesIO(pickle.dumps(Attack()))).load()
