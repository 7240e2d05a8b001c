"""One command in several processes on this machine, as on several hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ports import free_port

__all__ = ["Job", "start"]


@dataclass(frozen=True)
class Job:
    """The processes of one command, started."""

    processes: list[subprocess.Popen]

    def end(self, timeout: float = 900) -> tuple[list[int], list[str], list[str]]:
        """Exit codes, and what each printed."""
        try:
            said = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        codes = [process.returncode for process in self.processes]
        return codes, [out for out, _ in said], [err for _, err in said]


def start(
    command: Sequence[str], processes: int, *, devices: int = 1, environment: Mapping[str, str] | None = None
) -> Job:
    """Starts Python with this command in so many processes, each of which has so many devices."""
    places: list[list[str]] = [[]]
    if processes > 1:
        job = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
        places = [[*job, "--process", str(i)] for i in range(processes)]
    flags = f"--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count={devices}"
    variables = {**os.environ, **(environment or {}), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return Job([subprocess.Popen(
        [sys.executable, *command, *place],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables,
    ) for place in places])  # fmt: skip
