"""Keys: read from the environment when they are used, and kept out of everything that is written."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from discojax.proposers.client import ClientError

__all__ = ["GEMINI", "OPENAI", "find", "hidden", "read", "redact", "variables"]

GEMINI = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Environment variables with the key of Gemini, in the order in which `google-genai` reads them."""

OPENAI = ("OPENAI_API_KEY",)
"""Those with OpenAI's."""

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # characters; replacing shorter values would garble text that only looks alike
_SHAPES = re.compile(
    r"\bAIza[0-9A-Za-z_-]{20,}|\bAQ\.[0-9A-Za-z_-]{20,}|\bsk-[0-9A-Za-z_*-]{6,}"
    r"|(?<=[?&]key=)[^&\s\"'\\]+|(?<=Bearer )[^\s\"',\\]{8,}|(?<=://)[^/\s:@\"\\]+:[^/\s@\"\\]+(?=@)"
)
_REMOVED = "(key removed)"
_used: set[str] = set()  # also those whose variables are called otherwise, or have changed since


def find(names: tuple[str, ...]) -> str | None:
    """The value of the first of these environment variables that has one."""
    for name in names:
        if value := os.environ.get(name, "").strip():
            return value
    return None


def read(names: tuple[str, ...], used_for: str) -> str:
    """The key in the first of the environment variables `names` that is set.

    Raises:
      ClientError: a fatal one, if none is or the value cannot be a key.
    """
    value = find(names)
    if value is None:
        raise ClientError(
            f"There is no key for {used_for}: set the environment variable {' or '.join(names)}, "
            f"for example with `export {names[-1]}=...`.",
            "fatal",
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ClientError(
            f"The key in {' or '.join(names)} has spaces or characters that no key has: copy it once more.",
            "fatal",
        )
    _used.add(value)
    return value


@contextmanager
def hidden(*others: str) -> Iterator[None]:
    """While it lasts no key of a proposer is in the environment, which a process started then inherits.

    Args:
      others: further variables that hold one; "" is none.
    """
    names = {*GEMINI, *OPENAI, *others} - {""}
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def variables() -> list[str]:
    """Names of the environment variables whose values are treated as secret."""
    return [name for name in os.environ if _SECRET_NAME.search(name)]


def redact(text: str) -> str:
    """`text` without any secret of the environment, as it stands or escaped, nor what looks like a key."""
    patterns = [*(re.compile(re.escape(secret)) for secret in set(_secrets())), _SHAPES]
    found = sorted(match.span() for pattern in patterns for match in pattern.finditer(text))
    kept, at = [], 0
    for start, end in found:  # they may overlap: one may be a part of the other
        if start >= at:
            kept += [text[at:start], _REMOVED]
        at = max(at, end)
    return "".join([*kept, text[at:]])


def _secrets() -> Iterator[str]:
    for value in {*_used, *(os.environ.get(name, "").strip() for name in variables())}:
        if len(value) >= _SHORTEST:
            yield value
            yield urllib.parse.quote(value, safe="")
            yield json.dumps(value)[1:-1]
