"""No host holds a model twice, and each device holds its part alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

if sys.platform != "linux":
    pytest.skip("the kernel's peak of resident memory is read as Linux gives it", allow_module_level=True)

WIDTH, HIDDEN, LAYERS, VOCAB = 384, 1536, 12, 2048
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "tie_word_embeddings": True,
}

# In a process of its own: its peak is its own, and the number of devices is decided when JAX starts.
SCRIPT = """
import json, resource, sys
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from discojax.policies import pretrained
from discojax.policies.pretrained.architectures import policy_config
from discojax.policies.pretrained.safetensor_files import SafetensorFiles

directory, how = sys.argv[1:]
policy_config(json.load(open(directory + "/config.json")), directory)  # imports what it needs
mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
def divided(shapes):
    def place(x):
        names = [None] * x.ndim
        if x.ndim > 1:
            names[-1] = "model"
        return NamedSharding(mesh, PartitionSpec(*names))
    return jax.tree.map(place, shapes)

elements, read = {}, SafetensorFiles.read
def counted(self, name, index):
    found = read(self, name, index)
    elements[name] = elements.get(name, 0) + found.size
    return found
SafetensorFiles.read = counted
jax.block_until_ready(jax.device_put(np.zeros(8), NamedSharding(mesh, PartitionSpec("model"))))

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = pretrained.load(directory, sharding=divided if how == "divided" else None, scan=how == "stacked")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
leaves = jax.tree.leaves(nnx.state(loaded.policy))
parts = {(len(x.sharding.device_set), x.addressable_shards[0].data.size / x.size) for x in leaves}
print(json.dumps({
    "peak": (after - before) * 1024,
    "bytes": sum(x.nbytes for x in leaves),
    "parts": sorted(parts),
    "elements": elements,
}))
"""


def shapes():
    block = {
        **dict.fromkeys((f"self_attn.{name}_proj.weight" for name in "qkvo"), (WIDTH, WIDTH)),
        "mlp.gate_proj.weight": (HIDDEN, WIDTH),
        "mlp.up_proj.weight": (HIDDEN, WIDTH),
        "mlp.down_proj.weight": (WIDTH, HIDDEN),
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    layers = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    return {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), **layers}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model of 117 MB in one file."""
    made = tmp_path_factory.mktemp("large")
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in shapes().items()}, made / "model.safetensors"
    )
    return made


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["stacked", pytest.param("divided", marks=pytest.mark.slow)])
def test_the_peak_is_the_model_and_not_two_of_it(directory, how, repository):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), how],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == sum(4 * int(np.prod(shape)) for shape in shapes().values()) > 100e6
    # Stacked, the largest parameter (a quarter of them all) is assembled before it is put in place.
    assert found["peak"] < (1.55 if how == "stacked" else 1.4) * found["bytes"], (
        found["peak"] / found["bytes"]
    )
    for name, shape in shapes().items():
        assert found["elements"][name] == np.prod(shape), name
    assert found["parts"] == ([[4, 0.25], [4, 1.0]] if how == "divided" else [[1, 1.0]])
