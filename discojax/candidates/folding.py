"""Operators on constants alone, computed once, in double precision as Python does it."""

from __future__ import annotations

import math
from collections.abc import Callable

from discojax.candidates.graph import Constant, Node, representable

__all__ = ["fold"]


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


_FOLDED: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negative": lambda a: -a,
    "reciprocal": lambda a: 1 / a,
    "square": lambda a: a * a,
    "power": math.pow,
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sigmoid": lambda a: math.exp(-_softplus(-a)),
    "softplus": _softplus,
    "maximum": max,
    "minimum": min,
    "relu": lambda a: max(a, 0.0),
    "stop_gradient": lambda a: a,
}
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "logical_and": lambda a, b: bool(a and b),
    "logical_or": lambda a, b: bool(a or b),
}


def fold(operator: str, operands: tuple[Node, ...]) -> Constant | None:
    """The constant that `operator` gives for constants; None if it is not one, or not a number."""
    values = [operand.value for operand in operands if isinstance(operand, Constant)]
    if len(values) != len(operands):
        return None
    if operator in _COMPARED:
        return Constant(float(_COMPARED[operator](*values)), "truth")
    if operator == "logical_not":
        return Constant(1.0 - values[0], "truth")
    if operator in _FOLDED:
        try:
            value = float(_FOLDED[operator](*values))
        except (ArithmeticError, ValueError):
            return None  # left in the graph, where the numbers stage names it
        return Constant(value) if representable(value) else None
    return None
