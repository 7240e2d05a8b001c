"""Where activations lie while a policy's weights are sharded over the mesh axis `model`."""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

__all__ = ["MODEL", "batch_over_model", "model_size"]

MODEL = "model"


def model_size() -> int:
    """Devices that the partitioner spreads one policy over; 1 where there is nothing to spread it over.

    That is the size of the axis `model` of the current mesh (`jax.set_mesh`, or the one of a
    `shard_map`), if it is left to the partitioner.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh.shape[MODEL] if kinds.get(MODEL) == AxisType.Auto else 1


def batch_over_model(x: Array, axis: int = 0) -> Array:
    """Keeps the batch axis of an activation, the leading one, divided over the mesh axis `model`.

    Weights sharded over `model` are then gathered where they are used (FSDP), and no activation is.
    Left to itself the partitioner may as well divide the width and exchange activations.

    Returns `x` as it is where `model_size` is 1, or where the batch is not a multiple of it.
    """
    size = model_size()
    if size == 1 or x.shape[axis] % size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, MODEL))
