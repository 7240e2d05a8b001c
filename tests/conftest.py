"""Shared by all tests."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for `import ports`
settings.register_profile("discojax", deadline=None)  # nothing is asserted about the clock
settings.load_profile("discojax")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config: pytest.Config) -> None:
    # Before any test imports JAX: the same numbers on every machine, unless the GPU is what is tested.
    if config.option.markexpr != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # The fast tests' time is that of compiling, and half of that is LLVM's optimising what runs once.
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("XLA_FLAGS", QUICK)
    # What is compiled is compiled once for all tests, their worker processes and the commands they run.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="discojax-tests-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # What is built from data is built once too, and not in the user's own cache.
    if "DISCOJAX_CACHE" not in os.environ:
        built = os.environ["DISCOJAX_CACHE"] = tempfile.mkdtemp(prefix="discojax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(built, ignore_errors=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With `DISCOJAX_REQUIRE=parity,browser`, a test marked as one of these that is skipped has failed."""
    report = yield
    required = [name for name in os.environ.get("DISCOJAX_REQUIRE", "").split(",") if name]
    if report.skipped and any(item.get_closest_marker(name) for name in required):
        report.outcome = "failed"
        report.longrepr = f"skipped, but DISCOJAX_REQUIRE={','.join(required)}: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone that the tests are in."""
    return Path(__file__).resolve().parents[1]
