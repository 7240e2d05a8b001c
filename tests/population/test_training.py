"""Giving lanes their jobs: sources that keep lanes waiting, and how long a call to the device is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discojax.population import WAITING, Station, make_engine, train
from discojax.population.training import chunk_for


def nothing(params, chosen, seeds):
    return [None] * int(chosen.sum())


@pytest.fixture(scope="module")
def station(setting, programs_of):
    return Station(make_engine(programs_of(), setting.params, setting.pairs), nothing)


def test_free_lanes_wait_while_the_others_go_on(station, job):
    """One long job trains; the next comes only after two calls in which nothing was ready."""
    asked: list[int] = []
    told = []

    def jobs():
        yield "long", job(steps=9)
        for _ in range(2):
            asked.append(len(told))
            yield WAITING
        asked.append(len(told))
        yield "late", job(steps=3)

    done = list(train(station, jobs(), told.append))
    assert [each.key for each in done] == ["long", "late"]
    assert asked == [0, 1, 2]  # once a call, before it
    assert [each.busy for each in told] == [1, 1, 2]
    assert [(each.useful, each.room) for each in told] == [(3, 12), (3, 12), (6, 12)]


@pytest.mark.parametrize(("implementation", "last"), [("map", 4 * 2), ("vmap", 4 * 3)])
def test_room_is_for_all_the_steps_that_a_call_went_through(implementation, last, setting, programs_of, job):
    """Of a chunk of three the lanes take two: under `vmap` the device goes through the third all the same."""
    told = []
    there = Station(make_engine(programs_of(implementation), setting.params, setting.pairs), nothing)
    list(train(there, iter([(0, job(steps=5)), (1, job(steps=4))]), told.append))
    assert [(each.useful, each.room) for each in told] == [(6, 12), (3, last)]


def test_when_every_lane_is_free_it_blocks_instead_of_asking_on(station, job):
    ready: list[tuple[str, object]] = []
    asked, waits, told = [], [], []

    def jobs():
        for _ in range(3):
            while not ready:
                asked.append(len(waits))
                yield WAITING
            yield ready.pop()

    def wait():
        waits.append(len(told))
        if len(waits) % 2 == 0:  # every other time it was woken for nothing
            ready.append((f"job {len(waits)}", job(steps=3)))

    done = list(train(station, jobs(), told.append, wait))
    assert [each.key for each in done] == ["job 2", "job 4", "job 6"]
    # Asked once after every wait, and once beside and after each job: never in a loop.
    assert asked == [0, 1, 2, 2, 3, 4, 4, 5] and len(told) == 3
    assert all(each.waited > 0 for each in told)


def test_waiting_for_ever_is_an_error(station):
    with pytest.raises(RuntimeError, match="wait"):
        list(train(station, iter([WAITING])))


def test_a_late_job_is_the_run_it_would_be_alone(station, job, run, same):
    def jobs():
        yield 0, job("ipo", steps=8)
        yield WAITING
        yield 1, job("slic", seed=3, steps=5)

    def weights(params, chosen, seeds):
        import jax

        return [jax.tree.map(lambda x, i=i: np.array(x[i]), params) for i in np.flatnonzero(chosen)]

    late = {each.key: each for each in train(replace(station, observe=weights), jobs())}
    alone = run([job("slic", seed=3, steps=5)])[0]
    assert same(late[1].measurement, alone.measurement) and late[1].metrics == alone.metrics


@pytest.mark.parametrize(
    ("budgets", "most", "chunk"),
    [([20, 40], 8, 5), ([20, 40], 64, 20), ([100, 200, 400], 32, 25), ([7], 4, 4), ([16], 8, 8)],
)
def test_a_chunk_divides_the_budgets_where_it_can(budgets, most, chunk):
    assert chunk_for(budgets, most) == chunk


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 40))
def test_a_chosen_chunk_never_wastes_more_than_the_longest(budgets, most):
    def calls_and_steps(chunk):
        calls = sum(-(-steps // chunk) for steps in budgets)
        return calls * chunk + calls / 4

    chunk = chunk_for(budgets, most)
    assert 1 <= chunk <= most and calls_and_steps(chunk) <= calls_and_steps(most)
