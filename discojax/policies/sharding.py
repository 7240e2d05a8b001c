"""Where activations lie while a policy's weights are sharded over the mesh axis `model`."""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

__all__ = ["MODEL", "batch_over_model"]

MODEL = "model"


def batch_over_model(x: Array, axis: int = 0) -> Array:
    """Keeps the batch axis of an activation, the leading one, divided over the mesh axis `model`.

    Weights sharded over `model` are then gathered where they are used (FSDP), and no activation is.
    Left to itself the partitioner may as well divide the width and exchange activations.

    Returns `x` as it is where the current mesh (`jax.set_mesh`, or the one of a `shard_map`) has no
    such axis, or one of size 1, or one that is not left to the partitioner, or where the batch is not
    a multiple of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or MODEL not in mesh.axis_names:
        return x
    size = mesh.shape[MODEL]
    if size == 1 or dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[MODEL] != AxisType.Auto:
        return x
    if x.shape[axis] % size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, MODEL))
