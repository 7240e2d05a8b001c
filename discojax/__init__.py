"""discojax: discover preference-optimisation losses."""

import lazy_loader

__version__ = "0.1.0"

# Lazy, so that `import discojax` and `--help` need neither JAX nor Transformers.
__getattr__, __dir__, _names = lazy_loader.attach(
    __name__,
    submodules={
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
    },
)
__all__ = ["__version__", *_names]
