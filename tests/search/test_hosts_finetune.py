"""One policy, trained by one process and by several: the same weights, whoever dies."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest

pytest.importorskip("transformers")

import jobs
import policies
from safetensors.numpy import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = (
    "finetune.pairs=24", "finetune.batch=8", "finetune.micro_batch=4", "finetune.dtype=float32",
    "finetune.held_out=0.3", "finetune.completion_tokens=16", "finetune.beta=0.1", "run.name=run",
)  # fmt: skip
ALL_WEIGHTS = ("finetune.lora.rank=0", "finetune.learning_rate=0.003", "finetune.steps=6")
ADAPTERS = ("finetune.lora.rank=2", "finetune.learning_rate=0.01", "finetune.steps=4")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return policies.make(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def start(home, tmp_path_factory):
    """`start(folder, processes, *arguments, devices=1)`: `train --policy` in processes that share a cache."""
    compiled = tmp_path_factory.mktemp("cache")

    def start(folder, processes, *arguments, devices=1, policy="gpt2", cache=None):
        command = ["-m", "discojax.launch", "train", f"run.directory={folder}", *arguments]
        if "--resume" not in arguments:
            command += ["--policy", str(home / policy), "--data", str(home / "pairs.jsonl"), *SHORT]
        environment = {"DISCOJAX_CACHE": str(cache or compiled)}
        return jobs.start(command, processes, devices=devices, environment=environment)

    return start


@pytest.fixture(scope="module")
def one_of_two(start, tmp_path_factory):
    """The run of one process with two devices."""
    folder = tmp_path_factory.mktemp("one")
    codes, _, err = start(folder, 1, *ALL_WEIGHTS, devices=2).end()
    assert codes == [0], err
    return folder / "run"


def alike(file, expected):
    """The same tensors, up to rounding."""
    found, wanted = load_file(file), load_file(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], atol=1e-6, rtol=0, err_msg=name)


def same(run, expected):
    """The same weights and what was measured of them, up to rounding."""
    alike(*(folder / "policy" / "model.safetensors" for folder in (run, expected)))
    measured, expected_measured = (
        json.loads((folder / "results.json").read_text())["held_out"] for folder in (run, expected)
    )
    assert measured["accuracy"] == expected_measured["accuracy"]
    assert measured["margin"] == pytest.approx(expected_measured["margin"], abs=1e-5)


def test_two_processes_that_divide_a_policy_train_what_one_trains(start, home, one_of_two, tmp_path):
    own = tmp_path / "cache"  # reference log-probabilities are computed by both
    codes, out, err = start(tmp_path / "runs", 2, *ALL_WEIGHTS, cache=own).end()
    assert codes == [0, 0], err
    run = tmp_path / "runs" / "run"
    same(run, one_of_two)
    before = load_file(home / "gpt2" / "model.safetensors")
    after = load_file(run / "policy" / "model.safetensors")
    assert max(np.abs(after[name] - tensor).max() for name, tensor in before.items()) > 1e-3
    assert "6 steps of discopop" in out[0] and "held-out pairs of" in out[0]
    assert "pairs" not in out[1] + err[1], "only the first says something"
    files = {path.name for path in run.iterdir()}
    assert files == {"config.yaml", "metrics.jsonl", "policy", "results.json"}
    assert {path.name for path in (run / "policy").iterdir()} >= {"config.json", "tokenizer.json"}


def test_adapters_are_merged_by_two_processes_too(start, tmp_path):
    settings = (*ADAPTERS, "finetune.data_devices=2")
    files = []
    for processes, devices in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        codes, _, err = start(folder, processes, *settings, devices=devices, policy="llama").end()
        assert codes == [0] * processes, err
        files.append(folder / "run" / "policy" / "model.safetensors")
    alike(*files)


def test_one_that_is_killed_ends_the_job_and_resume_goes_on(start, tmp_path):
    settings = (*ADAPTERS, "finetune.save=adapters", "finetune.checkpoint=1")
    codes, _, err = start(tmp_path / "whole", 1, *settings, devices=2).end()
    assert codes == [0], err
    job, done = _in_training(start, tmp_path, settings)
    job.processes[1].send_signal(signal.SIGKILL)
    codes, _, err = job.end(timeout=600)
    assert codes == [42, -signal.SIGKILL], err
    assert "Process 1 of this job is gone" in err[0] and "--resume" in err[0] and "Traceback" not in err[0]
    assert not (tmp_path / "run" / "policy").exists()
    codes, _, err = start(tmp_path, 2, "--resume", str(tmp_path / "run")).end()
    assert codes == [0, 0], err
    alike(
        *(
            folder / "run" / "policy" / "adapter_model.safetensors"
            for folder in (tmp_path, tmp_path / "whole")
        )
    )
    steps = [json.loads(line) for line in done.read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == [1, 2, 3, 4]


def test_one_that_is_taken_back_stops_all_and_what_it_had_is_kept(start, tmp_path):
    # No checkpoint falls due on the way, however late the signal: what is kept is kept since it was stopped.
    long = ("finetune.steps=400", "finetune.epochs=400", "finetune.checkpoint=1000")
    job, _ = _in_training(start, tmp_path, (*ADAPTERS, *long))
    job.processes[1].send_signal(signal.SIGTERM)
    codes, _, err = job.end(timeout=600)
    assert codes == [0, 0], err
    assert "--resume" in err[0] and "Traceback" not in err[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["0"]


def _in_training(start, folder, settings):
    """A job of two that has taken a step, and where it says so."""
    job, file = start(folder, 2, *settings), folder / "run" / "metrics.jsonl"
    while not file.exists() and job.processes[0].poll() is None:
        time.sleep(0.02)
    return job, file


def test_a_mistake_is_told_once(start, tmp_path):
    codes, out, err = start(tmp_path, 2, "finetune.model_devices=3").end()
    assert codes == [2, 2]
    assert "model_devices" in err[0] and "model_devices" not in out[1] + err[1]
