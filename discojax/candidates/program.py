"""Stage 3, program: from the checked syntax tree to the expression graph.

The tree is read once, statement by statement, with a table from names to graph nodes. Python
numbers stay Python numbers until they meet an array, as they would in JAX.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from discojax.candidates import canonical
from discojax.candidates.canonical import as_number, as_truth
from discojax.candidates.errors import CandidateError, quoted
from discojax.candidates.graph import (
    Apply,
    Argument,
    Constant,
    GraphError,
    Node,
    arguments,
    check_size,
    representable,
)
from discojax.candidates.syntax import Syntax, dotted
from discojax.candidates.vocabulary import (
    ALIASES,
    BARE,
    CONSTANTS,
    DTYPES,
    FUNCTIONS,
    METHODS,
    STATIC,
    Function,
)
from discojax.errors import nearest
from discojax.objectives.types import ARGUMENTS

__all__ = ["Translation", "per_pair", "translate"]

_BINARY = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power",
    ast.Mod: "remainder", ast.BitAnd: "logical_and", ast.BitOr: "logical_or",
}  # fmt: skip
_COMPARISON = {
    ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater", ast.GtE: "greater_equal",
    ast.Eq: "equal", ast.NotEq: "not_equal",
}  # fmt: skip


@dataclass(frozen=True)
class Translation:
    """A program read from text.

    Attributes:
      graph: its root; a scalar root is the loss of every pair.
      lines: the source line of each node, for messages.
    """

    graph: Node
    lines: Mapping[Node, int]


@dataclass(frozen=True)
class _Value:
    """A Python number or truth, or a node.

    `filled` is one value repeated over the batch, as `jnp.ones_like(x)` is: a scalar to the graph,
    but its sum would count the pairs.
    """

    node: Node | float | bool
    filled: bool = False

    @property
    def as_node(self) -> Node:
        if isinstance(self.node, bool):
            return Constant(float(self.node), "truth")
        return Constant(float(self.node)) if isinstance(self.node, (int, float)) else self.node

    @property
    def per_pair(self) -> bool:
        return self.filled or (isinstance(self.node, Apply | Argument) and self.node.shape == "batch")


def translate(syntax: Syntax, settings: Mapping[str, float] | None = None) -> Translation:
    """Stage 3: builds the canonical graph.

    Args:
      syntax: what stage 2 returned.
      settings: values of further names, bound as constants.

    Raises:
      CandidateError: at stage "program".
    """
    translator = _Translator(syntax, settings or {})
    last = syntax.statements[-1]
    for statement in syntax.statements[:-1]:
        translator.assign(statement)
    assert isinstance(last, ast.Return) and last.value is not None
    value = translator.expression(last.value)
    try:
        root = per_pair(value.as_node)
        check_size(root)
    except GraphError as error:
        raise CandidateError("program", last.lineno, str(error)) from None
    if root.kind == "truth":
        raise CandidateError(
            "program", last.lineno, "the result is a comparison; return numbers, one loss per pair"
        )
    if not {"policy_chosen_logps", "policy_rejected_logps"} & set(arguments(root)):
        raise CandidateError(
            "program",
            last.lineno,
            "the result does not depend on the policy's log-probabilities, so nothing is learned",
        )
    return Translation(root, translator.lines)


def per_pair(root: Node) -> Node:
    """The loss of each pair, for a program that returns the batch's mean.

    The mean of the result is what training descends, so any scalar would do for every pair; but
    `jnp.mean(x)` means x, and so do sums and scalar multiples of means.
    """
    if root.shape == "batch" or not isinstance(root, Apply):
        return root
    if root.operator == "mean":
        return root.operands[0]
    if root.operator in ("negative", "add", "subtract"):
        return canonical.apply(root.operator, *map(per_pair, root.operands))
    if root.operator in ("multiply", "divide"):
        left, right = root.operands
        inner = per_pair(left)
        if inner.shape == "batch":
            return canonical.apply(root.operator, inner, right)
        if root.operator == "multiply" and (inner := per_pair(right)).shape == "batch":
            return canonical.apply("multiply", left, inner)
    return root


class _Translator:
    def __init__(self, syntax: Syntax, settings: Mapping[str, float]):
        self.syntax = syntax
        self.names: dict[str, _Value] = {name: _Value(float(value)) for name, value in settings.items()}
        for name in syntax.parameters:
            if name in ARGUMENTS:
                self.names[name] = _Value(Argument(name))
        self.lines: dict[Node, int] = {}

    # --- statements ---

    def assign(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.AugAssign):
            assert isinstance(statement.target, ast.Name)
            old = self.name(ast.copy_location(ast.Name(statement.target.id), statement))
            self.names[statement.target.id] = self.binary(
                statement, statement.op, old, self.expression(statement.value)
            )
            return
        assert isinstance(statement, (ast.Assign, ast.AnnAssign))
        assert statement.value is not None
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if isinstance(target, ast.Tuple):
                assert isinstance(statement.value, ast.Tuple)
                values = [self.expression(part) for part in statement.value.elts]
                for name, value in zip(target.elts, values, strict=True):
                    self.names[name.id] = value  # type: ignore[attr-defined]
            else:
                self.names[target.id] = self.expression(statement.value)  # type: ignore[attr-defined]

    # --- expressions ---

    def expression(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Constant):
            return _Value(node.value if isinstance(node.value, bool) else float(node.value))  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.BinOp):
            return self.binary(node, node.op, self.expression(node.left), self.expression(node.right))
        if isinstance(node, ast.UnaryOp):
            return self.unary(node)
        if isinstance(node, ast.BoolOp):
            operator = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
            values = [self.truth(node, self.expression(value)) for value in node.values]
            result = values[0]
            for value in values[1:]:
                result = self.apply(node, operator, result, value)
            return result
        if isinstance(node, ast.Compare):
            return self.compare(node)
        if isinstance(node, ast.Attribute):
            name = dotted(node) or ""
            return (
                self.names.get("beta", _Value(Argument("beta")))
                if name == "self.beta"
                else _Value(CONSTANTS[name])
            )
        assert isinstance(node, ast.Call)
        return self.call(node)

    def name(self, node: ast.Name) -> _Value:
        if node.id in self.names:
            return self.names[node.id]
        if node.id in ARGUMENTS:
            raise self.error(node, f"{quoted(node.id)} is not among the function's parameters; add it there")
        if node.id in BARE:
            raise self.error(node, f"{quoted(node.id)} is a function; call it")
        hint = nearest(node.id, self.names)
        raise self.error(node, f"{quoted(node.id)} is used before it is assigned.{hint}")

    def unary(self, node: ast.UnaryOp) -> _Value:
        value = self.expression(node.operand)
        if isinstance(node.op, ast.UAdd):
            return value
        if isinstance(node.op, ast.USub):
            if isinstance(value.node, float):
                return _Value(-value.node)
            return self.apply(node, "negative", value)
        if isinstance(node.op, ast.Invert) and value.as_node.kind != "truth":
            raise self.error(node, "`~` negates comparisons; for numbers write `-x` or `1 - x`")
        return self.apply(node, "logical_not", self.truth(node, value))

    def binary(self, node: ast.AST, operator: ast.operator, left: _Value, right: _Value) -> _Value:
        if isinstance(operator, (ast.BitAnd, ast.BitOr)):
            if left.as_node.kind != "truth" or right.as_node.kind != "truth":
                raise self.error(
                    node, "`&` and `|` combine comparisons; put each in parentheses: (a > 0) & (b > 0)"
                )
            return self.apply(node, _BINARY[type(operator)], left, right)
        a, b = left.node, right.node
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            return self.numbers(node, operator, float(a), float(b))
        if isinstance(operator, ast.FloorDiv):
            return self.apply(node, "floor", self.apply(node, "divide", left, right))
        return self.apply(node, _BINARY[type(operator)], left, right)

    def numbers(self, node: ast.AST, operator: ast.operator, a: float, b: float) -> _Value:
        """Arithmetic on two Python numbers, in double precision as Python does it."""
        try:
            if isinstance(operator, ast.Pow):
                value: float | complex = a**b  # floats: at most 1e10 ** 1e10, which overflows at once
            else:
                value = {
                    ast.Add: float.__add__, ast.Sub: float.__sub__, ast.Mult: float.__mul__,
                    ast.Div: float.__truediv__, ast.Mod: float.__mod__, ast.FloorDiv: float.__floordiv__,
                }[type(operator)](a, b)  # type: ignore[index]  # fmt: skip
        except ArithmeticError as error:
            raise self.error(node, f"arithmetic on constants fails: {error.args[-1]}"[:120]) from None
        if isinstance(value, complex) or not representable(value):
            raise self.error(node, "arithmetic on constants gives a value outside 1e-30 to 1e10 in size")
        return _Value(value)

    def compare(self, node: ast.Compare) -> _Value:
        values = [self.expression(part) for part in (node.left, *node.comparators)]
        parts = [
            self.apply(node, _COMPARISON[type(operator)], left, right)
            for operator, left, right in zip(node.ops, values[:-1], values[1:], strict=True)
        ]
        result = parts[0]
        for part in parts[1:]:  # a < b < c
            result = self.apply(node, "logical_and", result, part)
        return result

    def call(self, node: ast.Call) -> _Value:
        name = dotted(node.func) or ""
        receiver: list[_Value] = []
        if name in FUNCTIONS or isinstance(node.func, ast.Name):
            function = FUNCTIONS.get(name) or BARE[name]
        else:
            assert isinstance(node.func, ast.Attribute)
            name = "." + node.func.attr
            function = self.method(node, node.func.attr)
            receiver = [self.expression(node.func.value)]
        bound = self.bind(node, name, function, receiver)
        first = next((value for value in bound if isinstance(value, _Value)), None)
        if function.statistic and first is not None:
            self.check_statistic(node, name, function, first)
        try:
            result = function.build(*(self.operand(value, function) for value in bound))
        except GraphError as error:
            raise self.error(node, f"{quoted(name)}: {error}") from None
        return self.result(
            node, result, [v for v in bound if isinstance(v, _Value)], bool(function.statistic)
        )

    def method(self, node: ast.Call, name: str) -> Function:
        if name in ("std", "var") and self.syntax.torch != self.syntax.jax:
            return FUNCTIONS[f"torch.{name}" if self.syntax.torch else f"jnp.{name}"]
        if name == "sort" and self.syntax.torch:
            raise self.error(node, "PyTorch's x.sort() gives two values; write jnp.sort(x)")
        return METHODS[name]

    def bind(self, node: ast.Call, name: str, function: Function, receiver: list[_Value]) -> list[object]:
        """The values of the function's parameters in order; None for one that is not given."""
        names = function.parameters
        given: dict[str, object] = dict(zip(names, receiver, strict=False))
        positional = names[len(receiver) :]
        if len(node.args) > len(positional):
            raise self.error(
                node,
                f"{quoted(name)} takes {len(names)} values at most, got {len(node.args) + len(receiver)}",
            )
        for parameter, argument in zip(positional, node.args, strict=False):
            given[parameter] = self.argument(parameter, name, argument)
        for keyword in node.keywords:
            parameter = keyword.arg or ""
            if parameter not in names:
                parameter = ALIASES.get(parameter, parameter)
            if parameter not in names:
                hint = nearest(parameter, names) or f" It takes {', '.join(names)}."
                raise self.error(node, f"{quoted(name)} has no parameter {quoted(keyword.arg or '')}.{hint}")
            if parameter in given:
                raise self.error(node, f"{quoted(name)} is given {quoted(parameter)} twice")
            given[parameter] = self.argument(parameter, name, keyword.value)
        missing = [parameter for parameter in names[: function.required] if given.get(parameter) is None]
        if missing:
            raise self.error(
                node,
                f"{quoted(name)} needs {len(names[: function.required])} values; {missing[0]} is missing",
            )
        return [given.get(parameter) for parameter in names]

    def argument(self, parameter: str, function: str, node: ast.expr) -> object:
        """A value, or for the parameters in `STATIC` a Python literal."""
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        dtype = DTYPES.get(dotted(node) or "") or ("float32" if dotted(node) == "float" else None)
        if dtype is not None and not (isinstance(node, ast.Name) and "float" in self.names):
            if parameter != "dtype":
                raise self.error(node, f"{quoted(function)} takes a value here, not a dtype")
            return dtype
        if parameter not in STATIC:
            return self.expression(node)
        if parameter == "dtype":
            raise self.error(node, "a dtype is written jnp.float32")
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        literal = node.operand if negative else node  # type: ignore[attr-defined]
        if isinstance(literal, ast.Constant) and isinstance(literal.value, int):
            return -literal.value if negative else literal.value
        if isinstance(node, ast.BinOp | ast.Call | ast.Name | ast.Compare) and parameter == "axis":
            raise self.error(
                node, f"{quoted(function)} takes an axis here; for two values use jnp.maximum or jnp.minimum"
            )
        raise self.error(node, f"`{parameter}` of {quoted(function)} must be written as a literal number")

    def check_statistic(self, node: ast.AST, name: str, function: Function, value: _Value) -> None:
        same = value.as_node.shape == "scalar"
        if same and (function.statistic == "spread" or (function.statistic == "sum" and value.filled)):
            raise self.error(
                node, f"{quoted(name)} of a value that is the same for all pairs; it needs one per pair"
            )

    # --- building ---

    def operand(self, value: object, function: Function) -> object:
        if not isinstance(value, _Value):
            return value
        return value.as_node if function.truths else as_number(value.as_node)

    def truth(self, node: ast.AST, value: _Value) -> _Value:
        if value.as_node.kind != "truth":
            raise self.error(node, "`and`, `or` and `not` combine comparisons, as in `(a > 0) & (b > 0)`")
        return value

    def apply(self, node: ast.AST, operator: str, *values: _Value) -> _Value:
        logical = operator.startswith("logical")
        operands = [as_truth(v.as_node) if logical else as_number(v.as_node) for v in values]
        try:
            return self.result(node, canonical.apply(operator, *operands), list(values), False)
        except GraphError as error:
            raise self.error(node, str(error)) from None

    def result(self, node: ast.AST, result: Node | float, values: list[_Value], statistic: bool) -> _Value:
        if isinstance(result, (int, float)):
            return _Value(result)
        new: list[Node] = [result]
        while new:  # canonical rewriting may have made several nodes of one operation
            made = new.pop()
            if isinstance(made, Apply) and made not in self.lines:
                self.lines[made] = getattr(node, "lineno", 1)
                new.extend(made.operands)
        filled = not statistic and result.shape == "scalar" and any(value.per_pair for value in values)
        return _Value(result, filled)

    def error(self, node: ast.AST, reason: str) -> CandidateError:
        return CandidateError("program", getattr(node, "lineno", None), reason)
