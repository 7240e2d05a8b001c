import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from discojax.policies.partition import partition


def test_every_parameter_of_a_full_policy_trains(policy):
    graph, trainable, frozen = partition(policy)
    assert not jax.tree.leaves(frozen)
    assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(nnx.state(policy, nnx.Param)))
    ids = np.arange(8, dtype=np.int32)[None]
    np.testing.assert_array_equal(nnx.merge(graph, trainable, frozen).hidden(ids), policy.hidden(ids))


def test_only_adapters_train_where_there_are_any(make_policy):
    policy = make_policy(0)
    everything = len(jax.tree.leaves(nnx.state(policy, nnx.Param)))
    policy.blocks[0].mlp.adapter = nnx.LoRAParam(jnp.ones((2, 3)))
    graph, trainable, frozen = partition(policy)
    (adapter,) = jax.tree.leaves(trainable)
    assert adapter.shape == (2, 3)
    assert len(jax.tree.leaves(frozen)) == everything
    assert nnx.merge(graph, trainable, frozen).blocks[0].mlp.adapter.shape == (2, 3)


def test_shapes_are_parted_as_arrays_are(policy):
    shapes = nnx.eval_shape(lambda: policy)
    assert jax.tree.structure(partition(shapes)) == jax.tree.structure(partition(policy))
