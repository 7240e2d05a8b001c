"""Builds graphs in canonical form, so that one program written in two ways has one hash.

A rewrite stands here only if it is exact in float32, value and gradient: `a / 2` is `0.5 * a`,
`log_sigmoid(a)` is `-softplus(-a)`, and minus signs move outwards through products and sums, so
that `beta * (b - a)` is `-(beta * (a - b))`. Sums are not reassociated, although
`(a - b) - (c - d)` equals `(a - c) - (b - d)` on paper: with log-probabilities of several hundred
the two differ by 1e-4 in float32, and a candidate is run as its author wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from discojax.candidates.folding import fold
from discojax.candidates.graph import (
    Apply,
    Argument,
    Constant,
    GraphError,
    Node,
    constants,
    nodes,
    representable,
)
from discojax.objectives.operators import OPERATORS

__all__ = ["apply", "as_number", "as_truth", "replace", "rewrite", "with_constants"]

_LARGEST_UNROLLED_POWER = 8


def apply(operator: str, *operands: Node | float) -> Node:
    """The canonical node for `operator` applied to `operands`; Python numbers become constants.

    Folds constants, drops what changes nothing, orders the operands of commutative operators, and
    gives the statistics of a value that is the same for all pairs (the machine could not: it
    broadcasts scalars, and a sum would count the pairs).

    Raises:
      GraphError: for an unknown operator, operands of the wrong number, kind or shape, or
        constants whose result is no representable number.
    """
    given = tuple(Constant(float(x)) if isinstance(x, (int, float)) else x for x in operands)
    if operator in OPERATORS and OPERATORS[operator].arity == len(given):
        if OPERATORS[operator].batch and given[0].shape == "scalar" and given[0].kind == "number":
            return _of_the_same(operator, given)
        if OPERATORS[operator].commutative:
            given = tuple(sorted(given, key=_order))
        checked = Apply(operator, given)  # raises before any rule looks at ill-typed operands
        folded = fold(operator, given)
        if folded is not None:
            return folded
        rule = _RULES.get(operator)
        simpler = rule(*given) if rule else None
        return checked if simpler is None else simpler
    return Apply(operator, given)  # raises: unknown, or the wrong number of operands


def as_number(node: Node) -> Node:
    """A truth value as the number 1 or 0; a number as itself."""
    return apply("where", node, 1.0, 0.0) if node.kind == "truth" else node


def as_truth(node: Node) -> Node:
    """A number as "is not zero"; a truth value as itself."""
    if node.kind == "truth":
        return node
    if isinstance(node, Apply) and node.operator == "where":
        condition = node.operands[0]
        if node == as_number(condition):
            return condition
    return apply("not_equal", node, 0.0)


def rewrite(root: Node, change: Callable[[Node], Node | None]) -> Node:
    """The graph with each node replaced, operands first: `change` gives the new node, or None to keep it.

    What a changed node feeds is rebuilt with `apply`, so the result is canonical again.

    Raises:
      GraphError: if a change gives an operator an operand of the wrong kind or shape.
    """
    new: dict[Node, Node] = {}
    for node in nodes(root):
        rebuilt = node
        if isinstance(node, Apply):
            operands = [new[operand] for operand in node.operands]
            if any(a is not b for a, b in zip(operands, node.operands, strict=True)):
                rebuilt = apply(node.operator, *operands)
        changed = change(rebuilt)
        new[node] = rebuilt if changed is None else changed
    return new[root]


def replace(root: Node, replacements: Mapping[Node, Node]) -> Node:
    """The graph with whole subexpressions replaced by others."""
    new: dict[Node, Node] = {}
    for node in nodes(root):
        if node in replacements:
            new[node] = replacements[node]
        elif isinstance(node, Apply):
            operands = [new[operand] for operand in node.operands]
            changed = any(a is not b for a, b in zip(operands, node.operands, strict=True))
            new[node] = apply(node.operator, *operands) if changed else node
        else:
            new[node] = node
    return new[root]


def with_constants(root: Node, values: Sequence[float]) -> Node:
    """The program with its constants, in the order of `graph.constants`, set to `values`.

    Equal constants are one parameter; `replace` can change one occurrence of several.

    Raises:
      GraphError: for the wrong number of values, or one that is not a representable constant.
    """
    old = constants(root)
    if len(old) != len(values):
        raise GraphError(f"the program has {len(old)} constants, got {len(values)} values")
    return replace(
        root, {Constant(a): Constant(float(b)) for a, b in zip(old, values, strict=True) if a != b}
    )


def _order(node: Node) -> tuple[int, int, int, bytes, bytes]:
    # Chosen before rejected, policy before reference, as they are written on paper; and the
    # skeleton before the digest, since tuning a constant should not reorder the program.
    rank = 0 if isinstance(node, Argument) else 2 if isinstance(node, Constant) else 1
    return (rank, node.depth, node.leading, node.skeleton, node.digest)


def _of_the_same(operator: str, operands: tuple[Node, ...]) -> Node:
    """A batch operator on a value that is the same for every pair."""
    if operator in ("var", "var_unbiased", "std", "std_unbiased"):
        return Constant(0.0)
    if operator in ("softmax", "log_softmax"):
        raise GraphError(f"{operator} of a value that is the same for all pairs")
    return operands[0]


# --- rules: exact simplifications, given operands already in order (a constant comes last) ----------


def _is(node: Node, operator: str) -> bool:
    return isinstance(node, Apply) and node.operator == operator


def _inside(node: Node, position: int = 0) -> Node:
    assert isinstance(node, Apply)
    return node.operands[position]


def _constant(node: Node) -> float | None:
    return node.value if isinstance(node, Constant) else None


def _negative(a: Node) -> Node | None:
    if _is(a, "negative"):
        return _inside(a)
    if _is(a, "add") and (c := _constant(_inside(a, 1))) is not None:
        return apply("subtract", -c, _inside(a))
    if _is(a, "subtract") and (c := _constant(_inside(a))) is not None:
        return apply("add", _inside(a, 1), -c)
    if _is(a, "subtract") and _inside(a) == _inside(a, 1):
        return a  # 0 or nan, which have no sign here
    return None


def _add(a: Node, b: Node) -> Node | None:
    if _constant(b) == 0:
        return a
    if _is(a, "negative") and _is(b, "negative"):
        return apply("negative", apply("add", _inside(a), _inside(b)))
    if _is(b, "negative"):
        return apply("subtract", a, _inside(b))
    if _is(a, "negative"):
        return apply("subtract", b, _inside(a))
    return apply("multiply", a, 2.0) if a == b else None


def _subtract(a: Node, b: Node) -> Node | None:
    if (c := _constant(b)) is not None:
        return apply("add", a, -c)
    if _constant(a) == 0:
        return apply("negative", b)
    if a == b and _never_overflows(a):
        return Constant(0.0)
    if _is(b, "negative"):
        return apply("add", a, _inside(b))
    if _is(a, "negative"):
        return apply("negative", apply("add", _inside(a), b))
    if _constant(a) is None and _order(a) > _order(b):
        return apply("negative", apply("subtract", b, a))  # so that a - b and b - a differ by a sign
    return None


def _multiply(a: Node, b: Node) -> Node | None:
    c = _constant(b)
    if c == 1:
        return a
    if c == 0 and _never_overflows(a):
        return Constant(0.0)
    if c is not None and c < 0:  # signs move outwards, so that z and -z share all but the sign
        return apply("negative", apply("multiply", a, -c))
    return _signs("multiply", a, b) or (apply("square", a) if a == b else None)


_TAME = frozenset(
    [
        "add",
        "subtract",
        "negative",
        "abs",
        "relu",
        "softplus",
        "sigmoid",
        "tanh",
        "sign",
        "maximum",
        "minimum",
    ]
)


def _never_overflows(node: Node) -> bool:
    """Whether the value is finite for any log-probabilities, so that zero times it is zero."""
    linear = all(
        not isinstance(inside, Apply)
        or inside.operator in _TAME
        or (inside.operator == "multiply" and not all(isinstance(x, Apply) for x in inside.operands))
        for inside in nodes(node)
    )
    return linear and node.depth <= 8  # at most 8 factors, each a constant or a log-probability


def _divide(a: Node, b: Node) -> Node | None:
    over, under = _constant(a), _constant(b)
    if under is not None and under < 0:
        return apply("negative", apply("divide", a, -under))
    if over is not None and over < 0:
        return apply("negative", apply("divide", -over, b))
    if under is not None and math.frexp(under)[0] == 0.5 and representable(1 / under):
        return apply("multiply", a, 1 / under)  # exact, as the divisor is a power of two
    return apply("reciprocal", b) if over == 1 else _signs("divide", a, b)


def _signs(operator: str, a: Node, b: Node) -> Node | None:
    """A product or quotient with the signs of its operands taken out."""
    if not (_is(a, "negative") or _is(b, "negative")):
        return None
    plain = apply(operator, *(_inside(x) if _is(x, "negative") else x for x in (a, b)))
    if _is(a, "negative") != _is(b, "negative"):
        return apply("negative", plain)
    return plain


def _power(a: Node, b: Node) -> Node | None:
    exponent = _constant(b)
    if exponent == 0.5:
        return apply("sqrt", a)
    if exponent == -0.5:
        return apply("rsqrt", a)
    if exponent is None or exponent != int(exponent) or abs(exponent) > _LARGEST_UNROLLED_POWER:
        return None
    if exponent < 0:
        return apply("reciprocal", apply("power", a, -exponent))
    if exponent < 2:
        return a if exponent == 1 else Constant(1.0)
    half = apply("square", apply("power", a, exponent // 2))
    return half if exponent % 2 == 0 else apply("multiply", a, half)


def _square(a: Node) -> Node | None:
    return apply("square", _inside(a)) if _is(a, "negative") or _is(a, "abs") else None


def _abs(a: Node) -> Node | None:
    return apply("abs", _inside(a)) if _is(a, "negative") or _is(a, "abs") else None


def _ordered(operator: str) -> Callable[[Node, Node], Node | None]:
    def rule(a: Node, b: Node) -> Node | None:
        if _is(a, "negative") and _is(b, "negative"):
            return apply(operator, _inside(b), _inside(a))
        if _is(a, "negative") and (c := _constant(b)) is not None:
            return apply(operator, -c, _inside(a))
        if _is(b, "negative") and (c := _constant(a)) is not None:
            return apply(operator, _inside(b), -c)
        return None

    return rule


def _junction(neutral: float) -> Callable[[Node, Node], Node | None]:
    def rule(a: Node, b: Node) -> Node | None:
        if (c := _constant(b)) is not None:
            return a if c == neutral else b
        return a if a == b else None

    return rule


def _not(a: Node) -> Node | None:
    if _is(a, "logical_not"):
        return _inside(a)
    for operator, opposite in (("equal", "not_equal"), ("not_equal", "equal")):
        if _is(a, operator):
            return apply(opposite, _inside(a, 0), _inside(a, 1))
    return None


def _where(condition: Node, a: Node, b: Node) -> Node | None:
    if (c := _constant(condition)) is not None:
        return a if c else b
    if a == b:
        return a
    return apply("where", _inside(condition), b, a) if _is(condition, "logical_not") else None


def _linear(operator: str) -> Callable[[Node], Node | None]:
    return lambda a: apply("negative", apply(operator, _inside(a))) if _is(a, "negative") else None


_RULES: dict[str, Callable[..., Node | None]] = {
    "negative": _negative,
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "power": _power,
    "square": _square,
    "abs": _abs,
    "greater": lambda a, b: apply("less", b, a),
    "greater_equal": lambda a, b: apply("less_equal", b, a),
    "less": _ordered("less"),
    "less_equal": _ordered("less_equal"),
    "logical_and": _junction(1.0),
    "logical_or": _junction(0.0),
    "logical_not": _not,
    "where": _where,
    "maximum": lambda a, b: a if a == b else None,
    "minimum": lambda a, b: a if a == b else None,
    "log_sigmoid": lambda a: apply("negative", apply("softplus", apply("negative", a))),
    "logaddexp": lambda a, b: apply("softplus", a) if _constant(b) == 0 else None,
    "stop_gradient": lambda a: a if _is(a, "stop_gradient") else None,
    "mean": _linear("mean"),
    "sum": _linear("sum"),
}
