"""Whole training steps of real sizes, compiled for TPU slices that nobody needs to have.

Weights are shapes. A step is forward, backward and AdamW over float32 masters, computed in bfloat16,
with weights and moments divided over `model` (FSDP), 64 sequences a step.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from discojax.policies.decoder import Decoder
from discojax.policies.logprobs import completion_logps
from discojax.policies.published import PUBLISHED
from discojax.population.placement import shardings
from discojax.population.topology import compile_devices, find_topology

pytestmark = pytest.mark.tpu_compile

LOOP = {"scan": True, "remat": "block", "attention": "xla"}  # as a TPU chooses, compiled on a CPU
STRUCTURES = {
    "gpt2": PUBLISHED["gpt2"],
    "llama3-8b": PUBLISHED["meta-llama/Meta-Llama-3-8B"],
    "gemma-7b": PUBLISHED["google/gemma-7b"],
}
PARAMETERS = {"gpt2": 124_439_808, "llama3-8b": 8_030_261_248, "gemma-7b": 8_537_680_896}
SLICE, CHIPS, HBM = "v5e:4x4", 16, 15.75  # GiB of a chip that a program can have
SEQUENCES, TIME, COMPLETION = 64, 1024, 512


@pytest.fixture(scope="module")
def devices():
    """Those of a slice, compiled for without one."""
    pytest.importorskip("libtpu")
    return compile_devices(find_topology(SLICE))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_training_step_fits_a_slice(structure, devices):
    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((CHIPS,), ("model",), axis_types=kind, devices=devices)
    config = replace(STRUCTURES[structure], **LOOP)
    graph, weights = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == PARAMETERS[structure]
    optimizer = optax.adamw(1e-6)

    def step(weights, moments, ids, prompts, completions):
        def loss(weights):
            policy = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights))
            return -completion_logps(policy, ids, prompts, completions, tokens=COMPLETION).mean()

        updates, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
        return optax.apply_updates(weights, updates), moments

    def placed(tree, where):
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)

    moments = jax.eval_shape(optimizer.init, weights)
    ids = jax.ShapeDtypeStruct((SEQUENCES, TIME), jnp.int32)
    lengths = jax.ShapeDtypeStruct((SEQUENCES,), jnp.int32)
    rows = jax.NamedSharding(mesh, jax.P("model"))
    state = [placed(tree, shardings(mesh, tree)) for tree in (weights, moments)]
    batch = [placed(leaf, rows) for leaf in (ids, lengths, lengths)]
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, *batch).compile()

    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # the state is replaced
    arguments, temporary = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    print(f"{structure} on {SLICE}: {arguments:.2f} GiB of state, {temporary:.2f} GiB of temporaries a chip")
    assert arguments < 1.05 * 12 * PARAMETERS[structure] / CHIPS / 2**30  # weights and moments are divided
    assert arguments + temporary < HBM
