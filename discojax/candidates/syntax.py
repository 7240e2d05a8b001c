"""Stage 2, syntax: an allow-list over Python's AST. What is not listed here does not exist.

The text is parsed, never compiled: `ast.parse` builds a tree and runs nothing. One function,
assignments, one return; arithmetic, comparisons, and calls of listed names. Annotations and a few
imports that models write by habit are read and dropped.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from discojax.candidates.errors import CandidateError, quoted
from discojax.candidates.graph import LARGEST_CONSTANT, representable
from discojax.candidates.hints import HINTS
from discojax.candidates.vocabulary import (
    BARE,
    CONSTANTS,
    DTYPES,
    FUNCTIONS,
    METHODS,
    ROOTS,
    refusal,
    remedy,
)
from discojax.errors import nearest
from discojax.objectives.types import ARGUMENTS
from discojax.parsing import PARSING

__all__ = ["Syntax", "check_syntax", "dotted"]

_MOST_NODES = 1500
_DEEPEST = 90
_MOST_STATEMENTS = 150
_LONGEST_NAME = 60
_SIGNATURE = "def loss(" + ", ".join(ARGUMENTS[:5]) + ")"

_IMPORTS = {
    ("jax", None), ("jax.numpy", "jnp"), ("jax.nn", None), ("jax.nn", "nn"), ("jax.lax", None),
    ("jax.lax", "lax"),
    ("numpy", "np"), ("numpy", None), ("math", None), ("torch", None), ("torch.nn.functional", "F"),
    ("torch.nn", "nn"), ("jax.scipy", "jsp"),
}  # fmt: skip
_FROM = {("jax", "numpy", "jnp"), ("jax", "nn", None), ("jax", "lax", None), ("torch.nn", "functional", "F")}

_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Mod, ast.FloorDiv, ast.BitAnd, ast.BitOr)
_ANNOTATION = (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.Tuple, ast.expr_context)
_COMPARISON = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


@dataclass(frozen=True)
class Syntax:
    """What stage 2 lets through.

    Attributes:
      name: the function's own name.
      parameters: the names it takes, of `ARGUMENTS`, settings, and perhaps `self`.
      statements: its assignments and, last, its return.
      torch: whether the text speaks PyTorch; jax: whether it speaks JAX.
    """

    name: str
    parameters: tuple[str, ...]
    statements: tuple[ast.stmt, ...]
    torch: bool
    jax: bool


def _refuse(node: ast.AST | None, reason: str) -> CandidateError:
    return CandidateError("syntax", getattr(node, "lineno", None), reason)


def _unknown(node: ast.AST) -> CandidateError:
    kind = type(node)
    return _refuse(node, HINTS.get(kind, f"{kind.__name__} is not in the language"))


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` for a chain of names, None for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join((node.id, *reversed(parts))) if isinstance(node, ast.Name) else None


def check_syntax(text: str, settings: Collection[str] = ()) -> Syntax:
    """Stage 2: parses and checks the text that stage 1 returned.

    Args:
      text: the candidate.
      settings: further names that parameters may have; library losses have such constants.

    Raises:
      CandidateError: at stage "syntax".
    """
    module = _parse(text)
    function = _one_function(module)
    torch = any("torch" in ast.dump(s) for s in module.body if isinstance(s, (ast.Import, ast.ImportFrom)))
    parameters = _parameters(function, settings)
    statements = _statements(function)
    state = _Walk(torch=torch or "self" in parameters)
    for annotation in _annotations(function):
        state.torch |= (dotted(annotation) or "").startswith("torch.")
    for statement in statements:
        state.check(statement)
    return Syntax(function.name, parameters, tuple(statements), state.torch, state.jax)


def _parse(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in docstrings
            # CPython opens the file of this name to quote the line of an error: "" names none.
            with PARSING:
                module = ast.parse(text, filename="")
    except SyntaxError as error:
        raise CandidateError("syntax", error.lineno or None, f"not valid Python: {_plain(error)}") from None
    except (RecursionError, MemoryError):
        raise CandidateError("syntax", None, "nested too deeply; name intermediate values") from None
    except (ValueError, OverflowError):
        raise CandidateError(
            "syntax", None, "not valid Python: a number or a character cannot be read"
        ) from None
    count = 0
    for count, (_, depth, node) in enumerate(_walk(module), 1):
        if depth > _DEEPEST:
            raise _refuse(node, f"nested over {_DEEPEST} deep; name intermediate values")
        if count > _MOST_NODES:
            raise _refuse(node, f"over {_MOST_NODES} syntax nodes; simplify the loss")
    return module


def _plain(error: SyntaxError) -> str:
    # Python's own messages quote at most a token of the text, and no path as none is given.
    return (error.msg or "invalid syntax")[:120].encode("ascii", "replace").decode()


def _walk(root: ast.AST) -> Iterator[tuple[int, int, ast.AST]]:
    stack: list[tuple[int, ast.AST]] = [(0, root)]
    count = 0
    while stack:
        depth, node = stack.pop()
        count += 1
        yield count, depth, node
        stack.extend((depth + 1, child) for child in ast.iter_child_nodes(node))


def _one_function(module: ast.Module) -> ast.FunctionDef:
    functions: list[ast.FunctionDef] = []
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef):
            functions.append(statement)
        elif _is_text(statement) or _is_known_import(statement):
            continue
        elif isinstance(statement, (ast.Assign, ast.Expr, ast.Return, ast.AnnAssign, ast.AugAssign)):
            raise _refuse(statement, "put everything inside the one function `def loss(...)`")
        else:
            raise _unknown(statement)
    if len(functions) != 1:
        at = functions[1] if functions else None
        raise _refuse(at, f"{len(functions)} functions found; write exactly one, `{_SIGNATURE}`")
    function = functions[0]
    if function.decorator_list:
        raise _refuse(function.decorator_list[0], "decorators are not in the language; leave it out")
    if getattr(function, "type_params", None):
        raise _refuse(function, "type parameters are not in the language; leave them out")
    _check_name(function, function.name)
    return function


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_known_import(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all((alias.name, alias.asname) in _IMPORTS for alias in statement.names)
    if isinstance(statement, ast.ImportFrom) and statement.level == 0:
        return all((statement.module, alias.name, alias.asname) in _FROM for alias in statement.names)
    return False


def _parameters(function: ast.FunctionDef, settings: Collection[str]) -> tuple[str, ...]:
    given = function.args
    if given.vararg or given.kwarg or given.posonlyargs:
        raise _refuse(function, f"plain parameters only: `{_SIGNATURE}`")
    parameters = given.args + given.kwonlyargs
    if len({parameter.arg for parameter in parameters}) < len(parameters):
        raise _refuse(function, "a parameter is named twice")
    if given.kwonlyargs and not settings:
        raise _refuse(function, f"plain parameters only: `{_SIGNATURE}`")
    with_default = given.args[len(given.args) - len(given.defaults) :] if given.defaults else []
    with_default += [
        p for p, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is not None
    ]
    for parameter in parameters:
        known = (*ARGUMENTS, *settings)
        if parameter.arg not in known and not (parameter.arg == "self" and parameter is parameters[0]):
            hint = nearest(parameter.arg, known) or f" The signature is `{_SIGNATURE}`"
            raise _refuse(parameter, f"unknown parameter {quoted(parameter.arg)}.{hint}")
        if parameter in with_default and parameter.arg not in settings:
            raise _refuse(parameter, f"no default values: write {quoted(parameter.arg)} alone")
    return tuple(parameter.arg for parameter in parameters)


def _annotations(function: ast.FunctionDef) -> list[ast.expr]:
    """The annotations, which are dropped; calls in them are refused as they would be anywhere."""
    found = [a.annotation for a in (*function.args.args, *function.args.kwonlyargs) if a.annotation]
    found += [function.returns] if function.returns else []
    for annotation in found:
        _check_annotation(annotation)
    return found


def _check_annotation(annotation: ast.expr) -> None:
    for node in ast.walk(annotation):
        if not isinstance(node, _ANNOTATION):
            raise _refuse(annotation, "that annotation is not allowed; leave it out")
        _check_identifiers(node)


def _statements(function: ast.FunctionDef) -> list[ast.stmt]:
    body = list(function.body)
    kept = [s for s in body if not (_is_text(s) or _is_known_import(s) or isinstance(s, ast.Pass))]
    if len(kept) > _MOST_STATEMENTS:
        raise _refuse(kept[_MOST_STATEMENTS], f"over {_MOST_STATEMENTS} statements; simplify the loss")
    for number, statement in enumerate(kept, 1):
        if isinstance(statement, ast.Return):
            if number < len(kept):
                raise _refuse(statement, "one return, as the last statement; use jnp.where for cases")
        elif isinstance(statement, ast.Expr):
            raise _refuse(
                statement, "a statement without effect; only assignments and one return are allowed"
            )
        elif not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            raise _unknown(statement)
    if not kept or not isinstance(kept[-1], ast.Return) or kept[-1].value is None:
        raise _refuse(function, "the function must end with `return losses`, one value per pair")
    return kept


def _check_name(node: ast.AST, name: str) -> None:
    if name.startswith("_"):
        raise _refuse(node, f"names that begin with an underscore are not allowed: {quoted(name)}")
    if len(name) > _LONGEST_NAME:
        raise _refuse(node, f"names have at most {_LONGEST_NAME} letters")


def _check_identifiers(node: ast.AST) -> None:
    if isinstance(node, ast.Name):
        _check_name(node, node.id)
    elif isinstance(node, ast.Attribute):
        _check_name(node, node.attr)


class _Walk:
    """One pass over the statements; recursion is bounded by `_DEEPEST`."""

    def __init__(self, torch: bool):
        self.torch = torch
        self.jax = False

    def check(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Return):
            if isinstance(statement.value, (ast.Tuple, ast.List, ast.Dict)):
                raise _refuse(statement, "return the losses alone, one [batch] array, not several values")
            self.expression(statement.value)
            return
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]  # type: ignore[attr-defined]
        value = statement.value  # type: ignore[attr-defined]
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            pairs = isinstance(target, ast.Tuple)
            if pairs and not (isinstance(value, ast.Tuple) and len(value.elts) == len(names)):
                raise _refuse(statement, "unpacking needs as many values as names; assign them one by one")
            for name in names:
                if not isinstance(name, ast.Name):
                    raise _refuse(statement, "only plain names can be assigned")
                _check_name(name, name.id)
                if name.id in ROOTS or name.id == "self":
                    raise _refuse(name, f"{quoted(name.id)} is a module's name; assign to another one")
        if value is None:
            raise _refuse(statement, "a declaration without a value; leave it out")
        if isinstance(statement, ast.AnnAssign):
            _check_annotation(statement.annotation)
        if isinstance(statement, ast.AugAssign):
            self.binary(statement, statement.op)
        several = isinstance(statement, ast.Assign) and any(isinstance(t, ast.Tuple) for t in targets)
        for part in value.elts if several else [value]:
            self.expression(part)

    def binary(self, node: ast.AST, operator: ast.operator) -> None:
        if not isinstance(operator, _BINARY):
            raise _refuse(
                node, HINTS.get(type(operator), f"{type(operator).__name__} is not in the language")
            )

    def expression(self, node: ast.AST | None) -> None:
        if isinstance(node, ast.Constant):
            self.number(node)
        elif isinstance(node, ast.Name):
            _check_name(node, node.id)
            if node.id in ROOTS or node.id == "self":
                raise _refuse(node, f"{quoted(node.id)} is a module, not a value")
        elif isinstance(node, ast.BinOp):
            self.binary(node, node.op)
            self.expression(node.left)
            self.expression(node.right)
        elif isinstance(node, ast.UnaryOp):
            self.expression(node.operand)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self.expression(value)
        elif isinstance(node, ast.Compare):
            for operator in node.ops:
                if not isinstance(operator, _COMPARISON):
                    raise _refuse(node, HINTS.get(type(operator), "that comparison is not in the language"))
            for value in (node.left, *node.comparators):
                self.expression(value)
        elif isinstance(node, ast.Attribute):
            self.attribute(node)
        elif isinstance(node, ast.Call):
            self.call(node)
        else:
            raise _unknown(node) if node is not None else _refuse(node, "a value is missing")

    def number(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            return
        if not isinstance(value, (int, float)):
            raise _refuse(node, f"only numbers may stand here, not {quoted(repr(value)[:30])}")
        # The size of an integer is asked before it is made a float, which overflows.
        if isinstance(value, int) and value.bit_length() > 40 or not representable(value):
            raise _refuse(node, f"a constant must be 0 or between 1e-30 and {LARGEST_CONSTANT:g} in size")

    def attribute(self, node: ast.Attribute) -> None:
        name = dotted(node)
        if name == "self.beta":
            return
        if name in CONSTANTS:
            return
        if name is not None and name.startswith("self."):
            raise _refuse(node, f"{quoted(name)}: only self.beta exists; write other settings as numbers")
        if name in FUNCTIONS:
            raise _refuse(node, f"{quoted(name)} is a function; call it")
        if node.attr in ("shape", "size", "ndim", "T", "dtype"):
            raise _refuse(
                node, f"`.{node.attr}` is not in the language; use jnp.mean where you would divide by a count"
            )
        raise _refuse(node, f"the attribute {quoted(name or '.' + node.attr)} is not in the language")

    def call(self, node: ast.Call) -> None:
        name = dotted(node.func)
        root = name.split(".")[0] if name else ""
        if isinstance(node.func, ast.Name) and name not in BARE or root in ROOTS and name not in FUNCTIONS:
            assert name is not None
            raise _refuse(node, f"{quoted(name)} is not in the language; {remedy(name)}")
        if root in ROOTS:
            self.torch |= root in ("torch", "F") or name.startswith("nn.functional")  # type: ignore[union-attr]
            self.jax |= root in ("jnp", "jax", "np", "numpy", "lax", "jsp")
        elif isinstance(node.func, ast.Attribute):
            if root == "self":
                raise _refuse(node, f"{quoted(name or '')}: only self.beta exists; write the function out")
            if node.func.attr not in METHODS:
                hint = refusal(node.func.attr)
                hint = hint or nearest(node.func.attr, METHODS).strip() or "use a jnp function"
                raise _refuse(
                    node, f"the method {quoted('.' + node.func.attr)} is not in the language; {hint}"
                )
            self.expression(node.func.value)
        elif not isinstance(node.func, ast.Name):
            raise _refuse(node, "only functions of jnp, jax.nn and jax.lax can be called, by name")
        for argument in node.args:
            self.argument(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise _refuse(node, "`**` unpacking is not in the language")
            _check_name(node, keyword.arg)
            self.argument(keyword.value)

    def argument(self, node: ast.expr) -> None:
        """An argument may also be None or a dtype, for parameters that take a literal."""
        if isinstance(node, ast.Constant) and node.value is None:
            return
        if dotted(node) in DTYPES or isinstance(node, ast.Name) and node.id == "float":
            return
        self.expression(node)
