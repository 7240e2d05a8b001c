"""Shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread a test run: small programs gain nothing from more, and results stay comparable.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone that the tests are in."""
    return Path(__file__).resolve().parents[1]
