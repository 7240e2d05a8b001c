import itertools

import jax
import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.errors import UserError
from discojax.population import Station, StepConfig, make_engine, train
from discojax.population import engine as engines


@pytest.fixture(scope="module")
def mixed(job):
    """Ten jobs, no two alike: more than lanes, of different budgets, losses, betas, seeds and rates."""
    losses = ["dpo", "ipo", "slic", "aot", "kto_pair", "simpo", "orpo", "exp", "apo_zero", "padll"]
    return [
        job(loss, beta=0.1 * (1 + k % 3), seed=k % 4, learning_rate=0.01 + 0.002 * k, steps=1 + (5 * k) % 8)
        for k, loss in enumerate(losses)
    ]


@pytest.fixture(scope="module")
def together(run, mixed):
    told = []
    return run(mixed, progress=told.append), told


def test_lanes_of_different_budgets_are_the_runs_they_would_be_alone(run, mixed, together, same):
    for job, done in zip(mixed, together[0], strict=True):
        alone = run([job])[0]
        assert same(done.measurement, alone.measurement)  # bit for bit
        assert done.metrics == alone.metrics
        assert done.metrics.steps == job.steps
    trained = [done.measurement for done in together[0]]
    assert not any(same(one, other, atol=1e-4) for one, other in itertools.combinations(trained, 2))


def test_the_same_jobs_give_the_same_bits_twice(run, mixed, together, same):
    again = run(mixed)
    for one, other in zip(again, together[0], strict=True):
        assert same(one.measurement, other.measurement) and one.metrics == other.metrics


def test_the_order_of_jobs_changes_none_of_them(run, mixed, together, same):
    for one, other in zip(reversed(run(mixed[::-1])), together[0], strict=True):
        assert same(one.measurement, other.measurement) and one.metrics == other.metrics


def test_map_and_vmap_agree(run, programs_of, mixed, noisy_pairs, same):
    both = (run(mixed, programs_of(kind), pairs=noisy_pairs) for kind in ("map", "vmap"))
    for one, other in zip(*both, strict=True):
        assert same(one.measurement, other.measurement, atol=2e-4)
        np.testing.assert_allclose(*map(jax.tree.leaves, (one.metrics, other.metrics)), rtol=1e-3, atol=1e-4)


def test_progress_counts_what_was_done(mixed, together):
    _, told = together
    assert sum(each.useful for each in told) == sum(job.steps for job in mixed)
    assert sum(each.ended for each in told) == len(mixed)
    assert all(each.useful <= each.room <= 4 * 3 for each in told)


