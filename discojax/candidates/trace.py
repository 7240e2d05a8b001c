"""Stage 4, trace: what a program becomes in JAX, against an allow-list of primitives.

The graph can only reach `OPERATORS`, so this stage asks the question a second time and from the
other end: whatever the graph and its evaluation may have let through, the traced program and its
gradient hold these primitives and no others, on small float32 arrays. The list is an allow-list
because effects do not tell: `pure_callback` and `ffi_call` run foreign code and declare none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from discojax.candidates.errors import CandidateError
from discojax.objectives.types import ARGUMENTS

__all__ = ["PRIMITIVES", "check_trace"]

_ELEMENTWISE = """
abs add add_any and asinh atan atan2 cbrt ceil clamp cos cosh div eq erf exp exp2 expm1 floor ge gt
integer_pow is_finite le log log1p log2 logistic lt max min mul ne neg not one_minus_square or pow
polynomial rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
"""
_SHAPES = "broadcast_in_dim convert_element_type iota reshape slice squeeze"
_REDUCTIONS = "reduce_and reduce_max reduce_min reduce_or reduce_sum"
_ORDER = "sort gather scatter-add"  # sort, median and quantile, and their gradients
_SIGN_BITS = "bitcast_convert_type"  # how jax >= 0.12 finds order keys of floats
_CALLS = "jit pjit custom_jvp_call"  # entered, not trusted

PRIMITIVES = frozenset(f"{_ELEMENTWISE} {_SHAPES} {_REDUCTIONS} {_ORDER} {_SIGN_BITS} {_CALLS}".split())
"""All that a traced program may hold. A name missing here is refused, whatever it does."""

_BATCH = 8
_LARGEST = 4 * _BATCH  # elements of any intermediate value
_MOST_EQUATIONS = 8000
_DTYPES = frozenset(["float32", "int32", "uint32", "bool", "float0"])


def check_trace(function: Callable[..., Any], arguments: Sequence[str] = ARGUMENTS[:5]) -> None:
    """Stage 4: traces the loss and its gradient on abstract values and checks what comes out.

    Nothing is computed: an intermediate of 10^10 elements costs nothing to trace, and is refused.

    Args:
      function: the loss, over arrays by keyword.
      arguments: which of `ARGUMENTS` it takes.

    Raises:
      CandidateError: at stage "trace".
    """
    shapes = [
        jax.ShapeDtypeStruct(() if a in ("beta", "progress") else (_BATCH,), jnp.float32) for a in arguments
    ]

    def loss(*values):
        return function(**dict(zip(arguments, values, strict=True)))

    def gradient(*values):
        result, pullback = jax.vjp(loss, *values)
        return pullback(jnp.ones_like(result))

    value = _trace(loss, shapes, "the loss")
    _check_result(value)
    _check(value, "the loss")
    # The rule of a custom derivative is a function that only tracing the gradient brings to light.
    _check(_trace(gradient, shapes, "its gradient"), "its gradient")


def _trace(function: Callable[..., Any], shapes: list[jax.ShapeDtypeStruct], what: str) -> ClosedJaxpr:
    try:
        return jax.make_jaxpr(function)(*shapes)
    except (RecursionError, MemoryError):
        raise CandidateError("trace", None, f"{what} nests too deeply to trace") from None
    except Exception as error:  # whatever JAX raises while tracing is the candidate's fault
        text = " ".join(str(error).split())[:80]
        raise CandidateError(
            "trace", None, f"{what} cannot be traced: {type(error).__name__}: {text}"
        ) from None


def _check_result(traced: ClosedJaxpr) -> None:
    if len(traced.out_avals) != 1:
        raise CandidateError(
            "trace", None, f"the loss gives {len(traced.out_avals)} values; return one array"
        )
    (out,) = traced.out_avals
    if out.shape != (_BATCH,) or out.dtype != jnp.float32:
        raise CandidateError(
            "trace", None, f"the loss must be float32 [batch], got {out.dtype} {list(out.shape)}"
        )


def _check(traced: ClosedJaxpr, what: str) -> None:
    count = 0
    if traced.effects:
        raise CandidateError("trace", None, f"{what} has side effects; a loss only computes")
    for jaxpr in _jaxprs(traced):
        if jaxpr.effects:
            raise CandidateError("trace", None, f"{what} has side effects; a loss only computes")
        for variable in (*jaxpr.constvars, *jaxpr.invars):
            _check_array(variable.aval, what)
        for equation in jaxpr.eqns:
            count += 1
            name = equation.primitive.name
            if name not in PRIMITIVES:
                raise CandidateError(
                    "trace", None, f"{what} uses the JAX primitive {name[:40]}, which is not allowed"
                )
            for variable in equation.outvars:
                _check_array(variable.aval, what)
    if count > _MOST_EQUATIONS:
        raise CandidateError(
            "trace", None, f"{what} has {count} JAX operations; at most {_MOST_EQUATIONS} are allowed"
        )


def _check_array(aval: Any, what: str) -> None:
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    size = 1
    for length in shape if shape is not None else (_LARGEST + 1,):
        size *= length if isinstance(length, int) else _LARGEST + 1
    if size > _LARGEST:
        raise CandidateError("trace", None, f"{what} makes an array of {size} values for {_BATCH} pairs")
    if str(dtype) not in _DTYPES:
        raise CandidateError(
            "trace", None, f"{what} makes values of type {str(dtype)[:20]}; losses are float32"
        )


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """A jaxpr and all those within it: parameters hold them bare, closed, or in containers."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (ClosedJaxpr, Jaxpr)):
            # jax >= 0.12 has one class for both, and its `jaxpr` is itself.
            jaxpr = item.jaxpr if isinstance(item, ClosedJaxpr) else item
            yield jaxpr
            stack.extend(parameter for equation in jaxpr.eqns for parameter in equation.params.values())
        elif isinstance(item, (tuple, list)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
