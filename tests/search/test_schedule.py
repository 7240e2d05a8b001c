"""The schedule: plans see complete facts, whatever the order they come in; and lanes are kept busy."""

from __future__ import annotations

import itertools
import json
import random
import threading
from pathlib import Path

import pytest
import toy

from discojax.config import load
from discojax.population.training import WAITING, chunk_for
from discojax.search import archive as archives
from discojax.search.prefetch import Prefetcher
from discojax.search.rungs import chunk_budgets
from discojax.search.schedule import Schedule


def jobs(*names):
    return dict.fromkeys(names, "a job")


def taken(schedule):
    """The keys of the jobs that wait for a lane, in the order lanes are given them."""
    return [job[0] for job in itertools.takewhile(lambda job: job is not WAITING, schedule.jobs())]


def plan(schedule, *rungs, priority=(0,), seen=None):
    """Wants one set of jobs after the other, and notes what it saw of each."""
    for rung in rungs:
        schedule.want(jobs(*rung), priority)
        facts = yield set(rung)
        if seen is not None:
            seen.append(facts)


def test_a_plan_goes_on_only_when_it_knows_all_it_waits_for():
    schedule, seen = Schedule(), []
    schedule.start(plan(schedule, "ab", "c", seen=seen))
    assert taken(schedule) == ["a", "b"]
    schedule.learn("b", 2)
    assert seen == [] and taken(schedule) == []
    schedule.learn("a", 1)
    assert seen == [{"a": 1, "b": 2}] and taken(schedule) == ["c"]
    assert next(schedule.jobs()) is WAITING
    schedule.learn("c", 3)
    assert list(schedule.jobs()) == []


def test_what_several_want_is_done_once_and_at_the_best_priority():
    schedule, seen = Schedule(), []
    schedule.start(plan(schedule, ("x", "shared"), priority=(1,), seen=seen))
    schedule.start(plan(schedule, ("shared", "y"), priority=(0,), seen=seen))
    assert schedule.queued == 3 and taken(schedule) == ["shared", "y", "x"]
    for name in ("x", "y", "shared"):
        schedule.learn(name, name)
    assert len(seen) == 2 and list(schedule.jobs()) == []
    schedule.start(plan(schedule, ("shared",), seen=seen))  # known by now
    assert len(seen) == 3 and list(schedule.jobs()) == []


def test_nothing_is_established_twice():
    schedule = Schedule()
    schedule.learn("a", 1)
    with pytest.raises(ValueError, match="already"):
        schedule.learn("a", 1)


