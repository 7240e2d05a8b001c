"""Patience with a server, in one place: no SDK retries by itself.

Exponential backoff with full jitter, never sooner than the server asks, never for what cannot
succeed; and an end to it, when request after request has failed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from discojax.proposers.client import Client, ClientError, Reply, Request

__all__ = ["Patience", "Retrying", "together", "within"]

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait.

    Attributes:
      attempts: the most times one request is sent.
      first: seconds up to which the first pause is drawn; each further one up to twice as long.
      longest: seconds at most to which that grows.
      obeyed: the longest pause, in seconds, that is made because the server asks for it; where it
        asks for more, the request is given up.
      give_up_after: requests that fail one after another before no more is sent.
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 60.0
    obeyed: float = 300.0
    give_up_after: int = 5

    def pause(self, attempt: int, retry_after: float | None, rng: random.Random) -> float:
        """Seconds to wait after attempt number `attempt`, counted from 0."""
        drawn = rng.uniform(0.0, min(self.longest, self.first * 2.0 ** min(attempt, 60)))
        # What the server asks for is the least; jitter on top, so that lanes do not come back at once.
        return drawn if retry_after is None else retry_after + min(drawn, self.first)


class Retrying:
    """A client that tries again. Safe to use from several threads.

    Args:
      client: the one that makes single attempts.
      patience: how often and how long.
      sleep: waits for that many seconds; by default until `stop` at the latest.
      rng: of the jitter; it decides when something is sent, never what.
    """

    def __init__(
        self,
        client: Client,
        patience: Patience = Patience(),
        *,
        sleep: Callable[[float], object] | None = None,
        rng: random.Random | None = None,
    ):
        self.client = client
        self.patience = patience
        self._stopping = threading.Event()
        self._sleep = sleep or self._stopping.wait
        self._rng = rng or random.Random()
        self._failures = 0
        self._last = ""
        self._over: ClientError | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The client's."""
        return self.client.name

    @property
    def model(self) -> str:
        """The client's."""
        return self.client.model

    @property
    def options(self) -> Mapping[str, Any]:
        """The client's."""
        return self.client.options

    @property
    def base_url(self) -> str:
        """The client's, "" for one that has none."""
        return str(getattr(self.client, "base_url", ""))

    def generate(
        self, request: Request, attempt: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Reply:
        """The answer to a request, sent again while that may help.

        Args:
          request: what is asked.
          attempt: around every attempt; it sees what that raises, and what it raises itself ends them.

        Raises:
          ClientError: if none came; of kind "stopped", once too many requests in a row have failed, or
            where trying again would have been next when `stop` was called. After one of kind "quota" or
            "fatal" nothing more is sent, and it is raised again.
        """
        if self._stopping.is_set():
            raise self._interrupted()
        if self._over is not None:  # who has many questions, as a judge, asks on
            raise ClientError(str(self._over), self._over.kind, status=self._over.status)
        if self._failures >= self.patience.give_up_after:
            raise self._stopped()

        def once() -> Reply:
            with attempt():
                return self.client.generate(request)

        try:
            reply = self._attempts(once, self.patience.attempts)
        except ClientError as error:
            failure = self._counted(error)
        else:
            with self._lock:
                self._failures = 0
            return reply
        raise failure

    def stop(self) -> None:
        """Ends a pause that is being made, and sends nothing more. A request under way may be answered."""
        self._stopping.set()

    def probe(self) -> None:
        """The client's probe; what may pass is tried up to three times.

        Raises:
          ClientError: if key, model or address is wrong.
        """
        self._attempts(self.client.probe, min(3, self.patience.attempts))

    def _attempts(self, call: Callable[[], T], attempts: int) -> T:
        for attempt in range(attempts):
            try:
                return call()
            except ClientError as error:
                asked = error.retry_after or 0.0
                again = error.kind in ("transient", "rate_limited") and asked <= self.patience.obeyed
                if not again or attempt + 1 >= attempts:
                    raise
                with self._lock:
                    pause = self.patience.pause(attempt, error.retry_after, self._rng)
            self._sleep(pause)
            if self._stopping.is_set():
                raise self._interrupted()
        raise AssertionError("unreachable")

    def _counted(self, error: ClientError) -> ClientError:
        if error.final:
            if error.kind in ("quota", "fatal"):
                self._over = error
            return error
        with self._lock:
            self._failures += 1
            self._last = str(error).rstrip(".")
            failures = self._failures
        return self._stopped() if failures >= self.patience.give_up_after else error

    def _interrupted(self) -> ClientError:
        return ClientError(
            f"The run was stopped while {self.name} ({self.model}) was to be asked.", "stopped"
        )

    def _stopped(self) -> ClientError:
        return ClientError(
            f"{self.patience.give_up_after} requests to {self.name} ({self.model}) failed one after another, "
            f"the last because: {self._last}. What was found is saved; the same command "
            "with `--resume` and the run's folder goes on once the server answers again.",
            "stopped",
        )


def within(seconds: float, call: Callable[[], T], too_late: Callable[[], ClientError]) -> T:
    """The result of `call`, if it comes within `seconds` of wall-clock time.

    An SDK's timeout is that of one read: a server that sends a byte now and then, or a name server
    that does not answer, would hold it for ever. The call is left behind in its thread.

    Raises:
      ClientError: that of `too_late`.
    """
    outcome: list[tuple[bool, Any]] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # handed to the caller below
            outcome.append((False, error))
        finally:
            done.set()

    threading.Thread(target=run, daemon=True, name="discojax-request").start()
    if not done.wait(seconds):
        raise too_late()
    good, value = outcome[0]
    if good:
        return value
    raise value


def together(calls: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """What the calls gave or raised, once all have ended; several are made at once.

    Their threads are none that the end of the program waits for, as an executor's would be.
    """
    futures: list[Future[T]] = [Future() for _ in calls]

    def run(call: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    if len(calls) == 1:
        run(calls[0], futures[0])
        return futures
    threads = [
        threading.Thread(target=run, args=pair, daemon=True, name="discojax-round")
        for pair in zip(calls, futures, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return futures
