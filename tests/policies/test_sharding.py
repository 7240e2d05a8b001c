import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from discojax.policies.sharding import batch_over_model, model_size


def constraints(mesh, x, axis=0):
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(lambda x: batch_over_model(x, axis))(x).jaxpr
    return [e.params["sharding"].spec for e in jaxpr.eqns if e.primitive.name == "sharding_constraint"]


def mesh(model, kind=AxisType.Auto):
    return AbstractMesh((2, model), ("lane", "model"), axis_types=(AxisType.Auto, kind))


def test_the_batch_is_divided_over_model():
    assert constraints(mesh(4), jnp.ones((8, 3, 2))) == [jax.P("model")]
    assert constraints(mesh(4), jnp.ones((3, 8, 2)), axis=1) == [jax.P(None, "model")]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (mesh(1), 8),
        (mesh(4), 6),
        (mesh(4, AxisType.Manual), 8),
        (AbstractMesh((2,), ("lane",), axis_types=(AxisType.Auto,)), 8),
    ],
    ids=["one device", "rows that it does not divide", "a shard of a shard_map", "no such axis"],
)
def test_nothing_is_asked_where_there_is_nothing_to_divide(given, rows):
    assert constraints(given, jnp.ones((rows, 3))) == []


def test_nothing_is_asked_without_a_mesh():
    x = jnp.ones((8, 3))
    assert batch_over_model(x) is x


def test_a_policy_is_spread_over_what_is_left_to_the_partitioner():
    assert model_size() == 1
    for given, expected in ((mesh(4), 4), (mesh(1), 1), (mesh(4, AxisType.Manual), 1)):
        with jax.sharding.use_abstract_mesh(given):
            assert model_size() == expected