def test_what_was_known_before_is_not_done_again():
    known = {"a": 1, "c": 3}
    schedule, seen = Schedule(known.get), []
    schedule.start(plan(schedule, "abc", "c", seen=seen))
    assert taken(schedule) == ["b"]
    schedule.learn("b", 2)
    assert seen == [{"a": 1, "b": 2, "c": 3}, {"c": 3}]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_arrival_changes_no_decision(seed):
    """Halving in three brackets that share a baseline: each keeps the better half of what it measured."""

    def halving(schedule, names, kept):
        left = [*names, "baseline"]
        for rung in range(3):
            keys = {(name, rung) for name in left}
            schedule.want(jobs(*sorted(keys)), (-rung,))
            facts = yield keys
            rivals = sorted((n for n in left if n != "baseline"), key=lambda n: -facts[n, rung])
            left = [*rivals[: (len(rivals) + 1) // 2], "baseline"]
        kept.extend(left)

    def run(rng):
        schedule, flying, kept = Schedule(), [], [[], [], []]
        for number, names in enumerate(("abcdefgh", "ijklm", "nopqrstu")):
            schedule.start(halving(schedule, names, kept[number]))
        while True:
            for job in schedule.jobs():
                if job is WAITING or len(flying) == 4:
                    break
                flying.append(job[0])
            if not flying:
                return kept
            key = flying.pop(rng.randrange(len(flying)))
            schedule.learn(key, hash((sum(map(ord, key[0])), key[1], 17)) % 1000)

    assert run(random.Random(seed)) == run(random.Random(1000))


def test_waiting_for_what_nobody_does_is_an_error():
    schedule = Schedule()
    schedule.start(plan(schedule, ()))

    def forever():
        yield {"a fact"}

    schedule.start(forever())
    with pytest.raises(RuntimeError, match="a fact"):
        schedule.wait()


def test_a_prefetcher_answers_in_order_in_its_own_thread():
    schedule, told, threads = Schedule(), [], set()

    def propose(ask):
        threads.add(threading.current_thread().name)
        yield from (f"{ask}{i}" for i in range(2))

    def closed(ask):
        told.append(ask)
        schedule.learn(ask, None)

    prefetcher = Prefetcher(schedule, propose, lambda ask, found: told.append(found), closed)

    def asking():
        for ask in "ab":
            prefetcher.ask(ask)
        yield {"a", "b"}

    schedule.start(asking())
    while next(schedule.jobs(), None) is WAITING:
        schedule.wait()
    prefetcher.stop()
    assert told == ["a0", "a1", "a", "b0", "b1", "b"]
    assert threads == {"proposer"} and prefetcher.pending == 0


def test_what_a_proposer_raises_ends_the_training():
    schedule = Schedule()

    def propose(ask):
        yield "one"
        raise OSError("the server is gone")

    prefetcher = Prefetcher(schedule, propose, lambda ask, found: None, lambda ask: None)
    prefetcher.ask("a")
    schedule.wait()  # for the first
    with pytest.raises(OSError, match="gone"):
        schedule.wait()
    prefetcher.stop()


LATENCIES = json.loads((Path(__file__).parents[2] / "benchmarks/arrivals.json").read_text())["recorded"]
SMALL = (
    "search.candidates=64", "search.generations=8", "search.library=[dpo, ipo, exp]",
    "search.betas=[0.1, 0.5]", "search.rungs=[[1, 100, 64], [2, 200, 3]]", "search.elites=[2, 400, 4]",
    "search.lag=2", "population.lanes=16", "population.chunk=32", "evaluation.bootstrap=50",
    "evaluation.search_prompts=16",
)  # fmt: skip


def simulated(folder, *overrides, latencies=LATENCIES, seconds=1.0):
    """A search in the toy laboratory: its archive's rows, its timeline, and what its brackets left."""
    config = load("quickstart", [*SMALL, *overrides])
    lanes, chunk = config.population.lanes, chunk_for(chunk_budgets(config), config.population.chunk)
    path = folder / "archive.sqlite"
    with archives.open_archive(path, "simulation") as archive:
        lab = toy.laboratory(archive, folder, lanes=lanes, chunk=chunk, seconds=seconds)

        def slow(proposer):
            return toy.Slow(toy.Drawn(), lab.clock, itertools.cycle(latencies))

        with toy.racing(config, archive, folder, lab, slow) as (race, _, timeline):
            race.begin()
            race.train()
    return toy.rows(path), timeline, race.raced


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("late"))


def test_lanes_are_busy_while_candidates_come_late_and_unevenly(late):
    _, timeline, _ = late
    assert timeline.utilisation(16, 1.0, drain=False) >= 0.95
    assert timeline.utilisation(16, 1.0, drain=True) >= 0.90


def test_what_is_found_does_not_depend_on_when_candidates_come(late, tmp_path):
    """Neither do the rows of the archive: the same attempts, the same lanes, the same numbers."""
    found, _, raced = late
    (tmp_path / "early").mkdir()
    again, timeline, others = simulated(tmp_path / "early", latencies=[0.5, 90.0, 5.0], seconds=0.2)
    assert timeline.at != late[1].at
    assert again == found
    for arm, left in raced.items():
        assert {c.name for c in left.contenders} == {c.name for c in others[arm].contenders}
        assert left.comparisons == others[arm].comparisons


def test_brackets_are_halved_on_shared_seeds_and_the_baseline_is_measured_once(late):
    (_, evaluations), _, raced = late
    names = ("hash", "objective", "task", "split", "rung", "beta", "seed", "steps")
    lanes = [dict(zip(names, row, strict=False)) for row in evaluations]
    later = [lane for lane in lanes if lane["rung"] == 1]
    assert len({lane["seed"] for lane in later}) == 2
    assert sum(lane["objective"] == "dpo" for lane in later) == 2 * 2  # betas and seeds, for all brackets
    assert len(raced["search"].contenders) == len({lane["objective"] for lane in later} - {"dpo", "sft"})
    assert len(raced["search"].contenders) == 8 * 3 + 2  # three of a generation, and ipo and exp
