"""Lanes, batches and weights over eight devices: the results of one, and only what must be said is said."""

import functools
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from discojax.errors import UserError
from discojax.population import make_engine, make_mesh
from discojax.population.lanes import stack_jobs
from discojax.population.mesh import rows_per_device

# Runs in a process of its own, since the number of devices is decided when JAX starts.
SCRIPT = """
import pickle, sys
from dataclasses import replace
import jax, numpy as np
from discojax.population import make_engine, make_mesh, make_programs
from discojax.population.collectives import collectives
from discojax.population.lanes import stack_jobs
from discojax.population.memory import abstract_arguments
from discojax.policies import length_buckets
from discojax.tasks import Prompts, SamplingConfig, make_sampler

given, result = sys.argv[1:]
with open(given, "rb") as file:
    graph, params, pairs, tokens, config, jobs, meshes = pickle.load(file)
assert jax.device_count() == 8
prompts = Prompts(pairs.chosen_ids[:3, :5], np.minimum(pairs.prompt_length[:3], 5))
found = {}
for sizes, kind, accumulate in meshes:
    mesh = make_mesh(*sizes)
    step = replace(config, implementation=kind, accumulate=accumulate)
    lanes = 8 if sizes[0] == 1 else 7  # rounded up to what the mesh divides
    programs = make_programs(graph, params, step, lanes=lanes, tokens=tokens, mesh=mesh)
    assert programs.lanes == 8
    engine = make_engine(programs, params, pairs)
    state = programs.fresh(engine.params)
    shards = [(leaf.shape, leaf.addressable_shards[0].data.shape) for leaf in jax.tree.leaves(state.params)]
    for leaf in jax.tree.leaves(state):
        assert leaf.addressable_shards[0].data.shape[0] == programs.lanes // sizes[0]
    told = {}
    def tell(name, function, *arguments):
        text = function.lower(*arguments).compile().as_text()
        assert "num_partitions=8" in text
        told[name] = [(c.kind, tuple(sorted(c.axes)), c.bytes) for c in collectives(text, mesh)]
    tell("advance", programs.advance, *abstract_arguments(programs, pairs))
    if sizes == (8, 1, 1):
        everyone = np.ones(8, bool)
        tell("reset", programs.reset, state, engine.params, everyone)
        sampler = make_sampler(graph, SamplingConfig(4, 2), mesh=mesh, implementation=kind)
        buckets = length_buckets(*prompts)
        tell("sampler", sampler, state.params, engine.frozen, everyone, np.arange(8), buckets, params)
    settings = stack_jobs(jobs)
    metrics = []
    for _ in range(2):  # chunks
        state, sums = programs.advance(state, settings, engine.frozen, engine.data)
        metrics.append(jax.tree.map(np.asarray, sums))
    found[sizes, kind] = told, shards, jax.tree.map(np.asarray, tuple(state)), metrics
with open(result, "wb") as file:
    pickle.dump(found, file)
"""

FAST = [((8, 1, 1), "map", 1), ((4, 2, 1), "map", 1)]
SLOW = [((8, 1, 1), "vmap", 1), ((2, 4, 1), "vmap", 1), ((2, 2, 2), "map", 2), ((1, 2, 4), "vmap", 1)]


def _cases(*wanted):
    """Parameters of these meshes, those of `SLOW` marked so."""
    every = [((sizes, kind), group is SLOW) for group in (FAST, SLOW) for sizes, kind, _ in group]
    return [
        pytest.param(case, id=f"{'x'.join(map(str, case[0]))}-{case[1]}", marks=[pytest.mark.slow] * slow)
        for case, slow in every
        if not wanted or case in wanted
    ]


LOST = 5  # the lane that becomes NaN


@pytest.fixture(scope="module")
def jobs(job):
    """Losses of one pair, of a sorted batch (aot) and of its mean (aqfl); and one that becomes NaN."""
    losses = ["dpo", "aot", "aqfl", "ipo", "slic", "nan_at_half", "aot", "aqfl"]
    return [job(loss, seed=k, steps=6 if k == LOST else 4 + k % 3) for k, loss in enumerate(losses)]


