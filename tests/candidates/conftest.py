"""Shared by the tests of the gate: the corpus, and one warm checking process for the session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

collect_ignore_glob = ["corpus/*"]  # texts to be read, not modules to be tested

sys.path.insert(0, str(Path(__file__).parent))  # for `import corpus` and `import generate`

from discojax.candidates.checker import Checker  # noqa: E402


@pytest.fixture(scope="session")
def checker() -> Iterator[Checker]:
    """A warm checking process."""
    one = Checker()
    one.warm()
    yield one
    one.close()
