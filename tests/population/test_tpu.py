"""The step compiled for sixteen chips of a real TPU topology, which takes no TPU.

    python -m pytest -m tpu_compile tests/population/test_tpu.py -s

with the extra `tpu` installed. Prints what a chip would hold.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"),
]

LANES = 64
CASES = {"lanes": (16, 1, 1), "lanes and data": (8, 2, 1), "all three": (2, 2, 4)}

SCRIPT = """
import json, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from discojax.data.pairs import Pairs
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.population import StepConfig, make_programs
from discojax.population.collectives import collectives
from discojax.population.memory import abstract_arguments, needed_memory
from discojax.population.topology import compile_devices, find_topology

sizes, lanes, adapters = json.loads(sys.argv[1])
devices = np.array(compile_devices(find_topology("v5e:4x4"))).reshape(sizes)
mesh = Mesh(devices, ("lane", "data", "model"), axis_types=(AxisType.Auto,) * 3)

def make():
    config = DecoderConfig(
        vocab_size=2048, layers=2, width=128, heads=4, max_length=32,
        attention="xla",  # as a TPU chooses
    )
    policy = Decoder(config, rngs=nnx.Rngs(0))
    return add_lora(policy, LoraConfig(rank=8, targets=(".*",)), nnx.Rngs(1)) if adapters else policy

graph, params, frozen = partition(nnx.eval_shape(make))
step = StepConfig(batch=16, chunk=2, implementation="vmap", dtype="bfloat16")
programs = make_programs(graph, params, step, lanes=lanes, tokens=24, mesh=mesh, frozen=frozen)
def ints(*shape):
    return jax.ShapeDtypeStruct((128, *shape), np.int32)
logps = jax.ShapeDtypeStruct((128,), np.float32)
pairs = Pairs(ints(32), ints(32), ints(), ints(), ints(), logps, logps)
compiled = programs.advance.lower(*abstract_arguments(programs, pairs)).compile()
stats = compiled.memory_analysis()
leaves = jax.tree.leaves(programs.params)
parts = [np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in leaves]
print(json.dumps({
    "collectives": [(c.kind, sorted(c.axes), c.bytes) for c in collectives(compiled.as_text(), mesh)],
    "arguments": stats.argument_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "needed": needed_memory(programs, pairs),
    "gradient": int(sum(parts)) * lanes // sizes[0],
    "divided": sum(x.size for x in leaves) * 4 // sizes[2] * lanes // sizes[0],
}))
"""


@pytest.fixture(scope="module")
def compiled(repository, tmp_path_factory):
    script = tmp_path_factory.mktemp("tpu") / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = {}
    for name, sizes in CASES.items():
        done = subprocess.run(
            [sys.executable, script, json.dumps([sizes, LANES, name == "lanes"])],
            env=environment, cwd=repository, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads(done.stdout.splitlines()[-1])
        told = {key: f"{found[name][key] / 2**20:.1f} MiB" for key in ("arguments", "temporaries", "needed")}
        print(f"\nv5e:4x4, lane x data x model = {sizes}, {LANES} lanes: {told} a chip")
    return found


def test_lanes_say_nothing_to_one_another(compiled):
    assert compiled["lanes"]["collectives"] == []
    for name in CASES:
        assert not [each for each in compiled[name]["collectives"] if "lane" in each[1]]


@pytest.mark.parametrize("name", ["lanes and data", "all three"])
def test_data_adds_the_gradient_and_the_log_probabilities_of_the_batch(compiled, name):
    lanes = LANES // CASES[name][0]
    over_data = [each for each in compiled[name]["collectives"] if "data" in each[1]]
    assert {tuple(axes) for _, axes, _ in over_data} == {("data",)}
    reduced = sum(size for kind, _, size in over_data if kind == "all-reduce")
    others = sum(size for kind, _, size in over_data if kind != "all-reduce")
    # Over `model` too, a small leaf may be added up before it is divided, and one that lies whole divided.
    least, most = compiled[name]["divided"], compiled[name]["gradient"]
    assert least <= reduced <= (1.01 if name == "lanes and data" else 1.2) * most
    assert 0 < others <= 2 * lanes * 2 * 16 * 4  # two log-probabilities a pair, sixteen pairs


def test_a_chip_holds_it(compiled):
    assert all(found["needed"] < 16 * 2**30 for found in compiled.values())
    assert all(found["temporaries"] > 0 for found in compiled.values())
