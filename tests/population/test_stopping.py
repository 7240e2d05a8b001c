"""Ctrl-C and SIGTERM: nothing that trains is lost, and a run goes on to the bits it would have had."""

import os
import signal
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from discojax.population import Station, make_engine, train
from discojax.population.checkpoint import Checkpoints
from discojax.population.stopping import Preempted, Stopped, deferred, heeded

JOBS = (("dpo", 0, 9), ("ipo", 1, 12), ("slic", 2, 3), ("nan_at_half", 3, 9), ("exp", 4, 6), ("dpo", 5, 10))


@pytest.fixture(scope="module")
def station(setting, programs_of, engine):
    def weights(params, chosen, seeds):
        return [jax.tree.map(lambda x, i=i: np.array(x[i]), params) for i in np.flatnonzero(chosen)]

    return Station(make_engine(programs_of(), setting.params, setting.pairs), weights, identity="these pairs")


@pytest.fixture(scope="module")
def jobs(job):
    return {f"{loss} {seed}": job(loss, seed=seed, steps=steps) for loss, seed, steps in JOBS}


@pytest.fixture(scope="module")
def whole(station, jobs):
    return {done.key: done for done in train(station, iter(jobs.items()))}


def equal(one, other):
    """Whether what became of two jobs is the same, to the bit."""
    assert one.key == other.key
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one[1:], other[1:]))


def finish(station, jobs, found, progress=lambda progress: None):
    """Trains what is missing in `found`."""
    for done in train(station, iter([(k, job) for k, job in jobs.items() if k not in found]), progress):
        assert done.key not in found
        found[done.key] = done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_was_under_way_is_kept_and_ends_as_it_would_have(number, call, station, jobs, whole, tmp_path):
    calls, steps = [], []
    kept = replace(station, checkpoints=Checkpoints(str(tmp_path / "checkpoints"), interval=0))

    def stop(progress):
        calls.append(progress)
        if len(calls) == call:
            os.kill(os.getpid(), number)

    found = {}
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted if number == signal.SIGTERM else Stopped) as stopped:
        finish(kept, jobs, found, stop)
    assert stopped.type is (Preempted if number == signal.SIGTERM else Stopped)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert len(calls) == call, "it stopped with that call to the device"

    kept = replace(station, checkpoints=Checkpoints(str(tmp_path / "checkpoints"), interval=0))
    finish(kept, jobs, found, lambda progress: steps.append(progress.useful))
    assert found.keys() == whole.keys() and all(equal(found[key], whole[key]) for key in whole)
    # No step was taken twice.
    assert sum(x.useful for x in calls) + sum(steps) == sum(done.metrics.steps for done in whole.values())


def test_between_two_calls_it_is_heeded_too(station, jobs, whole, tmp_path):
    """A signal that comes while whoever trains writes down a result."""
    kept = replace(station, checkpoints=Checkpoints(str(tmp_path), interval=0))

    class Recorder(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            if len(self) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    found = Recorder()
    with pytest.raises(Preempted):
        finish(kept, jobs, found)
    assert 2 <= len(found) < len(whole)
    finish(replace(station, checkpoints=Checkpoints(str(tmp_path), interval=0)), jobs, found)
    assert all(equal(found[key], whole[key]) for key in whole)


def test_a_checkpoint_older_than_the_results_is_made_use_of_where_it_can_be(station, jobs, whole, tmp_path):
    """Killed without warning: the last checkpoint is from the second call, and one job ended since."""
    kept = replace(station, checkpoints=Checkpoints(str(tmp_path), interval=1e-9))
    calls = []

    def watch(progress):
        calls.append(progress)
        if len(calls) == 2:
            kept.checkpoints.interval = 0

    class Recorder(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            if len(self) == 3:
                raise RuntimeError("killed")

    found = Recorder()
    with pytest.raises(RuntimeError, match="killed"):
        finish(kept, jobs, found, watch)
    kept.checkpoints.close()
    assert len(list(tmp_path.iterdir())) >= 1
    again = replace(station, checkpoints=Checkpoints(str(tmp_path), interval=0))
    steps = []
    left = [whole[key].metrics.steps for key in whole if key not in found]
    found = dict(found)
    finish(again, jobs, found, lambda progress: steps.append(progress.useful))
    assert all(equal(found[key], whole[key]) for key in whole)
    assert sum(steps) < sum(left), "the jobs that the checkpoint was in did not begin anew"


def test_where_nothing_is_at_work_it_ends_at_once(station):
    from discojax.population.training import WAITING

    def wait():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with pytest.raises(Preempted):
        list(train(station, iter([WAITING]), wait=wait))
    with pytest.raises(Preempted):
        ask(heeded, signal.SIGTERM)


def ask(block, *numbers, done=None):
    with block() as deferral:
        os.kill(os.getpid(), numbers[0])
        if done is not None:
            done.append(deferral.asked())
        for number in numbers[1:]:
            os.kill(os.getpid(), number)
            raise AssertionError("it went on")


def test_a_second_one_does_not_wait_and_a_late_one_is_not_lost():
    done = []
    with pytest.raises(KeyboardInterrupt):
        ask(deferred, signal.SIGINT, signal.SIGINT, done=done)
    assert type(done[0]) is Stopped
    with pytest.raises(Preempted):
        ask(deferred, signal.SIGTERM, done=done)
    assert type(done[1]) is Preempted


def test_sigterm_is_told_once_though_every_host_is(station, jobs, tmp_path):
    """Where a whole slice is taken back the leader is told itself, and by those that were told too."""
    saved = []
    kept = replace(station, checkpoints=Checkpoints(str(tmp_path), interval=0))

    def stop(progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with heeded():
        with pytest.raises(Preempted):
            finish(kept, jobs, {}, stop)
        os.kill(os.getpid(), signal.SIGTERM)  # while what is kept is put into a bucket, say
        saved.append([path.name for path in tmp_path.iterdir()])
    assert saved == [["0"]]
    with pytest.raises(Preempted):
        ask(heeded, signal.SIGTERM)


def test_another_thread_hears_no_signals_and_trains_all_the_same(station, jobs, whole):
    found = []
    thread = threading.Thread(target=lambda: found.extend(train(station, iter(list(jobs.items())[:1]))))
    thread.start()
    thread.join()
    assert equal(found[0], whole[found[0].key])
