"""Real processes on this machine: one leads, the others follow; nobody waits for one that is gone."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from ports import free_port

from discojax.errors import HostError, UserError
from discojax.population import hosts, joining
from discojax.population.joining import join
from discojax.population.placement import fetch, put

PROGRAM = Path(__file__).with_name("hosts_job.py")


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    out: list[str]
    err: list[str]


def job(scenario: str, processes: int = 2, variables: Callable[[int], dict[str, str]] | None = None) -> Ended:
    """Starts them, told where the first is, or else left to find it by the variables of each."""
    place = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes), "--process"]
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), scenario, *([*place, str(i)] if variables is None else [])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **(variables(i) if variables else {})},
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=240) for process in started]
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
    assert ended.codes[0] == 42 and ended.codes[1] == -9, ended.err
    assert "Process 1 of this job is gone. Start the same command on every host again" in (
        ended.out[0] + ended.err[0]
    )
    assert "Traceback" not in ended.err[0]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["leader dies", "leader dies, as JAX sees first"])
def test_a_leader_that_is_killed_takes_the_others_with_it(scenario):
    ended = job(scenario)
    assert ended.codes[0] == -9 and ended.codes[1] == 42, ended.err
    assert "The process that leads this job is gone; what it said last is why." in ended.err[1]


def slurm(tasks: str) -> Callable[[int], dict[str, str]]:
    """What `srun` sets, and how many tasks its nodes have."""
    port, alone = str(free_port()), tasks.startswith("1")

    def of(task: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost" if not alone else "localhost,node2",
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": "0" if alone else str(task),
            "SLURM_STEP_TASKS_PER_NODE": tasks, "JAX_COORDINATOR_PORT": port,
        }  # fmt: skip

    return of


def open_mpi(tasks: str) -> Callable[[int], dict[str, str]]:
    """What `mpirun` sets."""
    port = str(free_port())

    def of(task: int) -> dict[str, str]:
        return {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(task), "OMPI_COMM_WORLD_LOCAL_SIZE": tasks,
            "OMPI_COMM_WORLD_LOCAL_RANK": "0" if tasks == "1" else str(task), "JAX_COORDINATOR_PORT": port,
        }  # fmt: skip

    return of


@pytest.mark.parametrize(
    ("launcher", "tasks", "visible"),
    [
        (slurm, "1(x2)", ["all", "all"]),
        (slurm, "2", ["0", "1"]),
        (open_mpi, "1", ["all", "all"]),
        (open_mpi, "2", ["0", "1"]),
    ],
)
def test_processes_find_one_another_and_one_that_has_its_node_has_all_of_its_devices(
    launcher, tasks, visible
):
    ended = job("see", variables=launcher(tasks))
    assert ended.codes == [0, 0], ended.err
    devices = os.environ.get("XLA_FLAGS", "").partition("device_count=")[2].split(" ")[0] or "1"
    assert [said(out) for out in ended.out] == [[f"{i} 2 {devices} {visible[i]}"] for i in range(2)]


def test_one_that_is_taken_back_before_the_others_come_ends_at_once():
    with socket.socket() as silent:  # a leader that does not answer
        silent.bind(("127.0.0.1", free_port()))
        silent.listen()
        silent.settimeout(60)
        place = [
            "--coordinator",
            f"127.0.0.1:{silent.getsockname()[1]}",
            "--processes",
            "2",
            "--process",
            "1",
        ]
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "see", *place],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        try:
            waiting, _ = silent.accept()  # inside JAX
            process.terminate()
            out, err = process.communicate(timeout=60)
            waiting.close()
        finally:
            process.kill()
    assert process.returncode == 0 and said(out) == ["told to end"], err


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


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine that JAX takes for a TPU VM."""
    from jax._src.clusters import cloud_tpu_cluster

    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"):
        monkeypatch.setenv(name, "")  # one slice
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)


def found() -> tuple[int, int]:
    cluster = joining._detected()
    assert cluster.get_local_process_id() is None and not joining._has_its_node()  # JAX takes all chips
    return cluster.get_process_count(), cluster.get_process_id()


def test_the_hosts_of_a_slice_on_gke_are_found_by_its_variables(tpu_vm, monkeypatch):
    class Away(BaseHTTPRequestHandler):
        do_GET = lambda self: self.send_error(404)  # noqa: E731  (GKE's metadata know no TPU)
        log_message = lambda *_: None  # noqa: E731

    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "slice-0.svc,slice-1.svc,slice-2.svc,slice-3.svc")
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    with metadata(Away, monkeypatch):
        assert found() == (4, 2)


def test_the_hosts_of_a_tpu_vm_slice_are_found_by_its_metadata(tpu_vm, monkeypatch):
    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self):
            said = {
                "agent-worker-number": "1",
                "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
                "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
            }.get(self.path.rpartition("/")[2])
            self.send_response(404 if said is None else 200)
            self.end_headers()
            self.wfile.write((said or "").encode())

        log_message = lambda *_: None  # noqa: E731

    with metadata(Metadata, monkeypatch):
        assert found() == (2, 1)


@contextlib.contextmanager
def metadata(answers, monkeypatch):
    """Google's metadata server, on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield
    finally:
        server.shutdown()


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
        with pytest.raises(HostError, match="The 2 processes did not find one another"):
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
