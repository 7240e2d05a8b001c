"""The one place where the name of a kind of server becomes a client of it."""

from __future__ import annotations

from typing import Any, Literal

from discojax.errors import UserError, nearest
from discojax.proposers.client import Client
from discojax.proposers.retry import Patience, Retrying

__all__ = ["SERVERS", "Server", "connect"]

Server = Literal["gemini", "gemini-legacy", "openai"]

SERVERS: tuple[Server, ...] = ("gemini", "gemini-legacy", "openai")


def connect(
    server: Server,
    model: str,
    *,
    base_url: str | None = None,
    key_variable: str | None = None,
    thinking: int | str | None = None,
    patience: Patience | None = None,
    **options: Any,
) -> Retrying:
    """A patient client of `model` on `server`; its SDK is imported here, nothing is sent yet.

    Args:
      server: what is spoken: `openai` is any server with OpenAI's `/chat/completions`.
      model: as the server calls it.
      base_url: of another server than the SDK's own.
      key_variable: the environment variable that holds the key; by default the SDK's usual ones.
      thinking: how much to think: a number of tokens, or a level such as "low".
      patience: how often and how long it tries again.
      options: further ones of the client's class, such as Gemini's `api_version`.

    Raises:
      UserError: if the SDK is not installed, naming the extra that has it.
    """
    made: Client
    if server == "gemini":
        from discojax.proposers.gemini import Gemini

        made = Gemini(model, base_url=base_url, key_variable=key_variable, thinking=thinking, **options)
    elif server == "gemini-legacy":
        from discojax.proposers.gemini_legacy import GeminiLegacy

        made = GeminiLegacy(model, base_url=base_url, key_variable=key_variable, thinking=thinking, **options)
    elif server == "openai":
        from discojax.proposers.openai import OpenAI

        made = OpenAI(model, base_url=base_url, key_variable=key_variable, thinking=thinking, **options)
    else:
        raise UserError(f"There is no kind of server {server!r}.{nearest(server, SERVERS)}")
    return Retrying(made, patience or Patience())
