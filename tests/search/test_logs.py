"""What a run logs: read back by those who show it, written once however many processes there are."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
import toy_run
from ports import free_port

from discojax.config import load
from discojax.errors import UserError
from discojax.search import discover, logs
from discojax.search.logs import FILE, Log, jsonl, points

LANE = {
    "kind": "lane", "objective": "dpo", "task": "imdb", "split": "report", "rung": 1, "beta": 0.5, "seed": 3,
    "steps": 40, "status": "diverged", "reward": None, "kl": 2.0, "train_steps": 40, "train_margin": 0.25,
}  # fmt: skip


def run_of(folder: Path, *overrides: str):
    given = (*toy_run.SETTINGS, "search.candidates=4", "search.generations=2", f"run.directory={folder}")
    return load("quickstart", (*given, "run.name=toy", *overrides))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A whole discovery in the toy laboratory that logs to all there is: its folder."""
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DATA_DIR", str(folder))
        patch.setenv("WANDB_CACHE_DIR", str(folder))
        patch.setenv("WANDB_CONFIG_DIR", str(folder))

        def build(config, archive, names, screen, log):
            made = toy.laboratory(archive, config.run.path, lanes=8, chunk=10)
            return dataclasses.replace(made, log=log)

        patch.setattr(discover, "build_laboratory", build)
        there = [name for name, package in logs._EXTRAS.items() if importlib.util.find_spec(package)]
        extras = [f"run.{name}={EXTRAS[name]}" for name in there]
        discover.run(run_of(folder, "proposer.base_url=http://private.example:1/v1", *extras))
    return folder / "toy"


EXTRAS = {"tensorboard": "true", "wandb": "losses"}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point by name, as the lines of `metrics.jsonl` have them: at the lane-steps before them."""
    found, position = defaultdict(list), 0
    for line in rows(folder):
        position += line.get("useful", 0)
        for name, value in points(line).items():
            found[name].append((position, pytest.approx(value, rel=1e-6)))
    return found


def test_every_lane_the_best_so_far_and_what_it_cost_are_logged(logged):
    lines = rows(logged)
    assert {line["kind"] for line in lines} == {"progress", "lane", "scored", "spent"}
    best = [line["best"] for line in lines if line["kind"] == "scored" and line["rung"] == 0]
    assert len(best) == 3 and best == sorted(best), "of the library and both generations"
    names = expected(logged)
    objectives = {line["objective"] for line in lines if line["kind"] == "lane"} - {"sft"}
    assert len(objectives) >= 4 + 4
    for quantity in ("loss", "margin", "accuracy", "grad_norm"):
        assert {n.split("/")[2] for n in names if n.startswith(f"search/{quantity}/")} >= objectives
    assert {"search/best/rung_0", "search/best/rung_1", "spent/dollars", "progress/useful"} <= names.keys()
    assert {"report/reward/dpo/beta_0.1", "report/kl/dpo/beta_0.5"} <= names.keys()


def test_tensorboard_reads_what_was_logged(logged):
    pytest.importorskip("tensorboardX")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(logged / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    shown = {n: [(e.step, e.value) for e in read.Scalars(n)] for n in read.Tags()["scalars"]}
    assert shown == expected(logged)
    lane_steps = sum(line["useful"] for line in rows(logged) if line["kind"] == "progress")
    assert shown["progress/useful"][-1][0] == lane_steps > 1000


def records(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: seven bytes, then LevelDB's log in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = -place % 32768 or 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_weights_and_biases_is_handed_the_same_and_nothing_private(logged):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    (file,) = logged.glob("wandb/offline-run-*/*.wandb")
    found = defaultdict(list)
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in record.history.item}
        for name, value in items.items():
            if not name.startswith("_") and name != "steps":
                found[name].append((items["steps"], value))
    assert found == expected(logged)
    assert b"private.example" not in file.read_bytes()
    assert b"reference_chosen_logps" not in file.read_bytes(), "no code"


@pytest.mark.parametrize(("setting", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_is_told_before_anything_is_done(setting, package, tmp_path, monkeypatch):
    def find_spec(name, *_):  # as where it is not installed, or only a folder has its name
        return None if setting == "tensorboard" else importlib.machinery.ModuleSpec(name, None)

    monkeypatch.setattr(logs.importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match=rf"{package}: pip install 'discojax\[{setting}\]'"):
        discover.run(run_of(tmp_path, f"run.{setting}={EXTRAS[setting]}"))
    assert not any(tmp_path.iterdir())


def test_nothing_is_plotted_unless_it_is_asked_for(tmp_path):
    config = run_of(tmp_path)
    with logs.opened(config) as log:
        log(**LANE)
    assert [path.name for path in config.run.path.iterdir()] == [FILE]


def test_a_line_has_points_for_its_numbers_alone():
    assert points(LANE) == {"report/kl/dpo/beta_0.5": 2.0, "report/margin/dpo/beta_0.5": 0.25}
    assert points({"kind": "held_out", "accuracy": 0.5, "accuracy_interval": [0, 1], "better": True}) == {
        "held_out/accuracy": 0.5
    }


def test_lines_are_whole_behind_one_that_a_kill_cut_short(tmp_path):
    log = Log((jsonl(tmp_path / FILE),))
    log("step", step=1, loss=float("nan"))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "st')
    log("step", step=2)
    first, torn, last = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(first)["loss"] is None and torn == '{"kind": "st' and json.loads(last)["step"] == 2


def test_steps_that_are_taken_again_are_logged_once(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = run_of(tmp_path, "run.tensorboard=true")
    for first in (1, 3):  # killed after step 4, when step 2 was kept
        with logs.opened(config, retaken=True) as log:
            for step in range(first, first + 4):
                log("step", step=step, loss=first + step / 10)
    wanted = [(1, 1.1), (2, 1.2), (3, 3.3), (4, 3.4), (5, 3.5), (6, 3.6)]
    assert [(line["step"], line["loss"]) for line in rows(config.run.path)] == wanted
    read = EventAccumulator(str(config.run.path / "tensorboard"))
    read.Reload()
    shown = [(event.step, pytest.approx(event.value)) for event in read.Scalars("step/loss")]
    assert wanted == shown


def test_a_run_that_goes_on_plots_behind_what_it_had(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = run_of(tmp_path, "run.tensorboard=true")
    for useful in (10, 7):
        with logs.opened(config) as log:
            log("progress", useful=useful)
    read = EventAccumulator(str(config.run.path / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("progress/useful")] == [10, 17]


ONE_OF_TWO = """
import sys
import jax
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
from discojax.config import load
from discojax.search import logs
config = load("quickstart", ["run.directory={folder}", "run.name=p" + sys.argv[1], "run.tensorboard=true"])
with logs.opened(config) as log:
    log("spent", dollars=1.0)
"""


def test_of_several_processes_the_first_alone_writes(tmp_path):
    pytest.importorskip("tensorboardX")
    program = ONE_OF_TWO.format(port=free_port(), folder=tmp_path)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(i)], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()[-2000:]
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["p0", FILE, "tensorboard", *(path.name for path in (tmp_path / "p0" / "tensorboard").iterdir())]
    )
