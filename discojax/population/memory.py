"""Whether lanes fit into memory: known from the compiled step, before anything is allocated.

The step is compiled for shapes alone and asked what it takes: weights, moments, gradients and all
temporaries. Training then finds it compiled, so the answer costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.population.lanes import idle_settings

if TYPE_CHECKING:
    from discojax.population.engine import Programs

__all__ = [
    "Measuring",
    "Usage",
    "abstract_arguments",
    "available_memory",
    "check_measuring",
    "check_memory",
    "compile_step",
    "compile_usage",
    "fitting_lanes",
    "measuring_memory",
    "needed_memory",
    "written",
]


class Usage(NamedTuple):
    """Bytes that a compiled step takes on each device.

    Attributes:
      arguments: the state, the frozen weights, the data, and the settings.
      temporaries: what it works with: gradients, activations.
      results: what does not take an argument's place.
      program: its instructions.
    """

    arguments: int
    temporaries: int
    results: int
    program: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


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


def compile_step(programs: Programs, data: Pairs) -> tuple[Any, Usage] | None:
    """The compiled step and what it takes; None where it is so large that the compiler refuses it.

    Nothing is compiled twice. `data` may be shapes.
    """
    return compile_usage(programs.advance, *abstract_arguments(programs, data))


def compile_usage(function: Any, *arguments: Any) -> tuple[Any, Usage] | None:
    """The same of any jitted function, for arguments or their shapes."""
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    stats = compiled.memory_analysis()
    return compiled, Usage(
        int(stats.argument_size_in_bytes),
        int(stats.temp_size_in_bytes),
        int(stats.output_size_in_bytes - stats.alias_size_in_bytes),
        int(stats.generated_code_size_in_bytes),
    )


def needed_memory(programs: Programs, data: Pairs) -> int | None:
    """Bytes the step takes on each device; None where the compiler refuses it.

    Compiles it if it is not compiled.
    """
    found = compile_step(programs, data)
    return None if found is None else found[1].total


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
    needed = needed_memory(programs, data)
    if needed is not None and needed <= limit:
        return
    fitting = _seen_to_fit(programs, data, limit, fitting_lanes(programs, data, limit, needed))
    much = "more memory than there is" if needed is None else written(needed)
    advice = (
        f"{fitting} would fit: set population.lanes={fitting}."
        if fitting
        else "Not even one a device fits: lower population.batch, raise population.accumulate, set "
        "population.dtype=bfloat16, or divide the policy over more devices with population.mesh.model."
    )
    raise UserError(
        f"{programs.lanes} lanes on {programs.mesh.size} device(s) need {much} on each, "
        f"which has {written(limit)}. {advice}"
    )


Measuring = Callable[["Programs", int], Sequence[tuple[Any, tuple[Any, ...]]]]
"""The jitted functions that measure lanes of such programs on so many prompts, with their arguments or the
shapes of these, of which the first is what trains of all lanes and the second what is frozen."""


def measuring_memory(programs: Programs, data: Pairs, measuring: Measuring, prompts: int) -> int | None:
    """Bytes that measuring takes on each device, with the lanes' moments and the pairs beside it.

    None where the compiler refuses it. Compiles what is not compiled.
    """
    state, _, _, pairs = abstract_arguments(programs, data)
    besides = _held((state, pairs)) - _held(state.params)
    found = [compile_usage(function, *given) for function, given in measuring(programs, prompts)]
    if any(each is None for each in found):
        return None
    return besides + max(each[1].total for each in found if each is not None)


def check_measuring(
    programs: Programs, data: Pairs, measuring: Measuring, prompts: int, limit: int | None = None
) -> None:
    """Refuses lanes that could be trained but not measured, and says how many lanes or prompts would fit.

    The same functions are called later and found compiled.

    Args:
      programs: for the number of lanes that is asked for.
      data: the pairs, or their shapes, which lie on the devices meanwhile.
      measuring: see `Measuring`.
      prompts: what is measured on.
      limit: bytes there are on each device; None asks the first one.

    Raises:
      UserError: measuring needs more than that, with the lanes' moments beside it.
    """
    if limit is None:
        limit = available_memory(programs.mesh)
    if limit is None:
        return

    def fits(programs: Programs, prompts: int) -> bool:
        much = measuring_memory(programs, data, measuring, prompts)
        return much is not None and much <= limit

    much = measuring_memory(programs, data, measuring, prompts)
    if much is not None and much <= limit:
        return
    fewer = next((n for n in _halves(prompts) if fits(programs, n)), 0)
    shards = programs.mesh.shape["lane"]
    lanes = next(
        (
            n * shards
            for n in _halves(programs.lanes // shards)
            if fits(programs.of_lanes(n * shards), prompts)
        ),
        0,
    )
    ways = [f"{fewer} prompts would fit (evaluation.prompts={fewer})"] if fewer else []
    ways += [f"{lanes} lanes would fit (population.lanes={lanes})"] if lanes else []
    advice = " or ".join(ways) or "Not even one lane or prompt fits: set population.dtype=bfloat16"
    raise UserError(
        f"Measuring {programs.lanes} lanes on {prompts} prompts needs "
        f"{'more memory than there is' if much is None else written(much)} on each of "
        f"{programs.mesh.size} device(s), which has {written(limit)}: {advice}."
    )


def _halves(number: int) -> list[int]:
    """Half of a number, half of that, and so on down to 1."""
    return [number >> k for k in range(1, number.bit_length())]


def _held(tree: Any) -> int:
    """Bytes of shapes on each device."""

    def of(x: Any) -> int:
        return int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize

    return sum(of(x) for x in jax.tree.leaves(tree))


def _seen_to_fit(programs: Programs, data: Pairs, limit: int, guess: int) -> int:
    """As many lanes as are guessed to fit (`fitting_lanes`), or fewer, compiled and seen to.

    Under `vmap` memory is no line: with more lanes each has shorter blocks of logits, so that six may take
    less than five.
    """
    shards = programs.mesh.shape["lane"]
    guess = min(guess // shards, programs.lanes // shards - 1)
    while guess > 2:  # one and two were compiled for the guess
        took = needed_memory(programs.of_lanes(guess * shards), data)
        if took is not None and took <= limit:
            break
        guess = max(guess // 2 if took is None else int(guess * limit / took), 2)
    return guess * shards


def fitting_lanes(programs: Programs, data: Pairs, limit: int, needed: int | None) -> int:
    """The most lanes that should fit, 0 for none: where memory grows with lanes as it did up to here.

    One lane a device is compiled without loops, so a line is laid through two and more. It is a guess.

    Args:
      programs: for any number of lanes.
      data: the pairs, or their shapes.
      limit: bytes there are on each device.
      needed: what `programs` need; None where the compiler refuses them.
    """
    shards = programs.mesh.shape["lane"]
    most = programs.lanes // shards

    def of(lanes: int) -> int | None:
        return needed_memory(programs.of_lanes(lanes * shards), data)

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


def written(number: int) -> str:
    """A number of bytes as people read it."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**28 else f"{number / 2**20:.1f} MiB"
