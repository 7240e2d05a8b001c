"""What the clients of all SDKs share: single attempts within a deadline, several candidates, the probe."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import functools
import importlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from discojax.errors import UserError
from discojax.proposers import faults, keys
from discojax.proposers.client import ClientError, Finish, Reply, Request
from discojax.proposers.dialect import Dialect, Feature
from discojax.proposers.retry import within

__all__ = ["Answer", "SdkClient", "as_number", "load", "make_reply", "together"]

T = TypeVar("T")

Answer = tuple[str, Finish, str]
"""A candidate's text, why it ends, and what the server said of it."""

_PROBE_SECONDS = 30.0
_GRACE = 2.0  # seconds that the SDK's own timeout may come late
_LONGEST_TEXT = 1 << 18  # characters of one answer that are kept
_LONGEST_NAME, _LONGEST_DETAIL = 200, 1000
_LONGEST_RAW = 1 << 21  # and of the server's JSON
_CHARACTERS_A_TOKEN = 3  # at least, of English and Python

together = Feature(
    ("together", "apart"),
    ("candidatecount", "candidate_count", "candidate count", "multiple candidates", "completion choice",
     "n must be 1", "param=n;", "'n'"),
)  # fmt: skip
"""Several candidates in one request, or one request for each."""


def load(module: str, extra: str) -> Any:
    """An SDK's module.

    Raises:
      UserError: if it is not installed, naming the extra of this package that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"The package of {module} is missing ({error}): pip install 'discojax[{extra}]'."
        ) from None


def make_reply(
    payload: Mapping[str, Any],
    request: Request,
    answers: Sequence[Answer],
    *,
    model_version: Any,
    tokens_in: int,
    tokens_out: int,
    tokens_thinking: int,
    tokens_cached: int,
) -> Reply:
    """A reply of what an SDK's client has read out of the server's JSON.

    Where the server counts no `tokens_in`, these and `tokens_out` are guesses on the high side.
    """
    texts, finishes = tuple(text for text, _, _ in answers), tuple(finish for _, finish, _ in answers)
    estimated = tokens_in == 0
    if estimated:
        asked = len(request.system) + sum(len(turn.text) for turn in request.turns)
        most = (request.max_output_tokens or 0) * finishes.count("length")
        tokens_in = asked // _CHARACTERS_A_TOKEN + 1
        tokens_out = max(tokens_out, most, sum(map(len, texts)) // _CHARACTERS_A_TOKEN + 1)
    return Reply(
        texts=texts,
        finishes=finishes,
        model_version=str(model_version or ""),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_thinking=tokens_thinking,
        tokens_cached=min(tokens_cached, tokens_in),
        estimated=estimated,
        raw=json.dumps(payload, ensure_ascii=False),
        detail="; ".join(sorted({detail for _, _, detail in answers if detail})),
    )


class SdkClient(abc.ABC):
    """A client by way of an SDK: a subclass says how one request is sent and what its errors mean.

    Attributes:
      name: of the kind of server.
      model: as the server is asked for it.
      base_url: of the server.
      thinking: how much to think, in tokens or as a level; None leaves it to the model.
    """

    name: str
    key_names: tuple[str, ...]
    features: Mapping[str, Feature]

    def __init__(self, model: str, base_url: str, key_variable: str | None, thinking: int | str | None):
        if not model.strip():
            raise UserError(f"{self.name} needs the name of a model.")
        self.model = model.strip()
        self.base_url = base_url.rstrip("/")
        self.thinking = thinking
        if key_variable:
            self.key_names = (key_variable,)
        self._dialect = Dialect(self.features, self.where)
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        """Server and model, for a message."""
        return f"{self.name} ({self.model})"

    @property
    def options(self) -> Mapping[str, Any]:
        """Further settings that decide an answer."""
        return {"thinking": self.thinking}

    def generate(self, request: Request) -> Reply:
        """The answer to a request, in one attempt for each way of asking that the server may need.

        Where a server gives one candidate at a time, it is asked for each; those that came before a
        failure are returned.

        Raises:
          ClientError: if no answer came.
        """
        used = self._used(request)
        try:
            replies = [self._dialect.attempt(used, functools.partial(self._one, request))]
        except ClientError as error:
            failure = error
        else:
            return _tidied(_merged(self._completed(request, replies, used)))
        raise self._with_models(failure) if failure.status == 404 else failure

    def _used(self, request: Request) -> set[str]:
        """The features that a request has, of those that this kind of server may refuse."""
        given = {
            "n": request.candidates > 1,
            "schema": request.schema is not None,
            "system": bool(request.system),
            "seed": request.seed is not None,
            "temperature": request.temperature is not None,
            "limit": request.max_output_tokens is not None,
        }
        return {name for name in self.features if given[name]}

    def _completed(self, request: Request, replies: list[Reply], used: set[str]) -> list[Reply]:
        """The first reply, and further ones for the candidates it has not given."""
        texts = len(replies[0].texts)
        if texts < request.candidates and replies[0].texts[0]:
            self._dialect.settle("n", "apart")  # it took the request, and gave fewer
            with contextlib.suppress(ClientError):
                while texts < request.candidates:
                    seed = None if request.seed is None else request.seed + texts
                    further = dataclasses.replace(request, candidates=1, seed=seed)
                    send = functools.partial(self._one, further)
                    replies.append(self._dialect.attempt(used - {"n"}, send))
                    texts += 1
        return replies

    def probe(self) -> None:
        """Asks for the model's entry, which generates nothing and costs nothing.

        Raises:
          ClientError: if the key is not good, the server not there, or the model not one of its own.
        """
        try:
            self._within(_PROBE_SECONDS, self._look_up)
            return
        except ClientError as error:
            failure = error
        raise self._with_models(failure) if failure.status == 404 else failure

    def _with_models(self, missing: ClientError) -> ClientError:
        """A 404, explained by the models that there are if the server lists some."""
        try:
            models = self._within(_PROBE_SECONDS, self._models)
        except ClientError:
            models = []
        if not models or self.model in models:
            return missing
        close = difflib.get_close_matches(self.model, models, n=3, cutoff=0.0)
        return faults.no_such_model(self.name, self.model, close, len(models))

    def _one(self, request: Request, ways: dict[str, str]) -> Reply:
        if ways["n"] == "apart" and request.candidates > 1:
            request = dataclasses.replace(request, candidates=1)
        return self._within(request.timeout, lambda: self._send(request, ways))

    def _within(self, seconds: float, call: Callable[[], T]) -> T:
        """The result of the SDK's `call`, or our own error for whatever it raises, without its context:
        an SDK's exception may hold the key."""  # noqa: D205, D209
        try:
            return within(seconds + _GRACE, call, lambda: faults.timed_out(self.where, seconds))
        except UserError:
            raise
        except Exception as error:
            failure = self._failure(error, seconds)
        raise failure

    def _failure(self, error: Exception, seconds: float) -> ClientError:
        known = self._explain(error, seconds)
        if known is not None:
            return known
        words = keys.redact(" ".join(str(error).split()))[:300]
        return ClientError(
            f"{self.where}: the SDK failed with {type(error).__name__}: {words}.", "refused", billed=True
        )

    def _key(self) -> str:
        return keys.read(self.key_names, self.name)

    @abc.abstractmethod
    def _send(self, request: Request, ways: Mapping[str, str]) -> Reply:
        """Sends a request once."""

    @abc.abstractmethod
    def _explain(self, error: Exception, seconds: float) -> ClientError | None:
        """What an SDK's exception means; None for one that is not known."""

    @abc.abstractmethod
    def _look_up(self) -> None:
        """Fails with status 404 if the model does not exist."""

    @abc.abstractmethod
    def _models(self) -> list[str]:
        """The models that the server lists."""


