"""The one place where the name of a kind of server becomes a client of it."""

from __future__ import annotations

from typing import Any, Literal

from discojax.proposers.client import Client

__all__ = ["Server", "connect"]

Server = Literal["gemini", "gemini-legacy", "openai"]


def connect(
    server: Server,
    model: str,
    *,
    base_url: str | None = None,
    key_variable: str | None = None,
    thinking: int | str | None = None,
    attempts: int = 6,
    give_up_after: int = 5,
    **options: Any,
) -> Client:
    """A patient client of `model` on `server`; its SDK is imported here, nothing is sent yet.

    Args:
      server: what is spoken: `openai` is any server with OpenAI's `/chat/completions`.
      model: as the server calls it.
      base_url: of another server than the SDK's own.
      key_variable: the environment variable that holds the key; by default the SDK's usual ones.
      thinking: how much to think: a number of tokens, or a level such as "low".
      attempts: the most times one request is sent.
      give_up_after: requests that fail one after another before no more is sent.
      options: further ones of the client's class.

    Raises:
      UserError: if the SDK is not installed, naming the extra that has it.
    """
    raise NotImplementedError
