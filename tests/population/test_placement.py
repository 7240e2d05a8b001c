import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from discojax.population.lanes import initial_state
from discojax.population.optimizer import OptimizerConfig, make_optimizer
from discojax.population.placement import lane_shardings, parameter_spec, shardings

MESH = AbstractMesh((2, 1, 4), ("lane", "data", "model"))


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("blocks/0/mlp/up/kernel", (16, 64), (None, "model")),  # the longer dimension
        ("blocks/0/mlp/down/kernel", (64, 16), ("model", None)),
        ("blocks/0/mlp/up/kernel", (8, 9), ("model", None)),  # the only one that four divides
        ("blocks/0/mlp/up/kernel", (6, 9), ()),
        ("blocks/attention/project/kernel", (12, 8, 16), (None, None, "model")),  # layers are looped over
        ("norm/scale", (16,), ()),
        ("blocks/0/mlp/up/lora_a", (16, 8), ()),
        ("step", (), ()),
    ],
)
def test_a_parameter_is_divided_where_it_can_be(path, shape, expected):
    assert parameter_spec(path, shape, 4) == PartitionSpec(*expected)
    assert parameter_spec(path, shape, 1) == PartitionSpec()


def test_an_embedding_is_divided_along_its_width():
    """Rows are looked up and added to by index, which stays on a device when every device has all rows."""
    assert parameter_spec("embedding/embedding", (400, 16), 4) == PartitionSpec(None, "model")


def test_moments_lie_where_their_parameter_does_behind_the_lanes():
    params = {"up": {"kernel": np.zeros((16, 64))}, "norm": {"scale": np.zeros(16)}}
    state = jax.eval_shape(lambda p: initial_state(p, make_optimizer(OptimizerConfig()), 6), params)
    placed = lane_shardings(MESH, state)
    specs = jax.tree.map(lambda x: x.spec, placed.params)
    assert specs == {
        "up": {"kernel": PartitionSpec("lane", None, "model")},
        "norm": {"scale": PartitionSpec("lane")},
    }
    adam = next(part for part in placed.moments if hasattr(part, "mu"))
    for moment in (adam.mu, adam.nu):
        assert jax.tree.map(lambda x: x.spec, moment) == specs
    assert adam.count.spec == placed.step.spec == placed.diverged.spec == PartitionSpec("lane")
    whole = shardings(MESH, params)["up"]["kernel"]
    assert whole.spec == PartitionSpec(None, "model") and whole.shard_shape((16, 64)) == (16, 16)
