"""Which piece of a reply's Python goes to the gate: the loss alone, or all that it needs round it.

The text is parsed, never run. The gate takes one function, and the imports it knows; so of a fence that
also shows how to call the loss, the loss is taken. One that calls a helper of the model's own would lose
its meaning without it, so it goes to the gate whole, whose reason the model is then shown.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings
from collections.abc import Sequence

from discojax.objectives.types import ARGUMENTS
from discojax.parsing import PARSING
from discojax.proposers import selection

__all__ = ["LONGEST_CODE", "first", "whole"]

LONGEST_CODE = 20_000  # the gate takes 4 kB; what is longer is handed on, for its reason
_MOST_CUTS = 8  # lines at which a function is tried to end


def whole(text: str) -> str:
    """What of a text that is all Python goes to the gate; "" if it is not, or has no function."""
    text = textwrap.dedent(text[:LONGEST_CODE])
    tree = _parsed(text)
    if not isinstance(tree, ast.Module):
        return ""
    function = _loss(tree)
    if function is None:
        return ""
    lines = text.split("\n")
    if _needs(function) & _bound(tree, function):
        return text
    alone = _lines(lines, function, function)
    # The module a loss is written for may decide what a method of it means.
    imports = [
        _lines(lines, node, node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    with_imports = "\n".join([*imports, alone])
    return with_imports if imports and selection.read(with_imports + "\n") is not None else alone


def first(text: str, cut: bool = False) -> tuple[str, str]:
    """The first top-level function in text that may go on with prose, or "" and why not.

    Functions that follow it count as its text if the loss among them needs them. With `cut`, what
    reaches to the end of the text does not count: its end may be missing.
    """
    start = re.search(r"^[ \t]*def ", text, re.MULTILINE)
    if start is None:
        return "", ""
    rest, more = _outdented(text[start.start() :][:LONGEST_CODE])
    flaw = ""
    block = rest
    for _ in range(_MOST_CUTS):
        tree = _parsed(block)
        if tree is None:
            return "", "the function is nested too deep, or holds a null character"
        if isinstance(tree, SyntaxError):
            flaw = flaw or f"line {tree.lineno} of the function: {tree.msg}"
            block, shorter = _shortened(block, tree.lineno or 1)
            if not shorter:
                break
            continue
        function = _loss(tree)
        if function is None:
            break
        lines = rest.split("\n")
        begin = end = function
        if _needs(function) & _bound(tree, function):
            functions = _functions(tree)
            begin, end = functions[0], functions[-1]
        if cut and not more and not "".join(lines[end.end_lineno :]).strip():
            return "", "the function has no end"
        return _lines(lines, begin, end), ""
    return "", flaw


def _parsed(text: str) -> ast.Module | SyntaxError | None:
    """The tree, or what is wrong; None if Python's parser cannot say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in docstrings
            with PARSING:
                return ast.parse(text)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError):
        return None


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _loss(tree: ast.Module) -> ast.FunctionDef | None:
    """The first function that takes a loss's arguments, or else any, and that no other such one calls."""
    functions = _functions(tree)
    takers = [f for f in functions if set(ARGUMENTS[:5]) <= {a.arg for a in f.args.args}] or functions
    names = {f.name: _needs(f) for f in takers}
    roots = [f for f in takers if not any(f.name in used for name, used in names.items() if name != f.name)]
    return next(iter(roots or takers), None)


def _needs(function: ast.FunctionDef) -> set[str]:
    """The names that a function reads, its own too."""
    return {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def _bound(tree: ast.Module, function: ast.FunctionDef) -> set[str]:
    """The names that the module defines or assigns outside `function`, imports apart."""
    others = [node for node in tree.body if node is not function]
    named = {f.name for f in others if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = (node for node in others if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign))
    stored = {
        node.id
        for statement in assigned
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    own = {a.arg for a in function.args.args} | {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return (named | stored) - own


def _lines(lines: Sequence[str], begin: ast.stmt, end: ast.stmt) -> str:
    return "\n".join(lines[begin.lineno - 1 : end.end_lineno])


def _outdented(text: str) -> tuple[str, bool]:
    """The lines indented at least as the first one is, without that, and whether others follow."""
    margin = text[: len(text) - len(text.lstrip(" \t"))]
    lines = text.split("\n")
    kept = list(itertools.takewhile(lambda line: line.startswith(margin) or not line.strip(), lines))
    return "\n".join(line[len(margin) :] for line in kept), len(kept) < len(lines)


def _shortened(block: str, line: int) -> tuple[str, bool]:
    """The block up to the last line before `line`, or at it, that starts a new paragraph at its margin."""
    lines = block.split("\n")
    for number in range(min(line, len(lines)) - 1, 0, -1):
        text = lines[number]
        if text.strip() and not text[0].isspace() and text[0] not in ")]}":
            return "\n".join(lines[:number]), True
    return "", False
