"""Preference objectives: what a loss is, the library of known ones, and the machine that runs them.

    >>> from discojax import objectives
    >>> objectives.get("discopop")
    Objective(name='discopop', ...)

Importing this package imports no JAX; the first use of a loss does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from discojax.objectives.registry import NOTATION, canonical, get, names, objective, register
from discojax.objectives.types import ARGUMENTS, LogProbs, Objective

if TYPE_CHECKING:
    from discojax.objectives.curves import Curve, curve
    from discojax.objectives.machine import MAX_CONSTANTS, MAX_INSTRUCTIONS, Code, encode, evaluate
    from discojax.objectives.operators import OPCODES, OPERATORS, Operator

__all__ = [
    "ARGUMENTS",
    "MAX_CONSTANTS",
    "MAX_INSTRUCTIONS",
    "NOTATION",
    "OPCODES",
    "OPERATORS",
    "Code",
    "Curve",
    "LogProbs",
    "Objective",
    "Operator",
    "canonical",
    "curve",
    "encode",
    "evaluate",
    "get",
    "names",
    "objective",
    "register",
]

__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": ["Curve", "curve"],
        "machine": ["Code", "MAX_CONSTANTS", "MAX_INSTRUCTIONS", "encode", "evaluate"],
        "operators": ["OPCODES", "OPERATORS", "Operator"],
    },
)


def __dir__() -> list[str]:
    """All public names, not the lazy ones alone."""
    return __all__
