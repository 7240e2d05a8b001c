"""Shared by the tests of the proposers: the scripted server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `from server import Server`

from server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A language model's server that does what its `state` says."""
    with Server() as one:
        yield one
