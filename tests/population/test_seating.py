"""Which lane a job gets after a stop: its own, whatever is asked for first."""

from __future__ import annotations

import numpy as np
import pytest

from discojax.population.checkpoint import Held
from discojax.population.lanes import stack_jobs
from discojax.population.seating import Seating
from discojax.population.training import WAITING


@pytest.fixture(scope="module")
def one(job):
    return lambda seed: (f"job {seed}", job(seed=seed))


@pytest.fixture(scope="module")
def held(one):
    """Lanes 0, 1 and 3 were in jobs 10, 11 and 13; lane 2 was free."""
    jobs = [one(seed)[1] for seed in (10, 11, 12, 13)]
    return Held(("job 10", "job 11", "", "job 13"), stack_jobs(jobs), np.full(4, 2), np.zeros((4, 5)))


def given(seating, free, idle=False):
    return [(seat.lane, seat.key, seat.resumed) for seat in seating.give(free, idle=idle)]


def source(*jobs):
    answers = iter(jobs)
    return lambda: next(answers, None)


def test_without_a_checkpoint_the_next_job_gets_the_next_lane(one):
    seating = Seating(source(one(1), one(2), WAITING, one(3)))
    assert given(seating, [0, 1, 2, 3], idle=True) == [(0, "job 1", False), (1, "job 2", False)]
    assert given(seating, [2]) == [(2, "job 3", False)] and seating.more
    assert given(seating, [3]) == [] and not seating.more


def test_each_goes_on_in_its_own_lane_in_whatever_order_they_come(one, held):
    seating = Seating(source(one(99), one(13), one(98), one(10), one(11), one(97)), held=held)
    assert sorted(given(seating, [0, 1, 2, 3], idle=True)) == [
        (0, "job 10", True), (1, "job 11", True), (2, "job 99", False), (3, "job 13", True),
    ]  # fmt: skip
    # What came between them is next, in the order it was asked for.
    assert given(seating, [1, 3]) == [(1, "job 98", False), (3, "job 97", False)]
    assert seating.more and given(seating, [0]) == [] and not seating.more


def test_a_lane_waits_for_its_job_but_not_for_ever(one, held, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("discojax.population.seating.time.monotonic", lambda: now[0])
    seating = Seating(source(one(13), one(99), one(98), WAITING, WAITING, one(10), WAITING), held=held)
    assert given(seating, [0, 1, 2, 3], idle=True) == [(3, "job 13", True), (2, "job 99", False)]
    now[0] = 59.0
    assert given(seating, [0, 1]) == []
    assert given(seating, [0, 1]) == [(0, "job 10", True)]
    now[0] = 61.0
    assert given(seating, [1]) == [(1, "job 98", False)]


def test_lanes_that_nobody_asks_for_are_free_when_the_jobs_end(one, held):
    seating = Seating(source(one(1), one(2), one(3), one(4)), held=held)
    assert [seat[0] for seat in given(seating, [0, 1, 2, 3], idle=True)] == [0, 1, 2, 3]


def test_and_when_nothing_else_could_go_on(one, held):
    full = held._replace(owners=("job 10", "job 11", "job 12", "job 13"))
    seating = Seating(source(one(1), WAITING, WAITING), held=full)
    assert given(seating, [0, 1, 2, 3], idle=True) == [(0, "job 1", False)]


def test_no_more_are_asked_for_than_twice_the_lanes(one, held):
    asked = []

    def following():
        asked.append(len(asked))
        return one(100 + len(asked))

    seating = Seating(following, held=held)
    given(seating, [0, 1, 2, 3], idle=True)
    assert len(asked) <= 9


def test_a_job_of_other_orders_starts_afresh(job, held):
    seating = Seating(source(("job 10", job(seed=10, beta=0.7))), held=held)
    assert [resumed for *_, resumed in given(seating, [0, 1, 2, 3], idle=True)] == [False]
