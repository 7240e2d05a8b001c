"""Lanes over eight devices: the same results, and nothing said between the devices."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from discojax.errors import UserError
from discojax.population import make_mesh

# Runs in a process of its own, since the number of devices is decided when JAX starts.
SCRIPT = """
import dataclasses, pickle, re, sys
import jax, numpy as np
from discojax.population import StepConfig, make_engine, make_mesh, make_programs, train
from discojax.population.lanes import stack_jobs
from discojax.tasks import Prompts, SamplingConfig, make_sampler

given, result = sys.argv[1:]
with open(given, "rb") as file:
    graph, params, pairs, tokens, config, jobs = pickle.load(file)
assert jax.device_count() == 8
mesh = make_mesh()
assert dict(mesh.shape) == {"lane": 8, "data": 1, "model": 1}

def collectives(compiled):
    assert "num_partitions=8" in compiled.as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return sorted(set(re.findall(kinds, compiled.as_text())))

prompts = Prompts(pairs.chosen_ids[:3, :5], np.minimum(pairs.prompt_length[:3], 5))
found = {}
for kind in ("map", "vmap"):
    step = StepConfig(config.batch, config.chunk, config.block, kind, config.optimizer)
    programs = make_programs(graph, step, lanes=7, tokens=tokens, mesh=mesh)
    engine = make_engine(programs, params, pairs)
    state = programs.fresh(engine.params)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state))
    assert all(leaf.addressable_shards[0].data.shape[0] == 1 for leaf in jax.tree.leaves(state))
    sampler = make_sampler(graph, SamplingConfig(4, 2), mesh=mesh, implementation=kind)
    sampled = sampler.lower(state.params, engine.frozen, np.ones(8, bool), np.arange(8), prompts, params)
    # What is looked at is what is run.
    programs = dataclasses.replace(
        programs,
        advance=programs.advance.lower(state, stack_jobs(jobs[:8]), engine.data).compile(),
        reset=programs.reset.lower(state, engine.params, np.zeros(8, bool)).compile(),
    )
    engine = dataclasses.replace(engine, programs=programs)
    told = {
        "advance": collectives(programs.advance),
        "reset": collectives(programs.reset),
        "sampler": collectives(sampled.compile()),
    }
    def measure(params, chosen, seeds):
        return [jax.tree.map(lambda x: np.array(x[lane]), params) for lane in np.flatnonzero(chosen)]
    done = {each.key: each for each in train(engine, iter(enumerate(jobs)), measure)}
    weights = [jax.tree.leaves(done[key].measurement) for key in range(len(jobs))]
    found[kind] = programs.lanes, told, weights, [done[key].diverged for key in range(len(jobs))]
with open(result, "wb") as file:
    pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def jobs(job):
    losses = ["dpo", "ipo", "slic", "aot", "kto_pair", "simpo", "orpo", "exp", "apo_zero", "padll"]
    return [job(loss, seed=k, steps=2 + k % 5) for k, loss in enumerate(losses)]


@pytest.fixture(scope="module")
def eight(setting, noisy_pairs, jobs, tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("eight")
    params = jax.tree.map(np.asarray, setting.params)
    given = (setting.graph, params, noisy_pairs, setting.tokens, setting.config, jobs)
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
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder / "found").read_bytes())


@pytest.mark.parametrize("kind", ["map", "vmap"])
@pytest.mark.parametrize("function", ["advance", "reset", "sampler"])
def test_spreading_lanes_adds_no_collective(eight, kind, function):
    _, told, _, _ = eight[kind]
    assert told[function] == []


@pytest.mark.parametrize("kind", ["map", "vmap"])
def test_eight_devices_give_the_result_of_one(eight, kind, run, jobs, noisy_pairs):
    """And eight lanes that of four: how many there are is not part of the result."""
    lanes, _, weights, diverged = eight[kind]
    assert lanes == 8 and not any(diverged)  # seven were asked for
    for ours, done in zip(weights, run(jobs, pairs=noisy_pairs), strict=True):
        for one, other in zip(ours, jax.tree.leaves(done.measurement), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)


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