def test_a_new_objective_compiles_nothing(run, programs_of, job, mixed, together):
    """Fifty-six objectives through four lanes, after the first four have compiled everything."""
    names = objectives.names()
    programs = [candidates.from_function(objectives.get(name)) for name in names]
    tuned = [
        program.with_constants([1.01 * value for value in program.constants])
        for program in programs
        if program.constants and program.name not in {"aql_discovered", "pfl_discovered"}
    ]
    assert len({program.hash for program in programs + tuned}) >= 50
    compiled: list[str] = []
    counting = True

    def listen(event, duration, **kwargs):
        if counting and "backend_compile" in event:
            compiled.append(str(kwargs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        done = run([job(program.code, steps=2) for program in programs + tuned])
    finally:
        counting = False
    assert compiled == []
    assert programs_of().advance._cache_size() == programs_of().reset._cache_size() == 1
    assert len({each.metrics for each in done}) >= 45  # and they are different objectives


def test_the_listener_above_hears_a_compilation():
    heard = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration, **kw: heard.append(event))
    jax.jit(lambda x: x * 3.25)(np.float32(heard is None))
    assert any("backend_compile" in event for event in heard)


@pytest.mark.parametrize("implementation", ["map", "vmap"])
@pytest.mark.parametrize("bad", ["nan_at_half", "overflowing"])
def test_a_diverging_lane_is_marked_and_reaches_no_other(implementation, bad, run, programs_of, job, same):
    programs = programs_of(implementation)
    good = [job("dpo", seed=1, steps=7), job("ipo", seed=2, steps=4), job("slic", seed=3, steps=7)]
    without = run(good, programs)
    first, failed, *rest = run([good[0], job(bad, steps=6), *good[1:]], programs)
    assert failed.diverged and failed.measurement is None
    assert failed.metrics.steps == (3 if bad == "nan_at_half" else 0)
    assert np.isfinite(failed.metrics.loss) == (bad == "nan_at_half")
    for one, other in zip([first, *rest], without, strict=True):
        assert not one.diverged
        assert same(one.measurement, other.measurement) and one.metrics == other.metrics


@pytest.mark.parametrize("implementation", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_diverged_lane_keeps_its_last_good_weights(implementation, setting, programs_of, engine, job, same):
    from discojax.population.lanes import stack_jobs

    programs = programs_of(implementation)
    settings = stack_jobs([job("nan_at_half", steps=6)] + [job(steps=6)] * 3)
    state = programs.fresh(setting.params)
    state, metrics = programs.advance(state, settings, engine.frozen, engine.data)  # a chunk: 3 steps
    good = jax.tree.map(np.array, state)
    assert metrics.steps[0] == 3 and not good.diverged.any()
    state, metrics = programs.advance(state, settings, engine.frozen, engine.data)
    assert np.asarray(state.diverged).tolist() == [True, False, False, False]
    assert metrics.steps[0] == 0 and metrics.steps[1] == 3
    lane = [jax.tree.map(lambda x: np.asarray(x)[0], (tree.params, tree.moments)) for tree in (state, good)]
    assert same(*lane) and all(np.isfinite(x).all() for x in jax.tree.leaves(lane[0]))
    assert state.step[0] >= 6  # idle: the engine takes it for ended


def test_a_lane_freed_by_divergence_is_taken_at_once(run, job):
    jobs = [job("overflowing", steps=50)] * 4 + [job(steps=3)] * 4
    told = []
    done = run(jobs, progress=told.append)
    assert [each.diverged for each in done] == [True] * 4 + [False] * 4
    assert len(told) == 2  # one call to find out, one for those that waited


def test_jobs_may_be_decided_late(setting, programs_of, job):
    """The next job is asked for when a lane is free, with what has finished by then known."""
    finished: list[int] = []
    known_at: dict[int, int] = {}

    def jobs():
        for number in range(7):
            known_at[number] = len(finished)
            yield number, job(seed=number, steps=3 if number else 6)

    engine = make_engine(programs_of(), setting.params, setting.pairs)
    station = Station(engine, lambda params, chosen, seeds: [None] * int(chosen.sum()))
    for done in train(station, jobs()):
        finished.append(done.key)
    assert [known_at[number] for number in range(7)] == [0, 0, 0, 0, 3, 3, 3]
    assert finished == [1, 2, 3, 0, 4, 5, 6]


def test_only_those_that_have_ended_are_measured(run, job):
    calls = []

    def measure(params, chosen, seeds):
        calls.append((chosen.tolist(), seeds[chosen].tolist()))
        return [f"lane {lane}" for lane in np.flatnonzero(chosen)]

    jobs = [job(seed=10, steps=6), job(seed=11, steps=2), job("overflowing", seed=12), job(seed=13, steps=3)]
    done = run(jobs, observe=measure)
    assert calls == [([False, True, False, True], [11, 13]), ([True, False, False, False], [10])]
    assert [each.measurement for each in done] == ["lane 0", "lane 1", None, "lane 3"]


def test_no_jobs_and_a_budget_of_nothing(run, job, setting, same):
    assert run([]) == []
    done = run([job(steps=0)])[0]
    assert same(done.measurement, setting.params) and not done.diverged
    assert done.metrics.steps == 0 and np.isnan(done.metrics.loss)


def test_too_few_pairs_are_named(programs_of, setting):
    few = jax.tree.map(lambda x: x[:3], setting.pairs)
    with pytest.raises(UserError, match="3 preference pairs, fewer than one batch of 4"):
        make_engine(programs_of(), setting.params, few)


@pytest.mark.parametrize(
    ("lanes", "tokens", "vocab", "implementation", "block"),
    [
        (1, 512, 50_257, "vmap", 1024), (32, 512, 50_257, "map", 1024),  # only one lane's are held
        (4, 2048, 50_257, "vmap", 1024),  # all of them are not much more than a GiB
        (32, 512, 50_257, "vmap", 32), (32, 2048, 50_257, "vmap", 128), (32, 9999, 50_257, "vmap", 128),
        (999, 2048, 50_257, "vmap", 8),
    ],
)  # fmt: skip
def test_a_block_of_logits_is_a_gib_at_most_and_a_small_part_of_many(
    lanes, tokens, vocab, implementation, block
):
    config = StepConfig(implementation=implementation)
    assert engines._block(config, lanes, vocab, tokens) == block
