"""Many processes, one run: process 0 leads, and the others do the device work that it tells them of.

The same command is started on every host. Process 0 does what it says: proposals, archive and report are
its own. The others follow: they wait for messages, such as `population.operations`, and do the same device
work. They wait in a look-up of JAX's coordination service and in no collective, so the leader may take its
time. Each shows every second that it is alive; who is silent for half a minute is lost, and the job ends.

Messages hold what `population.messages` lists and nothing else. As JAX says of its service, the
coordinator's port must not be open to those who may not run programs on the hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from discojax.data import cache
from discojax.errors import HostError, UserError
from discojax.population.messages import pack, unpack

__all__ = ["all_see", "alone", "begin", "finish", "follow", "give", "given", "guarded", "lost", "tell"]

_BEAT, _SILENCE, _GRACE = 1.0, 30.0, 5.0  # seconds
_BLOCK = 1 << 24  # words given at a time
_ENDED, _STOP, _AT_ONCE = "discojax/end", "stop", "at once"


class _Gift(NamedTuple):
    name: str
    shapes: Any
    content: str


class _End(NamedTuple):
    code: int


@dataclass
class _Job:
    client: Any
    process: int
    processes: int
    told: int = 0  # messages sent, or heard
    given: dict[str, Any] = field(default_factory=dict)
    lost: HostError | None = None
    failed: float = float("-inf")  # when something did that may show a loss
    stopping: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    aborted: Any = None  # the handler, which C has the address of


_job: _Job | None = None


def alone() -> bool:
    """Whether this process is the whole job."""
    return _job is None


def begin(client: Any, process: int, processes: int, coordinator: str) -> None:
    """Takes up its part, leading or following, of a job whose processes have joined.

    Args:
      client: JAX's client of its coordination service.
      process: which one this is; 0 leads.
      processes: how many there are.
      coordinator: HOST:PORT of process 0.
    """
    global _job
    _job = _Job(client, process, processes)
    if process:
        # Ctrl-C comes to all that share a terminal, and is the leader's to answer. SIGTERM comes to one
        # host, and is the leader's too.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(_job, "stopping", True))
        _job.aborted = _heed_abort(coordinator)
    threading.Thread(target=_show if process else _listen, args=(_job,), daemon=True, name="pulse").start()


# The leader's side.


def tell(message: Any) -> None:
    """Sends a message to all other processes; to nobody where there is none.

    Raises:
      HostError: one of them is gone.
    """
    if _job is None or _job.process:
        return
    if _job.lost:
        raise _job.lost
    _send(_job, message)


def give(name: str, tree: Any) -> None:
    """Gives all other processes a tree of arrays, once; `given` has it there. The name is of its content."""
    if _job is None or _job.process or name in _job.given:
        return
    arrays = jax.tree.map(np.asarray, tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    tell(_Gift(name, shapes, cache.content_hash(jax.tree.leaves(arrays))))
    with guarded():
        _broadcast(arrays)
    _job.given[name] = None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Device work inside: where it fails because a process is gone, that is said, and not how it showed.

    Raises:
      HostError: a process is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        if found := lost():
            raise found from None
        raise


def lost() -> HostError | None:
    """Which process is gone, for a leader that something has failed; None if none is, which takes a while."""
    if _job is None or _job.process:
        return None
    patience = _SILENCE + _GRACE  # by then a silent one is known
    if time.monotonic() - _job.failed > 2 * patience:  # else this is the same failure, waited for already
        _job.failed = time.monotonic()
    until = _job.failed + patience
    while not _job.lost and time.monotonic() < until:
        time.sleep(_BEAT / 4)
    return _job.lost


def finish(code: int) -> None:
    """Ends the others with this exit code, and leaves them. To be called last; alone it does nothing."""
    global _job
    if _job is None or _job.process:
        return
    job, _job = _job, None
    job.ended.set()
    try:
        _dismiss(job, code, at_once=bool(job.lost))
        until = time.monotonic() + 3 * _GRACE
        for other in range(1, job.processes):
            rest = max(int(1000 * (until - time.monotonic())), 1)
            job.client.blocking_key_value_get(f"discojax/left/{other}", 1 if job.lost else rest)
    except Exception:
        _leave(code)  # JAX would wait for those that are gone


def _send(job: _Job, message: Any) -> None:
    job.client.key_value_set_bytes(_key(job.told), pack(message))
    job.told += 1


def _dismiss(job: _Job, code: int, *, at_once: bool) -> None:
    job.client.key_value_set(_ENDED, f"{code} {_AT_ONCE if at_once else ''}")
    _send(job, _End(code))
    if at_once:
        time.sleep(2 * _BEAT)  # they look every second, and the service ends with this process


def _listen(job: _Job) -> None:
    """In a thread of the leader: hears whether all are alive, and what they say."""
    heard = {other: ("", time.monotonic()) for other in range(1, job.processes)}
    asked, deleted = False, 0
    while not job.lost and not job.ended.wait(_BEAT):
        with contextlib.suppress(Exception):
            for key, value in job.client.key_value_dir_get("discojax/failed/"):
                code, _, why = value.partition(" ")
                job.lost = HostError(f"Process {key.rpartition('/')[2]} of this job failed: {why}", int(code))
            for key, value in job.client.key_value_dir_get("discojax/pulse/"):
                other = int(key.rpartition("/")[2])
                if value != heard[other][0]:
                    heard[other] = (value, time.monotonic())
                if value.endswith(_STOP) and not asked:
                    asked = True
                    os.kill(os.getpid(), signal.SIGTERM)  # as if it had come here
            known = min(int((value or "0 0").split()[1]) for value, _ in heard.values())
            for number in range(deleted, known):  # everyone has heard it
                job.client.key_value_delete(_key(number))
            deleted = max(deleted, known)
        silent = [other for other, (_, at) in heard.items() if time.monotonic() - at > _SILENCE]
        if silent and not job.lost:
            job.lost = HostError(
                f"Process {silent[0]} of this job is gone. Start the same command on every host again, with "
                "--resume, to go on where the run was."
            )
    # The main thread says so when it next tells or is told something, unless it waits for something else.
    if job.lost and not job.ended.wait(_GRACE):
        print(job.lost, file=sys.stderr)
        with contextlib.suppress(Exception):
            _dismiss(job, job.lost.code, at_once=True)
        _leave(job.lost.code)


# The followers' side.


def follow(act: Callable[[Any], None]) -> int:
    """Does what the leader tells, until it ends; returns the exit code.

    Args:
      act: does it. Where it raises, the job ends, and the leader says why.
    """
    job = _job
    assert job is not None and job.process
    try:
        for number in itertools.count():
            message = _receive(job, number)
            job.told = number + 1
            if isinstance(message, _End):
                break
            if isinstance(message, _Gift):
                job.given[message.name] = _accept(message)
            else:
                act(message)
    except Exception as error:
        _fail(job, error)
    job.ended.set()
    job.client.key_value_set(f"discojax/left/{job.process}", "")
    return int(message.code)


def given(name: str) -> Any:
    """What the leader gave under this name, as host arrays."""
    assert _job is not None
    return _job.given[name]


def all_see(path: str, seconds: float = 5.0) -> bool:
    """Whether a file is there in every process, which all must ask at once; shared folders take a moment."""
    until = time.monotonic() + seconds
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.2)
    seen = np.asarray([os.path.exists(path)])
    return bool(seen.all() if alone() else multihost_utils.process_allgather(seen).all())


def _receive(job: _Job, number: int) -> Any:
    while True:
        try:
            packed = job.client.blocking_key_value_get_bytes(_key(number), int(1000 * _BEAT))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                _deserted()
        else:
            return unpack(packed)


def _accept(gift: _Gift) -> Any:
    arrays = _broadcast(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), gift.shapes))
    if cache.content_hash(jax.tree.leaves(arrays)) != gift.content:
        raise HostError("its copy of the task is not the leader's, so its network or memory is at fault.")
    return arrays


def _fail(job: _Job, error: Exception) -> NoReturn:
    """Tells the leader, which ends the job; but of an error that may only show that another is gone, late."""
    code = error.code if isinstance(error, UserError) else 1
    if isinstance(error, jax.errors.JaxRuntimeError):
        code = HostError.code
        time.sleep(_SILENCE + 2 * _GRACE)  # by then the leader has ended this process too
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        said = f"{code} {str(error) or type(error).__name__}"
        job.client.key_value_set(f"discojax/failed/{job.process}", said)
        time.sleep(2 * _GRACE)
    _leave(code)


def _show(job: _Job) -> None:
    """In a thread of a follower: shows that it is alive, and ends it when the leader has ended."""
    for beat in itertools.count():
        try:
            state = f"{beat} {job.told} {_STOP if job.stopping else ''}".strip()
            job.client.key_value_set(f"discojax/pulse/{job.process}", state, allow_overwrite=True)
            ended = _look_up(job, _ENDED)
        except Exception:
            if job.ended.is_set():
                return
            _deserted()
        if ended:
            # The main thread ends by itself, unless it waits for devices that the leader has left.
            if _AT_ONCE in ended or not job.ended.wait(_GRACE):
                _leave(int(ended.split()[0]))
            return
        if job.ended.wait(_BEAT):
            return


def _look_up(job: _Job, key: str) -> str:
    try:
        return str(job.client.key_value_try_get(key))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return ""
        raise


def _deserted() -> NoReturn:
    print("The process that leads this job is gone; what it said last is why.", file=sys.stderr)
    _leave(HostError.code)


def _heed_abort(coordinator: str) -> Any:
    """Ends the process as `_deserted` does where JAX's client sees first that the leader is gone, and aborts.

    JAX has no way to tell it otherwise (a Python `missed_heartbeat_callback` is a `std::bad_cast`), and
    Python's own handlers run too late.
    """
    host, _, port = coordinator.rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            _deserted()

    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)  # if it returns, the process aborts
    return handler


# Both sides.


def _key(number: int) -> str:
    return f"discojax/told/{number}"


def _leave(code: int) -> NoReturn:
    """Ends the process without JAX's own farewell, which waits for all."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _broadcast(tree: Any) -> Any:
    """The leader's arrays, bit for bit; from the others it takes only shapes. All processes call it."""
    leaves, form = jax.tree.flatten(tree)
    flat = np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves])
    words = -(-flat.size // 4)
    block = min(1 << max(words - 1, 1).bit_length(), _BLOCK)  # few shapes, so few programs
    padded = np.zeros(4 * block * -(-words // block), np.uint8)
    padded[: flat.size] = flat
    parts = padded.view(np.uint32).reshape(-1, block)
    for i, part in enumerate(parts):
        parts[i] = multihost_utils.broadcast_one_to_all(part)
    ends = np.cumsum([x.nbytes for x in leaves])
    return jax.tree.unflatten(
        form,
        [
            padded[end - x.nbytes : end].view(x.dtype).reshape(x.shape)
            for x, end in zip(leaves, ends, strict=True)
        ],
    )
