"""A machine that is taken back, or dies: the run goes on in the middle of its lanes, and ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import toy

from discojax import launch
from discojax.config import load
from discojax.search import laboratory
from discojax.search.laboratory import name_of
from discojax.search.records import EvaluationKey

SETTINGS = (*small.SETTINGS, "evaluation.steps=12", "evaluation.held_out_pairs=0")
OBJECTIVES = ("--objectives", "dpo,slic,exp")


def words(folder, *more):
    return ["evaluate", *OBJECTIVES, *SETTINGS, f"run.directory={folder}", "run.name=small", *more]


def rows(folder):
    return toy.rows(folder / "small" / "archive.sqlite")[1]


def steps_taken(folder):
    """Lane-steps in all sessions of a run, of its metrics."""
    lines = (folder / "small" / "metrics.jsonl").read_text().splitlines()
    return sum(line["useful"] for line in map(json.loads, lines) if line["kind"] == "progress")


@pytest.fixture(scope="module")
def whole(few_reviews, tmp_path_factory):
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch.main(words(folder)) == 0
    assert not (folder / "small" / "checkpoints").exists(), "a run shorter than the interval keeps nothing"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("call", [3])
def test_sigterm_keeps_the_lanes_says_so_in_a_sentence_and_exits_0(call, whole, tmp_path, monkeypatch, capfd):
    calls = []
    before = laboratory.train

    def train(station, jobs, progress, *arguments, **named):
        def told(report):
            progress(report)
            calls.append(report)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)

        return before(station, jobs, told, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(laboratory, "train", train)
        assert launch.main(words(tmp_path)) == 0
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("Stopped.") and f"evaluate --resume {tmp_path / 'small'}` goes on" in said
    assert len(calls) == call
    assert [p.name for p in (tmp_path / "small" / "checkpoints").iterdir()] == ["0"]
    assert launch.main(["evaluate", "--resume", str(tmp_path / "small")]) == 0
    assert rows(tmp_path) == rows(whole)
    assert steps_taken(tmp_path) == steps_taken(whole), "no step was taken twice"
    assert not (tmp_path / "small" / "checkpoints").exists(), "nothing is in training any more"


def test_what_a_checkpoint_calls_a_job_is_its_key_as_json():
    key = EvaluationKey("abc", "dpo", "imdb", "report", 4000, 0.1, 7, 40, 2e-3)
    assert EvaluationKey(**json.loads(name_of(key))) == key
    assert len({name_of(key), name_of(EvaluationKey(**{**json.loads(name_of(key)), "beta": 0.5}))}) == 2


def test_the_identity_of_a_run_does_not_depend_on_how_often_it_is_kept(tmp_path):
    from discojax.search import archive as archives
    from discojax.search.opening import open_run

    first = load("quickstart", [f"run.directory={tmp_path}"])
    archives.close(open_run(first, resume=False))
    again = load("quickstart", [f"run.directory={tmp_path}", "checkpoint.interval=5", "checkpoint.keep=1"])
    archives.close(open_run(again, resume=True))


def test_a_run_that_is_stopped_before_its_archive_is_there_can_go_on(tmp_path, monkeypatch):
    from discojax.search import archive as archives
    from discojax.search.opening import open_run

    config = load("quickstart", [f"run.directory={tmp_path}"])
    with monkeypatch.context() as patch:
        patch.setattr(archives, "open_archive", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            open_run(config, resume=False)
    assert load(config.run.path / "config.yaml").run == config.run
    archives.close(open_run(load(config.run.path / "config.yaml"), resume=True))


def start(few_reviews, folder, seconds, *more):
    log = (folder / "log.txt").open("a")
    resumed = (folder / "small" / "config.yaml").exists()
    line = ["evaluate", "--resume", str(folder / "small")] if resumed else words(folder)
    script = Path(__file__).with_name("small_run.py")
    command = [sys.executable, str(script), str(few_reviews), str(seconds), *line, *more]
    return subprocess.Popen(command, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_it_ends_with_the_same_bits(few_reviews, whole, tmp_path):
    rng = random.Random(0)
    kept = 0
    for _ in range(5):
        process = start(few_reviews, tmp_path, 0.2, "checkpoint.interval=0.3")
        archive, until = tmp_path / "small" / "metrics.jsonl", time.monotonic() + 120
        size = archive.stat().st_size if archive.exists() else 0
        while time.monotonic() < until and process.poll() is None:  # until it trains, and then a while
            if archive.exists() and archive.stat().st_size > size:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), (tmp_path / "log.txt").read_text()[-3000:]
        kept += (tmp_path / "small" / "checkpoints").exists()
    assert kept >= 2
    process = start(few_reviews, tmp_path, 0, "checkpoint.interval=0.3")
    assert process.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert rows(tmp_path) == rows(whole)
    with sqlite3.connect(tmp_path / "small" / "archive.sqlite") as archive:
        assert archive.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_told_to_end_exits_0(few_reviews, whole, tmp_path):
    process = start(few_reviews, tmp_path, 0.5)
    metrics = tmp_path / "small" / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=120) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert "goes on where it left off" in (tmp_path / "log.txt").read_text()
    assert start(few_reviews, tmp_path, 0).wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert rows(tmp_path) == rows(whole)
