"""Operators on constants alone, computed once, in double precision as Python does it."""

from __future__ import annotations

import math
from collections.abc import Callable

from discojax.candidates.graph import Constant, GraphError, Node, representable

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
    """The constant that `operator` gives for constants; None for other operands, or if it is not folded.

    Raises:
      GraphError: if the result is no number, or too large or small to be a constant.
    """
    values = [operand.value for operand in operands if isinstance(operand, Constant)]
    if len(values) != len(operands):
        return None
    if operator in _COMPARED:
        return Constant(float(_COMPARED[operator](*values)), "truth")
    if operator == "logical_not":
        return Constant(1.0 - values[0], "truth")
    if operator not in _FOLDED:
        return None
    try:
        value = float(_FOLDED[operator](*values))
    except (ArithmeticError, ValueError):
        raise GraphError(f"{operator} of these constants is not a number") from None
    if not representable(value):
        raise GraphError(f"{operator} of these constants is outside 1e-30 to 1e10 in size")
    return Constant(value)
