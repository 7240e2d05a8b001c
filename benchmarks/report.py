"""The report of a run with a thousand candidates: how long the command takes, and a browser to open it.

The command is run twice in processes of its own: once with nothing kept of the run's programs, and once
after that, as after a run, which writes reports while it goes on. Processor time is given beside the
clock's, since whatever else a machine does lengthens the one only.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row

__all__ = ["rows"]

CANDIDATES = 1000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on the report."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "report"))
    from runs import write_run

    count = 20 if quick else CANDIDATES
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        write_run(folder, proposed=count, generations=10)
        own = {"DISCOJAX_CACHE": str(Path(root) / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "true"}
        command = [sys.executable, "-m", "discojax.launch", "report", str(folder)]

        def report() -> None:
            subprocess.run(command, env=os.environ | own, check=True, stdout=subprocess.DEVNULL)

        what = f"report of {count:,} candidates"
        taken = [_seconds(report) for _ in ("first", "again", "again")]
        file = folder / "report.html"
        found = [
            Row(f"{what}, of a run that never wrote one", f"{taken[0][0]:.1f}", "", None, _note(taken[0])),
            Row(what, f"{min(taken[1:])[0]:.1f}", "", None, _note(min(taken[1:]))),
            Row(f"{what}: the page", f"{file.stat().st_size / 2**20:.2f}", "", None, "MB"),
        ]
        return found + _opened(what, file)


def _note(taken: tuple[float, float]) -> str:
    return f"s; {taken[1]:.1f} s of a processor"


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """By the clock, and of processors, of what `work` has processes of its own do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    work()
    taken = time.perf_counter() - begun
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def _opened(what: str, file: Path) -> list[Row]:
    """Seconds until the page is of use, with all plots in sight, and until the last plot has its marks."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None or find_spec("playwright") is None:
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        _load(chromium, file)  # with what a browser does once
        ready, drawn, used = min(_load(chromium, file) for _ in range(3))
        chromium.close()
    note = f"s; {used:.1f} s of a processor until the last plot"
    return [
        Row(f"{what}: opens in Chromium with all plots in sight", f"{ready:.1f}", "", None, note),
        Row(f"{what}: the last plot is drawn", f"{drawn:.1f}", "", None, "s"),
    ]


def _load(chromium: Any, file: Path) -> tuple[float, float, float]:
    """Seconds until both marks of the page's script, and of the processor that its thread took."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    metrics = context.new_cdp_session(tab)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
    tab.goto(file.as_uri(), wait_until="commit")
    tab.wait_for_selector("html[data-drawn=yes]", timeout=300_000)
    values = {each["name"]: each["value"] for each in metrics.send("Performance.getMetrics")["metrics"]}
    at = tab.evaluate(
        "['ready', 'drawn'].map(name => performance.getEntriesByName(name)[0].startTime / 1000)"
    )
    context.close()
    return at[0], at[1], values["TaskDuration"]
