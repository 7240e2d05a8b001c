"""Joining: are there other processes in this job, and where?

JAX's own detection says so on TPU pods, GKE, SLURM and Open MPI. It is only asked where something hints
at others, so that a laptop neither waits for a network nor imports JAX to be told of a misspelt setting.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from discojax import __version__
from discojax.errors import UserError
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
      UserError: the three do not fit together, the others do not come, or they have other versions.
    """
    place = _read(coordinator, count, index)
    if place is None and not _hinted():
        return 0
    configure_backend()
    expected = _detected() if place is None else place[1]
    if expected == 1:
        return 0
    import jax
    from jax._src import distributed

    # SIGTERM comes to one host, and the leader answers it: `hosts` takes it there.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if place is None:
            jax.distributed.initialize(initialization_timeout=_PATIENCE, shutdown_timeout_seconds=_GOODBYE)
        else:
            address, processes, process = place
            jax.distributed.initialize(
                address, processes, process, cluster_detection_method="deactivate",
                initialization_timeout=_PATIENCE, shutdown_timeout_seconds=_GOODBYE,
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The {expected} processes did not find one another ({_short(error)}): start the same "
            f"command on every host, or add {_FLAGS} to each."
        ) from None
    from discojax.population import hosts

    job = distributed.global_state
    _compare(job.client, job.process_id)
    jax.devices()  # everyone tells of its own, and nobody waits long to hear of the others'
    hosts.begin(job.client, job.process_id, job.num_processes)
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


def _detected() -> int:
    """How many processes JAX's own detection finds; 1 where it finds nothing."""
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in os.environ:  # a pod of Kubernetes that is no part of an indexed job
        kinds = [kind for kind in kinds if kind.__name__ != "K8sCluster"]
    try:
        present = next((kind for kind in kinds if kind.is_env_present()), None)
        return 1 if present is None else int(present.get_process_count())
    except Exception as error:  # a metadata server's, or Kubernetes' own
        raise UserError(
            f"The other processes of this job could not be found ({_short(error)}): add {_FLAGS} to the "
            "command on every host."
        ) from None


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
