"""Finds the operation that made a value or a slope infinite or undefined, and says what to write."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from discojax.candidates.graph import Apply, Argument, Constant, Node, nodes
from discojax.candidates.printer import CALLS
from discojax.objectives.operators import OPERATORS

__all__ = ["blame"]

_HINTS = {
    "log": "keep its argument above 0; for log of a sigmoid use jax.nn.log_sigmoid",
    "log2": "keep its argument above 0",
    "log10": "keep its argument above 0",
    "log1p": "keep its argument above -1",
    "sqrt": "keep its argument above 0, as in jnp.sqrt(x + 1e-6)",
    "rsqrt": "keep its argument above 0, as in jax.lax.rsqrt(x + 1e-6)",
    "cbrt": "its slope at 0 is infinite; shift or smooth it",
    "divide": "keep the divisor away from 0, as in x / (y + 1e-6)",
    "reciprocal": "keep the divisor away from 0, as in 1 / (x + 1e-6)",
    "power": "a fractional power needs a base above 0, as in (jnp.abs(x) + 1e-6) ** p",
    "exp": "it overflows; clip its argument, as in jnp.exp(jnp.clip(x, -80, 80))",
    "exp2": "it overflows; clip its argument",
    "expm1": "it overflows; clip its argument",
    "sinh": "it overflows; clip its argument",
    "cosh": "it overflows; clip its argument",
    "hypot": "its slope at (0, 0) is undefined; add a small constant under a jnp.sqrt",
    "arctan2": "its slope at (0, 0) is undefined; add a small constant",
    "remainder": "keep the divisor away from 0",
    "tan": "it is infinite at odd multiples of pi/2; use jnp.tanh or clip",
}
_GUARD = "jnp.where does not help unless both branches stay finite"


def blame(
    graph: Node, lines: Mapping[Node, int], inputs: Mapping[str, np.ndarray], what: str, where: str
) -> tuple[int | None, str]:
    """The line at fault and a reason with a hint.

    Args:
      graph: the program.
      lines: source lines of its nodes.
      inputs: arguments at which it fails, `[batch]` or `[]` float32.
      what: "the loss" or "the gradient", which is not finite.
      where: words for the inputs.
    """
    values: dict[Node, jax.Array] = {}
    for node in nodes(graph):
        if isinstance(node, Argument):
            values[node] = jnp.asarray(inputs[node.name], jnp.float32)
        elif isinstance(node, Constant):
            values[node] = jnp.float32(node.value)
        else:
            operands = [values[operand] for operand in node.operands]
            function = OPERATORS[node.operator].function
            result, pullback = jax.vjp(function, *operands)
            values[node] = result
            if not np.isfinite(result).all():
                got = "nan" if np.isnan(result).any() else "infinity"
                return lines.get(node), _sentence(node, f"gives {got}", where)
            if what == "the gradient":
                slopes = pullback(jnp.ones_like(result))
                needed = [
                    s for s, o in zip(slopes, node.operands, strict=True) if not isinstance(o, Constant)
                ]
                if not all(np.isfinite(slope).all() for slope in needed):
                    return lines.get(node), _sentence(node, "has an infinite or undefined slope", where)
    return None, f"{what} is not finite {where}; keep the argument of each exp, log and division bounded"


def _sentence(node: Apply, verb: str, where: str) -> str:
    written = {"divide": "the division", "reciprocal": "the division", "power": "`**`", "multiply": "`*`"}
    name = written.get(node.operator) or CALLS.get(node.operator, node.operator)
    hint = _HINTS.get(node.operator, "keep its operands bounded")
    guard = f"; {_GUARD}" if node.operator in ("log", "sqrt", "divide", "reciprocal", "power") else ""
    return f"{name} {verb} {where}; {hint}{guard}"
