"""Joining: are there other processes in this job, and where?

JAX's own detection says so on TPU pods, GKE, SLURM and Open MPI. It is only asked where something hints
at others, so that a laptop neither waits for a network nor imports JAX to be told of a misspelt setting.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from discojax import __version__
from discojax.errors import HostError, UserError
from discojax.population.backend import configure_backend

__all__ = ["join"]

_SIGNS = (
    "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS",
)  # fmt: skip
_PATIENCE, _GOODBYE = 300, 30  # seconds that hosts may start apart, and end
_FLAGS = "--coordinator HOST:PORT --processes N --process I"


def join(coordinator: str | None = None, count: str | None = None, index: str | None = None) -> int:
    """Joins the other processes of this job, if there are any; returns which one this is, from 0.

    One process alone starts nothing. It must be called before anything asks JAX for its devices.

    Args:
      coordinator: HOST:PORT of process 0, for where JAX cannot find it; the other two go with it.
      count: how many there are, as it was typed.
      index: which of them this is.

    Raises:
      UserError: the three do not fit together, or the others have other versions.
      HostError: the others do not come.
      population.stopping.Preempted: SIGTERM, while it waits for them.
    """
    place = _read(coordinator, count, index)
    if place is None and not _hinted():
        return 0
    configure_backend()
    cluster = _detected() if place is None else None
    expected = place[1] if place else 1 if cluster is None else _asked(cluster.get_process_count)
    if expected == 1:
        return 0
    import jax
    from jax._src import distributed

    # SIGTERM comes to one host, and the leader answers it: `hosts` takes it there.
    jax.config.update("jax_enable_preemption_service", False)
    job = distributed.global_state

    def meet() -> None:
        try:
            where = place
            if cluster is not None and _has_its_node():
                where = _place_in(cluster)
            if where is None:
                jax.distributed.initialize(
                    initialization_timeout=_PATIENCE, shutdown_timeout_seconds=_GOODBYE
                )
            else:
                jax.distributed.initialize(
                    *where, cluster_detection_method="deactivate",
                    initialization_timeout=_PATIENCE, shutdown_timeout_seconds=_GOODBYE,
                )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise HostError(
                f"The {expected} processes did not find one another ({_short(error)}): start the same "
                f"command on every host, or add {_FLAGS} to each."
            ) from None
        _compare(job.client, job.process_id)
        jax.devices()  # everyone tells of its own, and nobody waits long to hear of the others'

    _beside(meet)
    from discojax.population import hosts

    hosts.begin(job.client, job.process_id, job.num_processes, str(job.coordinator_address))
    return job.process_id


def _read(coordinator: str | None, processes: str | None, process: str | None) -> tuple[str, int, int] | None:
    if coordinator is None and processes is None and process is None:
        return None
    if coordinator is None or processes is None or process is None:
        raise UserError(f"{_FLAGS} go together: give all three, or none where JAX finds the hosts itself.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator is HOST:PORT, such as 10.0.0.2:8476, not {coordinator!r}.")
    if not processes.isdigit() or not process.isdigit() or int(process) >= int(processes):
        raise UserError(
            f"--processes is how many there are and --process which one this is, from 0; {processes} and "
            f"{process} are not."
        )
    return coordinator, int(processes), int(process)


def _hinted() -> bool:
    """Whether there may be other processes: a launcher has said so, or this may be a TPU VM."""
    return any(name in os.environ for name in _SIGNS) or importlib.util.find_spec("libtpu") is not None


def _detected() -> Any:
    """JAX's own way to find the processes here; None where it finds nothing."""
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in os.environ:  # a pod of Kubernetes that is no part of an indexed job
        kinds = [kind for kind in kinds if kind.__name__ != "K8sCluster"]
    return _asked(lambda: next((kind for kind in kinds if kind.is_env_present()), None))


def _asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:  # a metadata server's, or Kubernetes' own
        raise UserError(
            f"The other processes of this job could not be found ({_short(error)}): add {_FLAGS} to the "
            "command on every host."
        ) from None


def _has_its_node() -> bool:
    """Whether SLURM or Open MPI started one process a node, which then has all of its devices.

    Where these say which process of its node one is, JAX gives it the device of that number alone.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE", "")
    each = re.fullmatch(r"1(\(x\d+\))?", tasks) is not None  # such as 1(x4); 2(x3),1 has nodes with two
    return each or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _place_in(cluster: Any) -> tuple[str, int, int]:
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = cluster.get_coordinator_address(timeout_secs=_PATIENCE, override_coordinator_port=port)
    return address, cluster.get_process_count(), cluster.get_process_id()


def _beside(work: Callable[[], None]) -> None:
    """Does it in another thread: what waits inside JAX hears no signal, and this one does."""
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=do, daemon=True, name="join")
    thread.start()
    while thread.is_alive():  # a wait without end may miss a signal that comes just as it begins
        thread.join(0.2)
    if failed:
        raise failed[0]


def _compare(client: Any, process: int) -> None:
    """Everyone has the leader's versions, or does not begin."""
    import jax

    mine, key = f"discojax {__version__} with jax {jax.__version__}", "discojax/versions"
    if process == 0:
        client.key_value_set(key, mine)
    elif (theirs := client.blocking_key_value_get(key, 1000 * _PATIENCE)) != mine:
        raise UserError(
            f"Process {process} is {mine}, and process 0 {theirs}: install the same on every host."
        )


def _short(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