@pytest.fixture(scope="module")
def eight(setting, noisy_pairs, jobs, tmp_path_factory, repository):
    """What was found on eight devices, by case; the slow ones are only run if one of them is asked for."""
    params = jax.tree.map(np.asarray, setting.params)

    def run(meshes):
        folder = tmp_path_factory.mktemp("eight")
        given = (setting.graph, params, noisy_pairs, setting.tokens, setting.config, jobs, meshes)
        (folder / "given").write_bytes(pickle.dumps(given))
        (folder / "script.py").write_text(SCRIPT)
        flags = [
            "--xla_force_host_platform_device_count=8",
            "--xla_cpu_multi_thread_eigen=false",
            "--xla_backend_optimization_level=1",  # compiled once, used twice
            "--xla_llvm_disable_expensive_passes=true",
        ]
        done = subprocess.run(
            [sys.executable, folder / "script.py", folder / "given", folder / "found"],
            env=os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
            cwd=repository,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return pickle.loads((folder / "found").read_bytes())

    @functools.cache
    def group(fast):
        return run(FAST if fast else SLOW)

    def of(case):
        return group(case in [mesh[:2] for mesh in FAST])[case]

    return of


@pytest.fixture(scope="module")
def one(setting, programs_of, noisy_pairs, jobs):
    """The state and metrics of the same lanes on one device, four at a time."""
    programs = programs_of()
    engine = make_engine(programs, setting.params, noisy_pairs)
    halves = []
    for half in (jobs[:4], jobs[4:]):
        state, metrics = programs.fresh(engine.params), []
        for _ in range(2):
            state, sums = programs.advance(state, stack_jobs(half), engine.frozen, engine.data)
            metrics.append(jax.tree.map(np.asarray, sums))
        halves.append((jax.tree.map(np.asarray, tuple(state)), metrics))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *halves)


@pytest.mark.parametrize("case", _cases())
def test_every_mesh_gives_the_result_of_one_device(eight, one, case):
    _, _, (params, moments, step, diverged), metrics = eight(case)
    (expected, expected_moments, expected_step, expected_diverged), expected_metrics = one
    np.testing.assert_array_equal(step, expected_step)
    np.testing.assert_array_equal(diverged, expected_diverged)
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    # Where a gradient is nearly nothing its sign decides Adam's step, so moments are the sharper measure.
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(expected_moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)
        assert (abs(a - b) < 2e-4).mean() > 0.99


@pytest.mark.parametrize("case", _cases())
def test_a_lane_that_is_nan_reaches_no_other_device(eight, case):
    _, _, (params, moments, _, diverged), _ = eight(case)
    assert np.flatnonzero(diverged).tolist() == [LOST]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, moments)))


@pytest.mark.parametrize("case", _cases())
def test_no_mesh_says_anything_between_lanes(eight, case):
    assert not [each for each in eight(case)[0]["advance"] if "lane" in each[1]]


@pytest.mark.parametrize("case", _cases(((8, 1, 1), "map"), ((8, 1, 1), "vmap")))
@pytest.mark.parametrize("function", ["advance", "reset", "sampler"])
def test_spreading_lanes_adds_no_collective(eight, case, function):
    assert eight(case)[0][function] == []


@pytest.mark.parametrize("case", _cases(((4, 2, 1), "map"), ((2, 4, 1), "vmap")))
def test_data_adds_the_gradient_and_the_log_probabilities_of_the_batch(eight, case, setting):
    """Once each: the program's loops hold one of either."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(setting.params))
    lanes = 1 if case[1] == "map" else 8 // case[0][0]  # that are worked on at a time
    logps = 2 * setting.config.batch * 4
    told = eight(case)[0]["advance"]
    assert sorted(told) == [
        ("all-gather", ("data",), lanes * logps),
        ("all-reduce", ("data",), lanes * weights),
    ]


@pytest.mark.parametrize("case", _cases(((2, 2, 2), "map"), ((1, 2, 4), "vmap")))
def test_over_data_a_divided_gradient_is_added_up_in_its_parts(eight, case, setting):
    told, shards, _, _ = eight(case)
    part = sum(4 * int(np.prod(shard[1:])) for _, shard in shards)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(setting.params))
    lanes = 1 if case[1] == "map" else 8 // case[0][0]
    over_data = sorted(each for each in told["advance"] if "data" in each[1])
    gathered, reduced = over_data
    assert gathered == ("all-gather", ("data",), lanes * 2 * setting.config.batch * 4)
    assert reduced[:2] == ("all-reduce", ("data",))
    # The partitioner may divide a small gradient that the table leaves whole, and then reduces less.
    assert 0.9 * lanes * part <= reduced[2] <= lanes * part
    assert part < whole * (1 / case[0][2] + 0.05)  # all but the vectors is divided


def test_a_mesh_takes_the_devices_there_are():
    assert dict(make_mesh().shape) == {"lane": jax.device_count(), "data": 1, "model": 1}


@pytest.mark.parametrize("sizes", [(3, 5, 1), (0, 1, 99)])
def test_a_mesh_that_does_not_divide_the_devices_names_the_numbers(sizes):
    with pytest.raises(UserError, match=rf"data={sizes[1]} x model={sizes[2]} needs \d+ devices, but there"):
        make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(-1, 1, 1), (1, 0, 1), (1, 1, -2)])
def test_a_mesh_of_no_devices_is_refused(sizes):
    with pytest.raises(UserError, match="must be positive"):
        make_mesh(*sizes)


def test_a_batch_that_does_not_divide_names_the_numbers():
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("lane", "data", "model"))
    assert rows_per_device(mesh, 24, 3) == 6
    with pytest.raises(UserError, match=r"batch of 20 pairs .* data=4 .* accumulate=3 .* a multiple of 12"):
        rows_per_device(mesh, 20, 3)
