"""From the graph to the machine's instructions, and the graph's direct evaluation."""

from __future__ import annotations

from collections.abc import Container, Mapping

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from discojax.candidates.graph import Apply, Argument, Constant, Node, nodes, uses
from discojax.objectives.machine import Code, encode
from discojax.objectives.operators import OPERATORS

__all__ = ["fuse", "interpret", "lower"]

Fused = tuple[str, tuple[Node, ...]]


def interpret(graph: Node, inputs: Mapping[str, Array]) -> Float[Array, " batch"]:
    """Evaluates the program by the dispatch table `OPERATORS`, and nothing else.

    Args:
      graph: the program.
      inputs: float32 arrays by argument name: `[batch]`, or for `beta` and `progress` `[]`; float64 ones
        where JAX has them.

    Returns:
      the loss of each pair, `[batch]`, of the inputs' dtype.
    """
    values: dict[Node, Array] = {}
    dtype = jnp.result_type(jnp.float32, *inputs.values())
    for node in nodes(graph):
        if isinstance(node, Argument):
            values[node] = inputs[node.name]
        elif isinstance(node, Constant):
            values[node] = jnp.asarray(node.value, dtype)
        else:
            values[node] = OPERATORS[node.operator].function(*(values[operand] for operand in node.operands))
    batch = jnp.broadcast_shapes(*(jnp.shape(value) for value in inputs.values()))
    return jnp.broadcast_to(values[graph], batch)


def fuse(graph: Node, keep: Container[Node] = ()) -> tuple[dict[Node, Fused], set[Node]]:
    """Nodes that are one operation although the canonical form spells them in several.

    `-softplus(-x)` is a log-sigmoid and `-(a - b)` is `b - a`, where the parts have no other use.

    Args:
      graph: the program.
      keep: parts that must stay on their own.

    Returns:
      operator and operands by fused node, and the parts that vanish in them.
    """
    counts = uses(graph)
    fused: dict[Node, Fused] = {}
    swallowed: set[Node] = set()

    def part(node: Node, operator: str) -> Apply | None:
        alone = isinstance(node, Apply) and counts[node] == 1 and node not in keep
        return node if alone and isinstance(node, Apply) and node.operator == operator else None

    for node in reversed(nodes(graph)):
        if not (isinstance(node, Apply) and node.operator == "negative") or node in swallowed:
            continue
        inner = node.operands[0]
        if (softplus := part(inner, "softplus")) and (negative := part(softplus.operands[0], "negative")):
            fused[node] = ("log_sigmoid", negative.operands)
            swallowed |= {softplus, negative}
        elif difference := part(inner, "subtract"):
            fused[node] = ("subtract", difference.operands[::-1])
            swallowed.add(difference)
    return fused, swallowed


def lower(graph: Node) -> Code:
    """The program as `machine.Code`; a shared subexpression is one instruction."""
    fused, swallowed = fuse(graph)
    index: dict[Node, int] = {}
    instructions: list[tuple[str, tuple[str | int | float, ...]]] = []

    def operand(node: Node) -> str | int | float:
        if isinstance(node, Argument):
            return node.name
        return node.value if isinstance(node, Constant) else index[node]

    for node in nodes(graph):
        if isinstance(node, Apply) and node not in swallowed:
            operator, operands = fused.get(node, (node.operator, node.operands))
            index[node] = len(instructions)
            instructions.append((operator, tuple(map(operand, operands))))
    return encode(instructions, operand(graph))
