"""A whole discovery, on few reviews, by one process and by several: the same archive, whoever dies."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jobs
import pytest
import small
import toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRAM = Path(__file__).with_name("hosts_run.py")
SETTINGS = (
    *small.SETTINGS, "search.betas=[0.1]", "search.library=[dpo, ipo]", "search.rungs=[[1, 3, 4], [1, 6, 2]]",
    "search.elites=[1, 3, 2]", "search.candidates=2", "search.generations=1", "evaluation.finalists=1",
    "evaluation.baselines=[dpo]", "run.name=run",
)  # fmt: skip


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    with pytest.MonkeyPatch.context() as patch:
        small.few_reviews(folder, patch)
    return folder / "reviews.csv"


@pytest.fixture(scope="module")
def start(reviews, tmp_path_factory):
    """`start(folder, processes, *arguments, devices=1)`: a job whose processes share a cache."""
    cache = tmp_path_factory.mktemp("cache")

    def start(folder, processes, *arguments, devices=1, variables=()):
        command = [str(PROGRAM), str(reviews), "discover", f"run.directory={folder}", *arguments]
        environment = {**dict(variables), "DISCOJAX_CACHE": str(cache)}
        return jobs.start(command, processes, devices=devices, environment=environment)

    return start


@pytest.fixture(scope="module")
def one_of_two(start, tmp_path_factory):
    """The archive of a run in one process with two devices."""
    folder = tmp_path_factory.mktemp("one")
    codes, _, err = start(folder, 1, *SETTINGS, devices=2).end()
    assert codes == [0], err
    return folder / "run"


def same(folder: Path, expected: Path) -> None:
    """The same proposals and the same numbers, bit for bit, in the archive and in the results."""
    found, wanted = (toy.rows(run / "archive.sqlite") for run in (folder, expected))
    assert found[0] == wanted[0] and len(found[0]) == 4
    assert found[1] == wanted[1] and len(found[1]) > 10
    results, expected_results = (json.loads((run / "results.json").read_text()) for run in (folder, expected))
    assert results["objectives"] == expected_results["objectives"]


def alike(folder: Path, expected: Path) -> None:
    """The same proposals and lanes, and the same numbers up to rounding.

    For one device XLA may order a sum otherwise than for four.
    """
    found, wanted = (toy.rows(run / "archive.sqlite") for run in (folder, expected))
    assert found[0] == wanted[0] and len(found[0]) == 4
    assert len(found[1]) == len(wanted[1]) > 10
    for one, other in zip(found[1], wanted[1], strict=True):
        numbers, others = ([x for x in row if isinstance(x, float)] for row in (one, other))
        assert [x for x in one if isinstance(x, str | int)] == [x for x in other if isinstance(x, str | int)]
        assert numbers == pytest.approx(others, rel=1e-3, abs=1e-3)


def test_two_processes_find_what_one_finds(start, one_of_two, tmp_path):
    codes, out, err = start(tmp_path, 2, *SETTINGS).end()
    assert codes == [0, 0], err
    same(tmp_path / "run", one_of_two)
    assert "leaderboard" in out[0]
    for words in ("leaderboard", "Run ", "Held out", "Traceback"):  # libraries may say what they like
        assert words not in out[1] + err[1], "only the first says something"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_four_processes_find_it_too(start, tmp_path, tmp_path_factory):
    whole = tmp_path_factory.mktemp("four")
    codes, _, err = start(whole, 1, *SETTINGS, devices=4).end()
    assert codes == [0], err
    codes, _, err = start(tmp_path, 4, *SETTINGS).end()
    assert codes == [0] * 4, err
    alike(tmp_path / "run", whole / "run")


def test_one_that_is_killed_ends_the_job_and_resume_goes_on(start, one_of_two, tmp_path):
    """By as many processes as before, or by one: the numbers are those of a run that nothing stopped."""
    settings = (*SETTINGS, "checkpoint.interval=0.5")
    job = start(tmp_path, 2, *settings)
    killed_at_four_lanes(job, job.processes[1], tmp_path)
    codes, _, err = job.end(timeout=600)
    assert codes == [42, -signal.SIGKILL], err
    last = [line for line in err[0].splitlines() if "Process 1 of this job is gone" in line]
    assert len(last) == 1 and "--resume" in last[0] and "Traceback" not in err[0]
    assert 4 <= rows(tmp_path) < rows(one_of_two.parent)
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "run", alone / "run")
    codes, _, err = start(tmp_path, 2, "--resume", str(tmp_path / "run")).end()
    assert codes == [0, 0], err
    same(tmp_path / "run", one_of_two)
    codes, _, err = start(alone, 1, "--resume", str(alone / "run"), devices=2).end()
    assert codes == [0], err
    same(alone / "run", one_of_two)


def test_what_one_process_began_two_go_on_with(start, one_of_two, tmp_path):
    job = start(tmp_path, 1, *SETTINGS, "checkpoint.interval=0.5", devices=2)
    killed_at_four_lanes(job, job.processes[0], tmp_path)
    codes, _, err = job.end(timeout=600)
    assert codes == [-signal.SIGKILL], err
    assert 4 <= rows(tmp_path) < rows(one_of_two.parent)
    codes, _, err = start(tmp_path, 2, "--resume", str(tmp_path / "run")).end()
    assert codes == [0, 0], err
    same(tmp_path / "run", one_of_two)


def test_a_server_that_is_slow_and_then_fails_ends_all_with_one_sentence(start, tmp_path):
    asked = []

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            time.sleep(8)  # and the other process waits, too
            self.send_error(500)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        proposer = (
            "search.proposer=openai", "proposer.models=[some-model]", "proposer.attempts=1",
            "proposer.failures=1", f"proposer.base_url=http://localhost:{server.server_port}/v1",
        )  # fmt: skip
        key = {"OPENAI_API_KEY": "none"}
        codes, _, err = start(tmp_path, 2, *SETTINGS, *proposer, variables=key).end(timeout=600)
    finally:
        server.shutdown()
    assert asked and codes == [2, 2], err
    assert "Traceback" not in err[0] + err[1] and "500" in err[0]


def test_a_mistake_is_told_once(start, tmp_path):
    codes, out, err = start(tmp_path, 2, "serach.lag=1").end(timeout=600)
    assert codes == [2, 2]
    assert "there is no setting 'serach.lag'" in err[0] and "serach" not in out[1] + err[1]


def killed_at_four_lanes(job, process, folder: Path) -> None:
    while rows(folder) < 4 and job.processes[0].poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)


def rows(folder: Path) -> int:
    try:
        with sqlite3.connect(f"file:{folder}/run/archive.sqlite?mode=ro", uri=True, timeout=10) as archive:
            return archive.execute("SELECT count(*) FROM evaluations").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0
