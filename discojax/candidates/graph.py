"""A candidate as a typed expression graph: arguments, constants, and operators applied to them.

Nodes are immutable and compare by a digest of what they compute (a Merkle tree of SHA-256), so
equal expressions are equal wherever they came from, sharing costs nothing, and the digest of the
root is the program's stable hash. `canonical.apply` is the constructor to use: it checks types,
folds constants and orders operands, so a graph built with it is canonical by construction.

Every function here visits a node once: a graph of 100 nodes may be a tree of 2^100.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from discojax.objectives.machine import MAX_CONSTANTS, MAX_INSTRUCTIONS
from discojax.objectives.operators import OPERATORS, Kind
from discojax.objectives.types import ARGUMENTS

__all__ = [
    "LARGEST_CONSTANT",
    "MAX_CONSTANTS",
    "MAX_DEPTH",
    "MAX_OPERATIONS",
    "Apply",
    "Argument",
    "Constant",
    "GraphError",
    "Node",
    "Shape",
    "arguments",
    "batch_coupled",
    "check_size",
    "complexity",
    "constants",
    "nodes",
    "operations",
    "uses",
]

Shape = Literal["scalar", "batch"]

# Below the machine's own limit: a printed program must fit the 4 kB that the text stage admits.
MAX_OPERATIONS = min(96, MAX_INSTRUCTIONS)
MAX_DEPTH = 64
LARGEST_CONSTANT = 1e10
_SMALLEST_CONSTANT = 1e-30
_SCALARS = ("beta", "progress")


class GraphError(ValueError):
    """An expression that cannot be built: wrong operand count, kind or shape, or too large."""


class _Compared:
    """Equality and hashing by what a node computes."""

    digest: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Compared) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\0".join(parts)).digest()


@dataclass(frozen=True, eq=False)
class Argument(_Compared):
    """One of `ARGUMENTS`: a value per pair, or for `beta` and `progress` one for the batch."""

    name: str
    kind: Kind = field(default="number", init=False)
    shape: Shape = field(init=False, repr=False)
    digest: bytes = field(init=False, repr=False)
    skeleton: bytes = field(init=False, repr=False)
    depth: int = field(default=0, init=False, repr=False)
    leading: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.name not in ARGUMENTS:
            raise GraphError(f"no argument {self.name!r}")
        digest = _sha(b"argument", self.name.encode())
        shape = "scalar" if self.name in _SCALARS else "batch"
        _set(self, shape=shape, digest=digest, skeleton=digest, leading=ARGUMENTS.index(self.name))


@dataclass(frozen=True, eq=False)
class Constant(_Compared):
    """A float32 number (held as its shortest decimal), or a truth value 0.0 or 1.0."""

    value: float
    kind: Kind = "number"
    shape: Shape = field(default="scalar", init=False, repr=False)
    digest: bytes = field(init=False, repr=False)
    skeleton: bytes = field(init=False, repr=False)
    depth: int = field(default=0, init=False, repr=False)
    leading: int = field(default=len(ARGUMENTS), init=False, repr=False)

    def __post_init__(self) -> None:
        if not representable(self.value):
            raise GraphError(f"the constant {self.value:g} is outside ±{LARGEST_CONSTANT:g}")
        if self.kind == "truth" and self.value not in (0.0, 1.0):
            raise GraphError("a truth value is 0.0 or 1.0")
        # `+ 0.0` turns -0.0 into 0.0; the string is the shortest that reads back as this float32.
        value = float(str(np.float32(self.value))) + 0.0
        digest = _sha(b"constant", self.kind.encode(), repr(value).encode())
        _set(self, value=value, digest=digest, skeleton=_sha(b"constant", self.kind.encode()))


@dataclass(frozen=True, eq=False)
class Apply(_Compared):
    """An operator of `OPERATORS` applied to nodes. Build it with `canonical.apply`.

    Raises:
      GraphError: for an unknown operator, the wrong number or kind of operands, or a batch
        operator given a value that is the same for all pairs.
    """

    operator: str
    operands: tuple[Node, ...]
    kind: Kind = field(init=False, repr=False)
    shape: Shape = field(init=False, repr=False)
    digest: bytes = field(init=False, repr=False)
    skeleton: bytes = field(init=False, repr=False)
    depth: int = field(init=False, repr=False)
    leading: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise GraphError(f"no operator {self.operator!r}")
        operator = OPERATORS[self.operator]
        if len(self.operands) != operator.arity:
            raise GraphError(f"{self.operator} takes {operator.arity} operands, got {len(self.operands)}")
        for wanted, operand in zip(operator.takes, self.operands, strict=True):
            if operand.kind != wanted:
                raise GraphError(f"{self.operator} takes a {wanted} where a {operand.kind} is given")
        if operator.batch and self.operands[0].shape == "scalar":
            raise GraphError(f"{self.operator} needs a value per pair, not one for the whole batch")
        if self.operator == "quantile" and self.operands[1].shape == "batch":
            raise GraphError("quantile takes one level for the batch, not one per pair")
        batch = any(operand.shape == "batch" for operand in self.operands) and not operator.reduces
        name = self.operator.encode()
        _set(
            self,
            kind=operator.gives,
            shape="batch" if batch else "scalar",
            digest=_sha(b"apply", name, *(operand.digest for operand in self.operands)),
            skeleton=_sha(b"apply", name, *(operand.skeleton for operand in self.operands)),
            depth=1 + max(operand.depth for operand in self.operands),
            leading=min(operand.leading for operand in self.operands),
        )


Node = Argument | Constant | Apply
"""An expression, and by its root a whole program.

