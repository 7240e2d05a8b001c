"""The mesh: devices along `lane`, `data` and `model`. `population.placement` says what lies where."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

from discojax.errors import UserError

__all__ = ["AXES", "make_mesh", "manual_axes", "rows_per_device"]

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


def manual_axes(mesh: Mesh) -> frozenset[str]:
    """The axes whose communication the step writes itself; `model`, if divided, is the compiler's."""
    return frozenset(AXES if mesh.shape["model"] == 1 else AXES[:2])


def rows_per_device(mesh: Mesh, batch: int, accumulate: int = 1) -> int:
    """The pairs of a batch that fall to each device along `data`.

    Raises:
      UserError: they are not the same number for every device and part.
    """
    devices = mesh.shape["data"]
    if accumulate < 1 or batch % (devices * accumulate):
        raise UserError(
            f"A batch of {batch} pairs cannot be divided over data={devices} devices in "
            f"accumulate={accumulate} parts each: make population.batch a multiple of "
            f"{devices * max(accumulate, 1)}, or change population.mesh.data or population.accumulate."
        )
    return batch // devices