def _merged(replies: Sequence[Reply]) -> Reply:
    if len(replies) == 1:
        return replies[0]
    return Reply(
        texts=tuple(text for reply in replies for text in reply.texts),
        finishes=tuple(finish for reply in replies for finish in reply.finishes),
        model_version=replies[0].model_version,
        tokens_in=sum(reply.tokens_in for reply in replies),
        tokens_out=sum(reply.tokens_out for reply in replies),
        tokens_thinking=sum(reply.tokens_thinking for reply in replies),
        tokens_cached=sum(reply.tokens_cached for reply in replies),
        estimated=any(reply.estimated for reply in replies),
        raw=f"[{', '.join(reply.raw for reply in replies)}]",
        detail="; ".join(sorted({reply.detail for reply in replies if reply.detail})),
    )


def _tidied(reply: Reply) -> Reply:
    """The reply without what no archive should hold: the headers of the request, text without end."""
    raw = reply.raw
    if len(raw) > _LONGEST_RAW:
        raw = json.dumps({"cut": len(raw), "start": raw[:_LONGEST_TEXT]})
    return dataclasses.replace(
        reply,
        texts=tuple(_clean(text[:_LONGEST_TEXT]) for text in reply.texts),
        raw=_clean(raw),
        model_version=_clean(reply.model_version[:_LONGEST_NAME]),
        detail=_clean(reply.detail[:_LONGEST_DETAIL]),
    )


def _clean(text: str) -> str:
    """`text` without keys, and such as UTF-8 can hold: JSON may write half a character."""
    return keys.redact(text).encode("utf-8", "replace").decode()


def as_number(value: Any) -> int:
    """A count out of a server's JSON; 0 for whatever is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
