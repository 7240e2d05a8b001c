"""Preference objectives: what a loss is, the library of known ones, and the machine that runs them.

    >>> from discojax import objectives
    >>> objectives.get("discopop")
    Objective(name='discopop', ...)

Importing this package imports no JAX; the first use of a loss does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_LAZY = {  # these import JAX
    "Curve": "curves",
    "curve": "curves",
    "MAX_CONSTANTS": "machine",
    "MAX_INSTRUCTIONS": "machine",
    "Code": "machine",
    "encode": "machine",
    "evaluate": "machine",
    "OPCODES": "operators",
    "OPERATORS": "operators",
    "Operator": "operators",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
