"""discojax: discover preference-optimisation losses."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "candidates",
    "config",
    "data",
    "objectives",
    "policies",
    "population",
    "proposers",
    "report",
    "search",
    "tasks",
)
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import discojax` and `--help` need neither JAX nor Transformers.
    if name in _SUBMODULES:
        return import_module(f"discojax.{name}")
    raise AttributeError(f"module 'discojax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
