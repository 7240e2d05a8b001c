"""What to write instead, for each kind of Python syntax that the language does not have."""

from __future__ import annotations

import ast

__all__ = ["HINTS"]

HINTS: dict[type, str] = {
    ast.For: "loops are not in the language; every operation already acts on the whole batch",
    ast.While: "loops are not in the language; every operation already acts on the whole batch",
    ast.If: "`if` is not in the language; use jnp.where(condition, a, b)",
    ast.IfExp: "`a if c else b` is not in the language; use jnp.where(c, a, b)",
    ast.Lambda: "lambdas are not in the language; assign to a name",
    ast.Subscript: "indexing is not in the language; values are [batch], use statistics such as jnp.mean",
    ast.JoinedStr: "f-strings are not in the language; a loss has no text",
    ast.FunctionDef: "only one function is allowed; write helpers out as assignments",
    ast.AsyncFunctionDef: "write a plain `def`",
    ast.ClassDef: "classes are not in the language; write one function",
    ast.Import: "that import is not allowed; jnp, jax.nn and jax.lax are there already",
    ast.ImportFrom: "that import is not allowed; jnp, jax.nn and jax.lax are there already",
    ast.Tuple: "tuples are not in the language; return the losses alone",
    ast.List: "lists are not in the language; values are [batch] arrays",
    ast.Dict: "dictionaries are not in the language",
    ast.NamedExpr: "`:=` is not in the language; assign on a line of its own",
    ast.Assert: "assertions are not in the language; leave it out",
    ast.Raise: "exceptions are not in the language; leave it out",
    ast.Try: "exceptions are not in the language; leave it out",
    ast.With: "`with` is not in the language; leave it out",
    ast.Starred: "`*` unpacking is not in the language",
    ast.MatMult: "`@` is not in the language; use jnp.sum of a product",
    ast.BitXor: "`^` is not a power in Python; write `**`",
    ast.LShift: "shifts are not in the language; multiply instead",
    ast.RShift: "shifts are not in the language; multiply instead",
    ast.Is: "`is` is not in the language; compare with == or <",
    ast.IsNot: "`is` is not in the language; compare with != or <",
    ast.In: "`in` is not in the language",
    ast.NotIn: "`in` is not in the language",
}
