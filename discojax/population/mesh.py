"""The mesh: devices along `lane`, `data` and `model`. `population.placement` says what lies where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from discojax.errors import UserError

__all__ = ["AXES", "make_mesh", "manual_axes", "own_part", "rows_per_device"]

AXES = ("lane", "data", "model")


def make_mesh(
    lane: int = 0, data: int = 1, model: int = 1, *, among: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes `lane`, `data` and `model`; `lane=0` takes what devices the others leave.

    `among` are the devices; None is all that there are.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count() if among is None else len(among)
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
    sizes, kinds = (lane, data, model), (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=among)
    except NotImplementedError:
        # An axis such as 8 is no product of a slice's own (4x4x4): it takes a part of one of them.
        all_of_them = list(jax.devices() if among is None else among)
        placed = mesh_utils.create_device_mesh(sizes, all_of_them, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=kinds)


def own_part(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices alone, which divides a policy over as many of them as it can.

    For what one process does while the others wait. It is the mesh itself where it has no other's devices.
    """
    devices = jax.local_devices()
    if mesh.size == len(devices) or not mesh.is_multi_process:
        return mesh
    model = math.gcd(mesh.shape["model"], len(devices))
    return make_mesh(len(devices) // model, 1, model, among=devices)


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
