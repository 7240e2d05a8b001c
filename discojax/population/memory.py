"""Whether lanes fit into memory: known from the compiled step, before anything is allocated.

The step is compiled for shapes alone and asked what it takes: weights, moments, gradients and all
temporaries. Training then finds it compiled, so the answer costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.population.lanes import idle_settings

if TYPE_CHECKING:
    from discojax.population.engine import Programs

__all__ = ["abstract_arguments", "available_memory", "check_memory", "needed_memory"]


def abstract_arguments(programs: Programs, data: Pairs) -> tuple[Any, Any, Any, Any]:
    """What `programs.advance` is called with, as shapes and where they lie: for `lower`.

    `data` may be shapes too.
    """
    everywhere = NamedSharding(programs.mesh, jax.P())

    def shape(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)

    state = jax.eval_shape(programs.fresh, programs.params)
    settings = jax.tree.map(shape, idle_settings(programs.lanes))  # NumPy's, placed at each call
    return state, settings, programs.frozen, jax.tree.map(lambda x: shape(x, everywhere), data)


def needed_memory(programs: Programs, data: Pairs) -> int:
    """Bytes the step takes on each device, arguments, results and temporaries together.

    Compiles it if it is not compiled.
    """
    compiled = programs.advance.lower(*abstract_arguments(programs, data)).compile()  # type: ignore[attr-defined]
    stats = compiled.memory_analysis()
    return int(
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


def available_memory(mesh: Mesh) -> int | None:
    """Bytes each device can give: an accelerator's limit, or a CPU's share of what the machine has free.

    None where neither says.
    """
    devices = mesh.local_devices
    if devices[0].platform != "cpu":
        stats = devices[0].memory_stats()
        return None if stats is None else stats.get("bytes_limit")
    free = [x for x in (_free_in_machine(), _free_in_group()) if x is not None]
    return min(free) // len(devices) if free else None


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)


def _free_in_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still take (cgroup v2); pages of files count as free, as they are given back."""
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        rows = (root / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    files = next((int(row.split()[1]) for row in rows if row.startswith("inactive_file ")), 0)
    return max(int(limit) - used + files, 0)


def check_memory(programs: Programs, data: Pairs, limit: int | None = None) -> None:
    """Refuses lanes that do not fit into memory, and says how many would.

    Args:
      programs: for the number of lanes that is asked for.
      data: the pairs, or their shapes.
      limit: bytes there are on each device; None asks the first one.

    Raises:
      UserError: the compiled step needs more than that.
    """
    if limit is None:
        limit = available_memory(programs.mesh)
    if limit is None:
        return
    needed = _needed_or_none(programs, data)
    if needed is not None and needed <= limit:
        return
    fitting = _fitting(programs, data, limit, needed)
    much = "more memory than there is" if needed is None else _size(needed)
    advice = (
        f"{fitting} would fit: set population.lanes={fitting}."
        if fitting
        else "Not even one a device fits: lower population.batch, raise population.accumulate, set "
        "population.dtype=bfloat16, or divide the policy over more devices with population.mesh.model."
    )
    raise UserError(
        f"{programs.lanes} lanes on {programs.mesh.size} device(s) need {much} on each, "
        f"which has {_size(limit)}. {advice}"
    )


def _needed_or_none(programs: Programs, data: Pairs) -> int | None:
    """None for a program so large that the compiler of an accelerator refuses it."""
    try:
        return needed_memory(programs, data)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _fitting(programs: Programs, data: Pairs, limit: int, needed: int | None) -> int:
    """The most lanes that fit. One lane is compiled without loops, so a line is laid through two and more."""
    shards = programs.mesh.shape["lane"]
    most = programs.lanes // shards

    def of(lanes: int) -> int | None:
        return _needed_or_none(programs.of_lanes(lanes * shards), data)

    two = of(2) if most > 2 else None
    if two is None or two > limit:
        one = of(1) if most > 1 else None
        return shards if one is not None and one <= limit else 0
    if needed is None:
        most, needed = 3, of(3)
    if needed is None:
        return 2 * shards
    slope = max(needed - two, 1) / (most - 2)
    return shards * (2 + int((limit - two) / slope))


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**28 else f"{number / 2**20:.1f} MiB"
