"""TPU slices by name: what a chip has, how chips are laid out, and devices to compile for without any.

A slice has two names. JAX's says how chips lie (`v5e:4x4`); the cloud's counts them, in chips for v5e
and v6e (`v5litepod-16`, `v6e-8`) and in cores, two a chip, for v4 and v5p (`v5p-128` is 64 chips).

libtpu's compiler runs on any machine with a CPU: what it needs is to be told not to look for a TPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from discojax.errors import UserError, nearest

__all__ = ["CHIPS", "PRICES_OF", "Chip", "Topology", "compile_devices", "find_topology", "topologies"]

PRICES_OF = "2025-11"
"""When the prices below were the list's: on demand, regions in the USA, https://cloud.google.com/tpu/pricing."""


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as JAX names it.
      memory: bytes of HBM that a program can have, as libtpu's compiler says when there is not enough.
      flops: dense bfloat16 operations a second, from https://cloud.google.com/tpu/docs/system-architecture-tpu-vm.
      bandwidth: bytes a second from and to HBM, and
      links: over all its links to other chips, from the same page.
      dollars: an hour, see `PRICES_OF`.
      cloud: the cloud's name, before the number.
      cores: that the cloud counts in that number for each chip.
      layout: chips along each axis of its slices, smallest first.
      config: how libtpu is to configure a chip, where not by default: both cores of a v4 as one.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    dollars: float
    cloud: str
    cores: int
    layout: tuple[tuple[int, ...], ...]
    config: str | None = None


_GIB = 2**30
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBIC = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16),
    (8, 16, 16),
)  # fmt: skip

CHIPS: tuple[Chip, ...] = (
    Chip("v4", int(30.75 * _GIB), 275e12, 1.228e12, 300e9, 3.22, "v4", 2, _CUBIC, config="megacore"),
    Chip("v5e", int(15.75 * _GIB), 197e12, 0.819e12, 200e9, 1.20, "v5litepod", 1, _FLAT),
    Chip("v5p", int(95.73 * _GIB), 459e12, 2.765e12, 600e9, 4.20, "v5p", 2, _CUBIC),
    Chip("v6e", int(31.24 * _GIB), 918e12, 1.640e12, 448e9, 2.70, "v6e", 1, _FLAT),
)


@dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind, `shape` of them along each axis of their network."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return prod(self.shape)

    @property
    def name(self) -> str:
        """As JAX names it: `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def cloud(self) -> str:
        """As the cloud names it: `v5litepod-16`."""
        return f"{self.chip.cloud}-{self.chips * self.chip.cores}"


def topologies() -> list[Topology]:
    """All slices that are known."""
    return [Topology(chip, shape) for chip in CHIPS for shape in chip.layout]


def find_topology(name: str) -> Topology:
    """The slice of that name, JAX's or the cloud's.

    >>> find_topology("v5litepod-16").name, find_topology("v5p-128").name, find_topology("v6e:2x4").cloud
    ('v5e:4x4', 'v5p:4x4x4', 'v6e-8')

    Raises:
      UserError: there is none; the text names the nearest.
    """
    names: dict[str, Topology] = {}
    for topology in topologies():
        spoken = f"{topology.chip.name}-{topology.chips * topology.chip.cores}"  # v5e-16, as people say
        names |= dict.fromkeys((topology.name, topology.cloud, spoken), topology)
    found = names.get(name.strip().lower())
    if found is None:
        kinds = ", ".join(f"{chip.name} ({chip.cloud}-N)" for chip in CHIPS)
        raise UserError(
            f"There is no TPU slice {name!r}.{_nearest(name.lower(), names)} Slices are of {kinds}, and are "
            "named as in v5e:4x4 or v5litepod-16."
        )
    return found


def _nearest(name: str, names: Mapping[str, Topology]) -> str:
    """A hint: of the slices that are named like it, by their letters, the one nearest in size."""
    kind, number = re.fullmatch(r"(.*?[:-])?([\dx]*).*", name).groups()  # type: ignore[union-attr]
    sizes = {each: _size(each) for each in names if kind and each.startswith(kind)}
    if not (sizes and number.strip("x")):
        return nearest(name, names)
    wanted = _size(f":{number.strip('x')}")
    close = min(sizes, key=lambda each: (abs(sizes[each] - wanted), each))
    return f" Did you mean {close!r}?"


def _size(name: str) -> int:
    return prod(int(n) for n in re.split("[:-]", name)[-1].split("x") if n)


def compile_devices(topology: Topology) -> Sequence[Any]:
    """The devices of a slice, to make a mesh of and to compile for; nothing can run on them.

    Raises:
      UserError: libtpu is not installed, or refuses the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Compiling for a TPU takes libtpu, though no TPU: run `pip install 'jax[tpu]'` on Linux."
        )
    # Without these libtpu asks the cloud's metadata server what machine this is, and waits for an answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.cloud)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    # There is no chip that two processes could both want.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies as described

    options = {} if topology.chip.config is None else {"chip_config_name": topology.chip.config}
    try:
        return described.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except Exception as error:  # libtpu's own, of no narrower type
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"libtpu cannot compile for {topology.name}: {reason}.") from error