Attributes of every node: `kind` ("number" or "truth"), `shape` ("batch": one value per pair, or
"scalar"), `digest` (what it computes), `skeleton` (the same but for the values of constants),
`depth` (operators on the longest path below it), `leading` (the first of `ARGUMENTS` in it).
"""


def _set(node: Node, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(node, name, value)  # the one place that writes to a frozen node


def representable(value: float) -> bool:
    """Whether a constant may stand in a program: zero, or of a size float32 handles with room."""
    return value == 0 or (math.isfinite(value) and _SMALLEST_CONSTANT <= abs(value) <= LARGEST_CONSTANT)


def nodes(root: Node) -> list[Node]:
    """Every node once, operands before what uses them, in an order that depends on the graph alone."""
    order: dict[bytes, Node] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        operands = node.operands if isinstance(node, Apply) else ()
        if missing := [operand for operand in operands if operand.digest not in order]:
            stack.extend(reversed(missing))
        else:
            order[stack.pop().digest] = node
    return list(order.values())


def operations(root: Node) -> int:
    """How many operators the program runs, shared ones once."""
    return sum(isinstance(node, Apply) for node in nodes(root))


def constants(root: Node) -> tuple[float, ...]:
    """Its different constants in order of first use: the order of `machine.Code.constants`."""
    found: dict[float, None] = {}
    for node in nodes(root):
        for operand in node.operands if isinstance(node, Apply) else (node,) if node is root else ():
            if isinstance(operand, Constant):
                found[operand.value] = None
    return tuple(found)


def arguments(root: Node) -> tuple[str, ...]:
    """The names of the arguments it reads, in the order of `ARGUMENTS`."""
    read = {node.name for node in nodes(root) if isinstance(node, Argument)}
    return tuple(name for name in ARGUMENTS if name in read)


def uses(root: Node) -> dict[Node, int]:
    """How many operands refer to each node."""
    counts: dict[Node, int] = {}
    for node in nodes(root):
        for operand in node.operands if isinstance(node, Apply) else ():
            counts[operand] = counts.get(operand, 0) + 1
    return counts


def batch_coupled(root: Node) -> bool:
    """Whether the loss of a pair depends on the other pairs: a statistic or a sort is inside."""
    return any(isinstance(node, Apply) and OPERATORS[node.operator].batch for node in nodes(root))


def complexity(root: Node) -> int:
    """A size for parsimony and archives: operators, plus constants, each counted once."""
    return operations(root) + len(constants(root))


def check_size(root: Node) -> None:
    """Refuses a program that is too large to run or to print.

    Raises:
      GraphError: beyond `MAX_OPERATIONS`, `MAX_CONSTANTS` or `MAX_DEPTH`.
    """
    count = operations(root)
    if count > MAX_OPERATIONS:
        raise GraphError(f"{count} operations; at most {MAX_OPERATIONS} are allowed, so simplify the loss")
    if root.depth > MAX_DEPTH:
        raise GraphError(f"operations nested {root.depth} deep; at most {MAX_DEPTH} are allowed")
    count = len(constants(root))
    if count > MAX_CONSTANTS:
        raise GraphError(f"{count} different constants; at most {MAX_CONSTANTS} are allowed")
