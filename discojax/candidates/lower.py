"""From the graph to the machine's instructions, and the graph's direct evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from discojax.candidates.graph import Apply, Argument, Constant, Node, nodes, uses
from discojax.objectives.machine import Code, encode
from discojax.objectives.operators import OPERATORS

__all__ = ["interpret", "log_sigmoid_of", "lower"]


def interpret(graph: Node, inputs: Mapping[str, Array]) -> Float[Array, " batch"]:
    """Evaluates the program by the dispatch table `OPERATORS`, and nothing else.

    Args:
      graph: the program.
      inputs: float32 arrays by argument name: `[batch]`, or for `beta` and `progress` `[]`.

    Returns:
      the loss of each pair, `[batch]` float32.
    """
    values: dict[Node, Array] = {}
    for node in nodes(graph):
        if isinstance(node, Argument):
            values[node] = inputs[node.name]
        elif isinstance(node, Constant):
            values[node] = jnp.float32(node.value)
        else:
            values[node] = OPERATORS[node.operator].function(*(values[operand] for operand in node.operands))
    batch = jnp.broadcast_shapes(*(jnp.shape(value) for value in inputs.values()))
    return jnp.broadcast_to(values[graph], batch)


def log_sigmoid_of(node: Node, counts: Mapping[Node, int]) -> Node | None:
    """x if the node is `-softplus(-x)`, the canonical log-sigmoid, and its parts have no other use."""
    if not (isinstance(node, Apply) and node.operator == "negative"):
        return None
    inner = node.operands[0]
    if not (isinstance(inner, Apply) and inner.operator == "softplus" and counts[inner] == 1):
        return None
    argument = inner.operands[0]
    if isinstance(argument, Apply) and argument.operator == "negative" and counts[argument] == 1:
        return argument.operands[0]
    return None


def lower(graph: Node) -> Code:
    """The program as `machine.Code`; a shared subexpression is one instruction."""
    counts = uses(graph)
    order = nodes(graph)
    fused = {node: x for node in order if (x := log_sigmoid_of(node, counts)) is not None}
    swallowed = {part for node in fused for part in _between(node, fused[node])}
    index: dict[Node, int] = {}
    instructions: list[tuple[str, tuple[str | int | float, ...]]] = []

    def operand(node: Node) -> str | int | float:
        if isinstance(node, Argument):
            return node.name
        return node.value if isinstance(node, Constant) else index[node]

    for node in order:
        if not isinstance(node, Apply) or node in swallowed:
            continue
        index[node] = len(instructions)
        if node in fused:
            instructions.append(("log_sigmoid", (operand(fused[node]),)))
        else:
            instructions.append((node.operator, tuple(operand(x) for x in node.operands)))
    return encode(instructions, operand(graph))


def _between(outer: Node, inner: Node) -> list[Node]:
    parts = []
    node = outer
    while node != inner:
        assert isinstance(node, Apply)
        node = node.operands[0]
        parts.append(node)
    return parts[:-1]
