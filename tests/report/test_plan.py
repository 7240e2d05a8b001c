"""A plan as people read it, and as programs do."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from discojax.config import load
from discojax.population.memory import Usage
from discojax.population.plan import Most, Plan, Suggestion, Time, Traffic
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
        64 * 10**12,
        1.07,
        9e12,
        0.4,
        Time(0.05, 0.02, 0.001),
        (Traffic("data", "all-gather", 1, 1024), Traffic("data", "all-reduce", 2, 3e8)),
        Most(128, Usage(4 * GIB, 10 * GIB, 0, 10**7), 144),
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
        "It fits.",
        "Most lanes: 128, compiled: 14.01 GiB of 15.75 GiB; 144 did not fit (population.lanes=128).",
        "Suggested: 'population.mesh={lane: 16, data: 1, model: 1}': every chip has lanes of its own.",
        "Nothing along lane.",
    ):
        assert part in text
    assert "temporaries (activations, gradients)" in text and "31.7 %" in text
    # 15,625 steps of 0.05 s on sixteen chips at 1.20 an hour.
    assert "A million lane-steps: $4.17 at $1.20 a chip-hour" in text


def test_one_that_does_not_fit_says_so_and_what_would(plan):
    there = Suggestion({"lane": 4, "data": 1, "model": 4}, "`model` divides them", Usage(GIB, GIB, 0, 0))
    text = shown(replace(plan, usage=None, time=None, most=Most(0, None, 64), suggestion=there))
    assert "It does not fit." in text and "> 15.75 GiB" in text and "Not even one lane a chip" in text
    assert "Compiled for it: 2.00 GiB of 15.75 GiB." in text
    assert "Chips say nothing to one another" in shown(replace(plan, traffic=()))


def test_as_json_it_has_the_same_as_numbers(plan):
    said = json.loads(as_json(plan))
    assert (
        said["fits"] is True and said["topology"] == "v5e:4x4" and said["accelerator_type"] == "v5litepod-16"
    )
    assert said["bytes_a_chip"]["total"] == 7 * GIB + 10**7
    assert said["collectives"][1] == {"axes": "data", "kind": "all-reduce", "times": 2, "bytes": 3e8}
    assert said["seconds_a_step"]["step"] == 0.05 and said["most"]["lanes"] == 128
    assert json.loads(as_json(replace(plan, usage=None, time=None, most=None)))["fits"] is False
