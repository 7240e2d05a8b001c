"""Shared by the tests of the clients: one of each SDK, by the name of its kind of server."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from discojax.proposers import replies
from discojax.proposers.client import Request, Turn
from discojax.proposers.sdk import SdkClient

CANARY = "cnry+7/4be1f09d2a6c4e5f8b3a"
KEY_NAMES = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")
SDKS = {"gemini": "google.genai", "openai": "openai", "gemini-legacy": "google.generativeai"}


def installed(module: str) -> bool:
    """Whether a module is there, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(not installed(sdk), reason=f"{sdk} is not installed"))
    for kind, sdk in SDKS.items()
]

REQUEST = Request(
    system="You write losses.",
    turns=(Turn("user", "Write a loss."),),
    schema=replies.schema(),
    max_output_tokens=500,
    timeout=60.0,
)


def make(kind: str, url: str, model: str = "gemini-flash-latest", **options: Any) -> SdkClient:
    """The client of a kind of server that is asked at `url`, without patience."""
    if kind == "gemini":
        from discojax.proposers.gemini import Gemini

        return Gemini(model, base_url=url, **options)
    if kind == "openai":
        from discojax.proposers.openai import OpenAI

        return OpenAI(model, base_url=f"{url}/v1", **options)
    from discojax.proposers.gemini_legacy import GeminiLegacy

    return GeminiLegacy(model, base_url=url, **options)
