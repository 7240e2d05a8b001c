"""A plan as people read it, and as programs do."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from discojax.config import load
from discojax.population.memory import Usage
from discojax.population.plan import Measured, Most, Plan, Suggestion
from discojax.population.plan_costs import Time, Traffic
from discojax.population.topology import find_topology
from discojax.report.plan import as_json, show
from discojax.search.planning import work_of

GIB = 2**30


@pytest.fixture(scope="module")
def plan():
    work, _ = work_of(load(None, ["population.lanes=64"]), 16)
    return Plan(
        find_topology("v5e:4x4"),
        {"lane": 8, "data": 2, "model": 1},
        work,
        Usage(2 * GIB, 5 * GIB, 0, 10**7),
        Measured(256, 8 * GIB),
        64 * 10**12,
        1.07,
        9e12,
        0.4,
        Time(0.05, 0.02, 0.001),
        (Traffic("data", "all-gather", 1, 1024), Traffic("data", "all-reduce", 2, 3e8)),
        Most(128, Usage(4 * GIB, 10 * GIB, 0, 10**7), 144, 15 * GIB),
        Suggestion({"lane": 16, "data": 1, "model": 1}, "every chip has lanes of its own"),
    )


def shown(plan):
    out = io.StringIO()
    show(plan, console=Console(file=out, width=200))
    return out.getvalue()


def test_it_says_what_fits_what_it_costs_and_what_is_said(plan):
    text = shown(plan)
    for part in (
        "v5e:4x4 (v5litepod-16): 16 chips of 15.75 GiB, mesh {lane: 8, data: 2, model: 1}; 64 lanes, 8 a",
        "64 TFLOP, 4 TFLOP a chip, counted from the shape; the compiler, without loops, counts 1.07 times",
        "Estimated: 50 ms a step, 1,280 lane-steps a second, bound by compute: 50 ms for operations at 40 %",
        "It fits. Memory is bound by measuring them.",
        "Most lanes: 128, compiled: 14.01 GiB of 15.75 GiB to train, 15.00 GiB to measure; 144 did not fit "
        "(population.lanes=128). Memory is bound by measuring them.",
        "Suggested: 'population.mesh={lane: 16, data: 1, model: 1}': every chip has lanes of its own.",
        "Nothing along lane.",
    ):
        assert part in text
    assert "temporaries (activations, gradients)" in text and "31.7 %" in text
    assert re.search(r"while they are measured on 256 prompts +8.00 GiB +50.8 %", text)
    # 15,625 steps of 0.05 s on sixteen chips at 1.20 an hour.
    assert "A million lane-steps: $4.17 at $1.20 a chip-hour" in text


def test_one_that_does_not_fit_says_so_and_what_would(plan):
    there = Suggestion({"lane": 4, "data": 1, "model": 4}, "`model` divides them", Usage(GIB, GIB, 0, 0))
    text = shown(replace(plan, usage=None, time=None, most=Most(0, None, 64), suggestion=there))
    assert "It does not fit." in text and "> 15.75 GiB" in text and "Not even one lane a chip" in text
    assert "Compiled for it: 2.00 GiB of 15.75 GiB." in text
    assert "Chips say nothing to one another" in shown(replace(plan, traffic=()))


def test_lanes_that_can_be_trained_and_not_measured_do_not_fit(plan):
    for much in (16 * GIB, None):
        unmeasured = replace(plan, measured=Measured(256, much))
        assert not unmeasured.fits
        assert "It could be trained, but not measured: lower population.lanes or eval" in shown(unmeasured)
        assert unmeasured.memory_bound == "measuring"
    alone = replace(plan, measured=None, most=plan.most._replace(measured=None))
    assert alone.fits and "bound by training" not in shown(alone), "nothing is measured"


def test_it_says_whether_training_or_measuring_binds_memory(plan):
    less = replace(plan, measured=Measured(256, 6 * GIB), most=plan.most._replace(measured=14 * GIB))
    assert (plan.memory_bound, plan.most.bound) == ("measuring", "measuring")
    assert (less.memory_bound, less.most.bound) == ("training", "training")
    assert shown(less).count("Memory is bound by training them.") == 2


def test_as_json_it_has_the_same_as_numbers(plan):
    said = json.loads(as_json(plan))
    assert (
        said["fits"] is True and said["topology"] == "v5e:4x4" and said["accelerator_type"] == "v5litepod-16"
    )
    assert said["bytes_a_chip"]["total"] == 7 * GIB + 10**7
    assert said["measuring"] == {"prompts": 256, "bytes": 8 * GIB} and said["most"]["measuring"] == 15 * GIB
    assert said["memory_bound"] == said["most"]["memory_bound"] == "measuring"
    assert said["collectives"][1] == {"axes": "data", "kind": "all-reduce", "times": 2, "bytes": 3e8}
    assert said["seconds_a_step"]["step"] == 0.05 and said["most"]["lanes"] == 128
    assert json.loads(as_json(replace(plan, usage=None, time=None, most=None)))["fits"] is False
