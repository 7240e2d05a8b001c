"""What a language model is asked, what it answers, and how asking can fail, whoever serves it.

A `Client` speaks to one model of one server and makes one attempt; `retry.Retrying` wraps it with
patience. Importing this module needs no SDK.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from discojax.errors import UserError

__all__ = ["Client", "ClientError", "Finish", "Kind", "Reply", "Request", "Turn", "request_hash"]

Finish = Literal["stop", "length", "safety", "recitation", "empty", "other"]
"""Why a text ends: of its own accord; at the token limit, which thinking may have reached before a
word was written; withheld as unsafe, or as a recitation; nothing in it though it ended of its own
accord; for a reason not known here."""

Kind = Literal["transient", "rate_limited", "refused", "quota", "fatal", "stopped"]
"""What a failure means: the same request may succeed later (`transient`), or after a pause
(`rate_limited`); it never will, though another might (`refused`); none will today (`quota`), or ever
(`fatal`: key, model or address is wrong); no more is sent, because so many failed in a row or because
the run is to end (`stopped`)."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Literal["user", "model"]
    text: str


@dataclass(frozen=True)
class Request:
    """One question to a language model; what is None is left to the server.

    Attributes:
      system: the system instruction.
      turns: the conversation so far; the last turn is the user's.
      temperature: of sampling.
      max_output_tokens: of one candidate, thinking included where the server counts it so.
      candidates: how many answers are wanted.
      seed: of the server's sampling, where it has one.
      schema: the JSON schema the answer must have; None for plain text.
      timeout: seconds for one attempt, from its start to the last byte.
    """

    system: str
    turns: tuple[Turn, ...]
    temperature: float | None = 1.0
    max_output_tokens: int | None = 8192
    candidates: int = 1
    seed: int | None = None
    schema: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    timeout: float = 120.0


@dataclass(frozen=True)
class Reply:
    """What came back, one entry of `texts` and `finishes` for each candidate, at least one.

    Attributes:
      texts: the answers without the model's thoughts; "" where nothing came.
      finishes: why each of them ends.
      model_version: what the server says answered, which an alias does not tell.
      tokens_in: tokens of the prompt.
      tokens_out: tokens generated, thinking included: what is paid for.
      tokens_thinking: the part of `tokens_out` spent on thinking.
      tokens_cached: the part of `tokens_in` that the server had kept from an earlier request.
      estimated: whether the server reported no usage, and the numbers are guesses on the high side.
      raw: the server's own JSON; a list of them where several requests were needed.
      detail: what the server said of an answer it withheld, for a reason; "" if nothing.
    """

    texts: tuple[str, ...]
    finishes: tuple[Finish, ...]
    model_version: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_thinking: int = 0
    tokens_cached: int = 0
    estimated: bool = False
    raw: str = "{}"
    detail: str = ""

    def __post_init__(self) -> None:
        if not self.texts or len(self.texts) != len(self.finishes):
            raise ValueError("a reply has at least one text, and as many finishes")

    def to_json(self) -> str:
        """All of it as one line of JSON, for a cache or a transcript."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Reply:
        """The reply that `to_json` wrote.

        Raises:
          ValueError: if it is none.
        """
        try:
            values = json.loads(text)
            texts, finishes = tuple(values.pop("texts")), tuple(values.pop("finishes"))
            if not set(finishes) <= set(get_args(Finish)):
                raise ValueError(f"unknown finish among {finishes}")
            return Reply(texts, finishes, **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a reply: {error}") from None


class ClientError(UserError):
    """No reply came; the text says why and what to do, and holds no key.

    Attributes:
      kind: what may be done about it.
      retry_after: seconds the server asked to wait, if it said so.
      status: the HTTP status, if there was a response.
      billed: whether the server may have answered, and bill it, though the answer did not come.
    """

    def __init__(
        self,
        message: str,
        kind: Kind,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        billed: bool = False,
    ):
        self.kind: Kind = kind
        self.retry_after = retry_after
        self.status = status
        self.billed = billed
        super().__init__(message)

    @property
    def final(self) -> bool:
        """Whether no further request has a chance: the run should save its state and stop."""
        return self.kind in ("quota", "fatal", "stopped")


class Client(Protocol):
    """One model of one server. Safe to use from several threads.

    Attributes:
      name: of the kind of server, such as "gemini".
      model: as the server is asked for it.
      options: further settings that decide an answer, such as how much to think.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def options(self) -> Mapping[str, Any]: ...  # noqa: D102

    def generate(self, request: Request) -> Reply:
        """The answer to one request.

        Raises:
          ClientError: if none came.
        """
        ...

    def probe(self) -> None:
        """Asks the server, without generating, whether the key is good and the model there.

        Raises:
          ClientError: if not, saying what is: the nearest models for one that does not exist.
        """
        ...


def request_hash(client: Client, request: Request) -> str:
    """64 hexadecimal digits over all that decides the answer: the client's model and options, and the
    request without its timeout. Two equal ones need to be paid for only once."""  # noqa: D205, D209
    asked = {k: v for k, v in dataclasses.asdict(request).items() if k != "timeout"}
    whole = {"client": client.name, "model": client.model, "options": dict(client.options), "request": asked}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
