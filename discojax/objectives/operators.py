"""The operators of the candidate language: one table, from a name to what it computes.

Everything that evaluates a loss goes through this table: the expression graph of
`discojax.candidates` and the compiled machine of `discojax.objectives.machine`. A program can
only reach what stands here, so the table is also the boundary of what untrusted code can do.

Conventions
-----------
* Every operator takes float32 arrays that broadcast against each other and returns float32.
  Truth values are 0.0 and 1.0: that keeps one dtype in the machine's registers.
* *Elementwise* operators act per pair. *Batch* operators see the whole batch of pairs along the
  last axis and keep it (`keepdims`), so a batch statistic broadcasts back over the pairs.
* Gradients are those of `jax.numpy`, with one documented exception: a standard deviation has
  gradient zero where it is zero (PyTorch's convention). `jnp.std` gives NaN there, and that is
  where training starts, since every margin is zero while the policy equals the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["OPCODES", "OPERATORS", "Operator"]

Kind = Literal["number", "truth"]


@dataclass(frozen=True)
class Operator:
    """One operator of the language.

    Attributes:
      name: its name in graphs, also the key of `OPERATORS`.
      function: what it computes, on float32 arrays that broadcast.
      arity: how many operands it takes, 1 to 3.
      takes: the kind of each operand: a number, or a truth value (0.0 or 1.0).
      gives: the kind of its result.
      commutative: whether the order of its (two) operands is immaterial.
      batch: whether it looks across the batch (a statistic or a sort).
      reduces: for batch operators, whether the result is one value for the batch.
    """

    name: str
    function: Callable[..., Array]
    takes: tuple[Kind, ...]
    gives: Kind = "number"
    commutative: bool = False
    batch: bool = False
    reduces: bool = False

    @property
    def arity(self) -> int:
        """How many operands it takes."""
        return len(self.takes)


def _truth(comparison: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: comparison(a, b).astype(jnp.float32)


def _where(condition: Array, a: Array, b: Array) -> Array:
    return jnp.where(condition > 0.5, a, b)


def _variance(x: Array, ddof: int) -> Array:
    return jnp.var(x, axis=-1, keepdims=True, ddof=ddof)


def _deviation(x: Array, ddof: int) -> Array:
    variance = _variance(x, ddof)
    positive = variance > 0
    # The inner `where` keeps sqrt away from zero, where its derivative is infinite.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0 * variance)


def _quantile(x: Array, q: Array) -> Array:
    # q is one level for the batch. In the machine it fills a register, so its first entry is read.
    level = jax.lax.stop_gradient(jnp.atleast_1d(q)[..., 0])
    return jnp.quantile(x, jnp.clip(level, 0.0, 1.0), axis=-1, keepdims=True)


def _elementwise_unary() -> dict[str, Callable[[Array], Array]]:
    return {
        "negative": jnp.negative,
        "reciprocal": lambda x: 1.0 / x,
        "exp": jnp.exp,
        "exp2": jnp.exp2,
        "expm1": jnp.expm1,
        "log": jnp.log,
        "log2": jnp.log2,
        "log10": jnp.log10,
        "log1p": jnp.log1p,
        "sqrt": jnp.sqrt,
        "rsqrt": jax.lax.rsqrt,
        "cbrt": jnp.cbrt,
        "square": jnp.square,
        "abs": jnp.abs,
        "sign": jnp.sign,
        "floor": jnp.floor,
        "ceil": jnp.ceil,
        "round": jnp.round,
        "sin": jnp.sin,
        "cos": jnp.cos,
        "tan": jnp.tan,
        "arctan": jnp.arctan,
        "arcsinh": jnp.arcsinh,
        "sinh": jnp.sinh,
        "cosh": jnp.cosh,
        "tanh": jnp.tanh,
        "erf": jax.scipy.special.erf,
        "sigmoid": jax.nn.sigmoid,
        "log_sigmoid": jax.nn.log_sigmoid,
        "softplus": jax.nn.softplus,
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "gelu": jax.nn.gelu,
        "silu": jax.nn.silu,
        "elu": jax.nn.elu,
        "celu": jax.nn.celu,
        "selu": jax.nn.selu,
        "mish": jax.nn.mish,
        "soft_sign": jax.nn.soft_sign,
        "hard_tanh": jax.nn.hard_tanh,
        "hard_sigmoid": jax.nn.hard_sigmoid,
        "stop_gradient": jax.lax.stop_gradient,
    }


def _elementwise_binary() -> dict[str, tuple[Callable[[Array, Array], Array], bool]]:
    return {
        "add": (jnp.add, True),
        "subtract": (jnp.subtract, False),
        "multiply": (jnp.multiply, True),
        "divide": (jnp.divide, False),
        "power": (jnp.power, False),
        "maximum": (jnp.maximum, True),
        "minimum": (jnp.minimum, True),
        "logaddexp": (jnp.logaddexp, True),
        "arctan2": (jnp.arctan2, False),
        "hypot": (jnp.hypot, True),
        "remainder": (jnp.remainder, False),
        "leaky_relu": (lambda x, slope: jnp.where(x >= 0, x, slope * x), False),
    }


def _comparisons() -> dict[str, tuple[Callable[[Array, Array], Array], bool]]:
    return {
        "less": (_truth(jnp.less), False),
        "less_equal": (_truth(jnp.less_equal), False),
        "greater": (_truth(jnp.greater), False),
        "greater_equal": (_truth(jnp.greater_equal), False),
        "equal": (_truth(jnp.equal), True),
        "not_equal": (_truth(jnp.not_equal), True),
    }


def _reductions() -> dict[str, Callable[[Array], Array]]:
    return {
        "mean": lambda x: jnp.mean(x, axis=-1, keepdims=True),
        "sum": lambda x: jnp.sum(x, axis=-1, keepdims=True),
        "max": lambda x: jnp.max(x, axis=-1, keepdims=True),
        "min": lambda x: jnp.min(x, axis=-1, keepdims=True),
        "var": lambda x: _variance(x, 0),
        "var_unbiased": lambda x: _variance(x, 1),
        "std": lambda x: _deviation(x, 0),
        "std_unbiased": lambda x: _deviation(x, 1),
        "median": lambda x: jnp.median(x, axis=-1, keepdims=True),
        "logsumexp": lambda x: jax.scipy.special.logsumexp(x, axis=-1, keepdims=True),
    }


def _table() -> dict[str, Operator]:
    table: dict[str, Operator] = {}

    def add(name, function, takes, **fields):
        table[name] = Operator(name, function, takes, **fields)

    for name, unary in _elementwise_unary().items():
        add(name, unary, ("number",))
    for name, (binary, commutative) in _elementwise_binary().items():
        add(name, binary, ("number", "number"), commutative=commutative)
    for name, (comparison, commutative) in _comparisons().items():
        add(name, comparison, ("number", "number"), gives="truth", commutative=commutative)
    add("logical_and", lambda a, b: a * b, ("truth", "truth"), gives="truth", commutative=True)
    add("logical_or", jnp.maximum, ("truth", "truth"), gives="truth", commutative=True)
    add("logical_not", lambda a: 1.0 - a, ("truth",), gives="truth")
    add("where", _where, ("truth", "number", "number"))
    for name, reduction in _reductions().items():
        add(name, reduction, ("number",), batch=True, reduces=True)
    add("quantile", _quantile, ("number", "number"), batch=True, reduces=True)
    add("sort", lambda x: jnp.sort(x, axis=-1), ("number",), batch=True)
    add("softmax", lambda x: jax.nn.softmax(x, axis=-1), ("number",), batch=True)
    add("log_softmax", lambda x: jax.nn.log_softmax(x, axis=-1), ("number",), batch=True)
    return table


OPERATORS: dict[str, Operator] = _table()
"""Every operator by name. The order is the machine's opcode, so append: a stored program keeps."""

OPCODES: dict[str, int] = {name: code for code, name in enumerate(OPERATORS)}
