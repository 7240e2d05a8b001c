"""The parent's side of the checking process: starts it, asks it, and ends it when it must.

A hang, a crash or exhausted memory there is a rejection with a reason here. The process has its
own session and group, and an environment without the parent's keys. It is kept warm, and replaced
after some thousand checks by one that has warmed up beside it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from discojax.candidates.errors import CandidateError
from discojax.errors import UserError

__all__ = ["Checker", "shared"]

_SECONDS_TO_START = 240.0
_SECONDS_A_CHECK = 4.0
_MEMORY = 3 * 2**30
_CHECKS_A_PROCESS = 4000
_TICK = 0.02

_ROOT = str(Path(__file__).parents[2])
_BOOT = "import importlib, sys; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main()"


class _EndedError(Exception):
    """The process is no more; `why` is for a reason."""

    def __init__(self, why: str, blameless: bool):
        self.why = why
        self.blameless = blameless
        super().__init__(why)


def _environment() -> dict[str, str]:
    """All the process is told. Nothing of the parent's environment: keys live there."""
    return {
        "JAX_PLATFORMS": "cpu",
        # One thread, and code that is quick to compile: it runs on 16 pairs.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
        " --xla_cpu_parallel_codegen_split_count=1",
        "MALLOC_ARENA_MAX": "1",  # otherwise the compiler's threads keep 300 MB they no longer use
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "PATH": "",
    }


class _Process:
    """One checking process and the unread part of what it said."""

    def __init__(self, module: str, path: str, memory: int):
        self.memory = memory
        self.checks = 0
        self.layers: list[str] | None = None
        self.unread = b""
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _BOOT, path, module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=_environment(), cwd="/", start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self.popen.stdout is not None
        self.answers = self.popen.stdout.fileno()
        os.set_blocking(self.answers, False)

    def send(self, message: dict[str, Any]) -> None:
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
        except OSError:
            raise _EndedError("ended between two checks", blameless=True) from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message.

        Args:
          deadline: of the monotonic clock; time the process waits for a busy machine's CPU is added.

        Raises:
          _EndedError: if none comes in time, the process dies, or it outgrows its memory. It is killed.
        """
        waited = self.waited()
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                if selector.select(_TICK):
                    chunk = os.read(self.answers, 65536)
                    if not chunk:
                        self.kill()
                        raise _EndedError(f"crashed ({self._how_it_died()})", blameless=False)
                    self.unread += chunk
                if self.resident() > self.memory:
                    self.kill()
                    raise _EndedError(f"used over {self.memory / 2**30:.1f} GiB of memory", blameless=False)
                late = time.monotonic() - deadline
                if late > 0 and late > self.waited() - waited:
                    self.kill()
                    raise _EndedError("took too long", blameless=False)
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def has_spoken(self) -> bool:
        """Whether it has said something that is not read yet, or has died."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            return bool(selector.select(0))

    def resident(self) -> int:
        """Bytes of memory it holds, 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.popen.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def waited(self) -> float:
        """Seconds it was ready to run and had no CPU, 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.popen.pid}/schedstat", "rb") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def _how_it_died(self) -> str:
        code = self.popen.wait()
        return (
            signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit code {code}"
        )

    def kill(self) -> None:
        """Ends the process and whatever it may have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.popen.poll() is None:
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Checker:
    """Asks a warm checking process about one candidate at a time. Safe to use from several threads.

    Attributes:
      layers: the confinements the process has applied: "rlimits", "landlock", "seccomp".

    Args:
      seconds: wall-clock limit of a check, less what it waits for a CPU.
      memory: bytes of resident memory the process may hold.
      checks: how many checks a process serves before it is replaced.
      module: what runs there; tests run misbehaving ones.
      path: the folder from which `module` is imported.
    """

    def __init__(
        self,
        seconds: float = _SECONDS_A_CHECK,
        memory: int = _MEMORY,
        checks: int = _CHECKS_A_PROCESS,
        module: str = "discojax.candidates.worker",
        path: str = _ROOT,
    ):
        self.seconds = seconds
        self.layers: list[str] = []
        self._memory, self._checks, self._module, self._path = memory, checks, module, path
        self._current: _Process | None = None
        self._next: _Process | None = None
        self._lock = threading.RLock()
        self._owner = os.getpid()

    def warm(self, wait: bool = True) -> None:
        """Starts the process ahead of the first check; with `wait`, until it is ready.

        Raises:
          UserError: if it cannot start.
        """
        with self._lock:
            if wait:
                self._ready()
            elif self._current is None and self._next is None:
                self._next = self._start()

    def ask(self, source: str) -> dict[str, Any]:
        """The verdict on a text: `{"accepted": True, "measures": ...}`, or stage, line and reason.

        Raises:
          UserError: if the checking process cannot start at all.
        """
        with self._lock:
            for attempt in range(2):
                stage = "trace"
                try:
                    process = self._ready()
                    process.checks += 1
                    process.send({"source": source, "seconds": self.seconds})
                    deadline = time.monotonic() + self.seconds
                    while True:
                        answer = process.receive(deadline)
                        if "stage" not in answer or "reason" in answer:
                            break
                        stage = answer["stage"]
                    if "exhausted" in answer:
                        return _rejection(
                            stage, f"the check ran out of memory or depth ({answer['exhausted']})"
                        )
                    return answer
                except _EndedError as end:
                    self._drop()
                    # A crash may be the machine's doing (an out-of-memory killer): ask once more.
                    again = attempt == 0 and (end.blameless or end.why.startswith("crashed"))
                    if not again:
                        return _rejection(stage, f"the checking process {end.why}; simplify the loss")
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends the process. The next check starts another."""
        with self._lock:
            if os.getpid() != self._owner:  # after a fork it is the parent's
                self._current = self._next = None
                return
            self._drop()
            if self._next is not None:
                self._next.kill()
                self._next = None

    def _drop(self) -> None:
        if self._current is not None:
            self._current.kill()
            self._current = None

    def _start(self) -> _Process:
        try:
            return _Process(self._module, self._path, self._memory)
        except OSError as error:
            raise UserError(f"The checking process cannot start: {error.strerror}.") from None

    def _ready(self) -> _Process:
        if os.getpid() != self._owner:
            self._current = self._next = None
            self._owner = os.getpid()
        current = self._current
        if current is not None:
            if current.checks < self._checks:
                return current
            if self._next is None:
                self._next = self._start()
            if not self._next.has_spoken() and current.checks < 2 * self._checks:
                return current  # it goes on while its successor warms up
            self._drop()
        process = self._next or self._start()
        self._next = None
        try:
            hello = process.receive(time.monotonic() + _SECONDS_TO_START)
        except _EndedError as end:
            raise UserError(
                f"The checking process {end.why} while it started; `python -c 'import jax'` may say why."
            ) from None
        self.layers = list(hello.get("layers", []))
        self._current = process
        return process


def _rejection(stage: str, reason: str) -> dict[str, Any]:
    # The reason is cut to its length as every other one.
    error = CandidateError(stage if stage in ("program", "trace", "numbers") else "trace", None, reason)  # type: ignore[arg-type]
    return {"accepted": False, "stage": error.stage, "line": None, "reason": error.reason}


_shared: Checker | None = None
_shared_lock = threading.Lock()


def shared() -> Checker:
    """The process-wide checker, started at its first use and ended at exit."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Checker()
            atexit.register(_shared.close)
        return _shared
