"""The backend: what JAX is told before it starts, and which form of the step suits it.

`configure_backend` must run before anything imports JAX.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

__all__ = ["choose_implementation", "configure_backend"]


def configure_backend() -> None:
    """Keeps compiled programs between runs, and XLA's own logging out of the user's terminal.

    Variables that the user has set win. Does nothing to a JAX that has already been imported: its
    flags have been read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "jax" in sys.modules:
        return
    from discojax.data import cache

    # Whoever can write this directory can have code run: it is the user's own, and the process that
    # checks candidates is not told of it.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.default_root() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def choose_implementation(wanted: Literal["auto", "map", "vmap"]) -> Literal["map", "vmap"]:
    """`map` on a CPU, whose caches hold one lane, and `vmap` elsewhere, unless the user chose.

    As measured by `python -m benchmarks.implementations`; its table is in docs/population.md.
    """
    if wanted != "auto":
        return wanted
    import jax

    return "map" if jax.default_backend() == "cpu" else "vmap"
