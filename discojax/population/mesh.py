"""The mesh: which devices hold which lanes."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

from discojax.errors import UserError

__all__ = ["AXES", "make_mesh"]

AXES = ("lane", "data", "model")


def make_mesh(lane: int = 0, data: int = 1, model: int = 1) -> Mesh:
    """A mesh with axes `lane`, `data` and `model`; `lane=0` takes what devices the others leave.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if data < 1 or model < 1 or lane < 0:
        raise UserError(
            f"Mesh sizes must be positive (lane may be 0 for 'the rest'); got {lane}, {data}, {model}."
        )
    if lane == 0:
        lane = max(devices // (data * model), 1)
    if lane * data * model != devices:
        raise UserError(
            f"A mesh of lane={lane} x data={data} x model={model} needs {lane * data * model} devices, "
            f"but there are {devices}. Change population.mesh so that the product is {devices}."
        )
    return jax.make_mesh((lane, data, model), AXES, axis_types=(AxisType.Auto,) * 3)
