"""`google-generativeai` in an environment of its own: what it pins does not go with the rest.

`DISCOJAX_LEGACY_PYTHON` names the Python of an environment with the extra `gemini-legacy` and pytest.
Where the SDK is installed beside everything else, the other tests of the clients meet it themselves.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("DISCOJAX_LEGACY_PYTHON", "")


@pytest.mark.skipif(not PYTHON, reason="DISCOJAX_LEGACY_PYTHON names no Python")
def test_the_old_sdk_in_its_own_environment(repository: Path) -> None:
    tests = [f"tests/proposers/test_{name}.py" for name in ("clients", "faults", "retry")]
    # The options of this project name plugins that an environment with the SDK alone need not have.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = [PYTHON, "-W", "error::FutureWarning", "-m", "pytest", *options, *tests]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=250, env=environment
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "gemini-legacy" not in run.stdout or "google.generativeai is not installed" not in run.stdout
