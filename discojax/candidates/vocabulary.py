"""The functions, methods and constants a candidate may name, and the graph each stands for.

Names are matched as whole dotted strings. A PyTorch name is translated where it means exactly one
thing here; where the two libraries differ (the default of a standard deviation, the median of an
even count), the entry says which is meant or refuses with the JAX spelling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from discojax.candidates.canonical import apply, as_number, as_truth
from discojax.candidates.graph import GraphError, Node
from discojax.errors import nearest
from discojax.objectives.operators import OPERATORS

__all__ = [
    "BARE",
    "CONSTANTS",
    "DTYPES",
    "FUNCTIONS",
    "METHODS",
    "ROOTS",
    "STATIC",
    "Function",
    "refusal",
    "remedy",
]

Static = bool | int | float | str | None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ROOTS = frozenset(_words("jnp jax np numpy torch F nn lax math jsp scipy optax"))
"""Names that stand for modules and can be neither assigned nor used as values."""

STATIC = frozenset(_words("axis keepdims ddof unbiased correction dtype approximate descending"))
"""Parameters that take a literal: they choose what is built rather than enter it."""

ALIASES = {
    "a": "x", "input": "x", "arr": "x", "array": "x", "self": "x", "x1": "x", "x2": "y", "other": "y",
    "dim": "axis", "keepdim": "keepdims", "a_min": "min", "a_max": "max", "exponent": "y", "b": "y",
    "condition": "c", "slope": "negative_slope", "operand": "x",
}  # fmt: skip
"""Other spellings of a parameter, used when the function has no parameter of that name."""


@dataclass(frozen=True)
class Function:
    """A callable of the language.

    Attributes:
      build: gives the node, from the parameters in order; None for one that was not given.
      parameters: their names, for keywords.
      required: how many must be given.
      statistic: whether it needs a value per pair: "mean" of one value is that value, "spread"
        and "sum" of one value repeated are not what an author means, and are refused.
      truths: whether operands may be truth values (else they become numbers).
    """

    build: Callable[..., Node]
    parameters: tuple[str, ...] = ("x",)
    required: int = 1
    statistic: str = ""
    truths: bool = False


def _check_axis(axis: Static) -> None:
    if axis is not None and (isinstance(axis, bool) or axis not in (0, -1)):
        raise GraphError("the batch of pairs is the only axis: leave `axis` out, or use 0")


def _operator(name: str) -> Function:
    arity = OPERATORS[name].arity
    parameters = ("x", "y", "z")[:arity]
    return Function(lambda *operands: apply(name, *operands), parameters, arity)


def _reduction(name: str, statistic: str = "mean") -> Function:
    def build(x: Node, axis: Static = None, keepdims: Static = None) -> Node:
        _check_axis(axis)
        return apply(name, x)

    return Function(build, ("x", "axis", "keepdims"), statistic=statistic)


def _spread(name: str, default: int | None) -> Function:
    """A variance or deviation; `default` is the library's degrees of freedom, None if ambiguous."""

    def build(x, axis=None, ddof=None, unbiased=None, correction=None, keepdims=None) -> Node:
        if isinstance(axis, bool):  # torch.std(x, unbiased) gives it by position
            axis, unbiased = None, axis
        _check_axis(axis)
        given = [int(value) for value in (ddof, unbiased, correction) if value is not None]
        freedom = given[0] if given else default
        if freedom is None:
            raise GraphError(
                f"x.{name}() is n-1 in PyTorch and n in JAX; write jnp.{name}(x, ddof=1) or ddof=0"
            )
        if freedom not in (0, 1) or len(given) > 1:
            raise GraphError(f"{name} takes one of ddof=0 and ddof=1")
        return apply(f"{name}_unbiased" if freedom else name, x)

    return Function(build, ("x", "axis", "ddof", "unbiased", "correction", "keepdims"), statistic="spread")


def _over_batch(name: str) -> Function:
    def build(x: Node, axis: Static = None) -> Node:
        _check_axis(axis)
        return apply(name, x)

    return Function(build, ("x", "axis"), statistic="spread")


def _sort(x: Node, axis: Static = None, descending: Static = None) -> Node:
    _check_axis(axis)
    return apply("negative", apply("sort", apply("negative", x))) if descending else apply("sort", x)


def _clip(x: Node, low: Node | None = None, high: Node | None = None) -> Node:
    if low is None and high is None:
        raise GraphError("clip needs a lower or an upper bound")
    x = x if low is None else apply("maximum", x, low)
    return x if high is None else apply("minimum", x, high)


def _exact_gelu(x: Node) -> Node:
    half = apply("add", apply("erf", apply("divide", x, math.sqrt(2.0))), 1.0)
    return apply("multiply", apply("multiply", x, 0.5), half)


def _gelu(default: bool) -> Function:
    def build(x: Node, approximate: Static = None) -> Node:
        chosen = default if approximate is None else approximate
        return apply("gelu", x) if chosen else _exact_gelu(x)

    return Function(build, ("x", "approximate"))


def _elu(x: Node, alpha: Node | None = None) -> Node:
    if alpha is None:
        return apply("elu", x)
    positive = apply("greater", x, 0.0)
    below = apply("expm1", apply("where", positive, 0.0, x))
    return apply("where", positive, x, apply("multiply", alpha, below))


def _softplus(x: Node, beta: Node | None = None) -> Node:
    if beta is None:
        return apply("softplus", x)
    return apply("divide", apply("softplus", apply("multiply", x, beta)), beta)


def _leaky_relu(x: Node, slope: Node | None = None) -> Node:
    return apply("leaky_relu", x, 0.01 if slope is None else slope)


def _cast(x: Node, dtype: Static = None) -> Node:
    if dtype not in (None, "float32"):
        raise GraphError("losses are float32; use jnp.floor, jnp.round or a comparison instead of a cast")
    return as_number(x)


def _extreme(reduce: str, both: str) -> Function:
    """torch.max and the built-in max: of one value over the batch, of two values per pair."""

    def build(x: Node, y: Node | None = None) -> Node:
        return apply(reduce, x) if y is None else apply(both, x, y)

    return Function(build, ("x", "y"))


def _quantile(scale: float) -> Callable[..., Node]:
    def build(x: Node, q: Node, axis: Static = None, keepdims: Static = None) -> Node:
        _check_axis(axis)
        return apply("quantile", x, q if scale == 1 else apply("multiply", q, scale))

    return build


def _average(x: Node, axis: Static = None, weights: Node | None = None) -> Node:
    _check_axis(axis)
    if weights is None:
        return apply("mean", x)
    return apply("divide", apply("sum", apply("multiply", x, weights)), apply("sum", weights))


def _logical(name: str) -> Function:
    arity = OPERATORS[name].arity
    return Function(lambda *x: apply(name, *map(as_truth, x)), ("x", "y")[:arity], arity, truths=True)


def _like(value: float) -> Function:
    return Function(lambda x, dtype=None: apply("stop_gradient", value), ("x", "dtype"))


_SAME = _words(
    "exp exp2 expm1 log log2 log10 log1p sqrt square abs sign floor ceil round sin cos tan sinh cosh tanh "
    "maximum minimum logaddexp remainder hypot"
)  # the same name and meaning in jax.numpy, numpy and torch
_NUMPY = {
    **{name: _operator(name) for name in (*_SAME, "cbrt", "negative", "reciprocal", "arctan", "arcsinh")},
    **{name: _operator(name) for name in ("add", "subtract", "multiply", "divide", "power", "arctan2")},
    "absolute": _operator("abs"), "fabs": _operator("abs"), "true_divide": _operator("divide"),
    "float_power": _operator("power"), "pow": _operator("power"), "mod": _operator("remainder"),
    "atan": _operator("arctan"), "atan2": _operator("arctan2"), "asinh": _operator("arcsinh"),
    "rint": _operator("round"),
    "fmax": _operator("maximum"), "fmin": _operator("minimum"),
    "mean": _reduction("mean"), "sum": _reduction("sum", "sum"),
    "max": _reduction("max"), "min": _reduction("min"), "amax": _reduction("max"), "amin": _reduction("min"),
    "median": _reduction("median"), "average": Function(_average, ("x", "axis", "weights"), statistic="mean"),
    "std": _spread("std", 0), "var": _spread("var", 0),
    "quantile": Function(_quantile(1.0), ("x", "q", "axis", "keepdims"), 2, statistic="mean"),
    "percentile": Function(_quantile(0.01), ("x", "q", "axis", "keepdims"), 2, statistic="mean"),
    "sort": Function(_sort, ("x", "axis", "descending"), statistic="spread"),
    "clip": Function(_clip, ("x", "min", "max")),
    "where": Function(lambda c, x, y: apply("where", as_truth(c), as_number(x), as_number(y)),
                      ("c", "x", "y"), 3, truths=True),
    "greater": _operator("greater"), "greater_equal": _operator("greater_equal"), "less": _operator("less"),
    "less_equal": _operator("less_equal"), "equal": _operator("equal"), "not_equal": _operator("not_equal"),
    **{name: _logical(name) for name in ("logical_and", "logical_or", "logical_not")},
    "ones_like": _like(1.0), "zeros_like": _like(0.0),
    "full_like": Function(lambda x, y, dtype=None: y, ("x", "fill_value", "dtype"), 2),
    "asarray": Function(_cast, ("x", "dtype"), truths=True), "array": Function(_cast, ("x", "dtype"),
    truths=True),
    "float32": Function(_cast, truths=True),
}  # fmt: skip
_NN = {
    **{name: _operator(name) for name in ("sigmoid", "log_sigmoid", "relu", "relu6", "silu", "selu", "mish")},
    **{name: _operator(name) for name in ("soft_sign", "hard_tanh", "hard_sigmoid", "tanh")},
    "softplus": _operator("softplus"), "swish": _operator("silu"), "identity": Function(lambda x: x),
    "elu": Function(_elu, ("x", "alpha")), "celu": _operator("celu"), "gelu": _gelu(True),
    "leaky_relu": Function(_leaky_relu, ("x", "negative_slope")),
    "softmax": _over_batch("softmax"), "log_softmax": _over_batch("log_softmax"),
    "logsumexp": _reduction("logsumexp", "sum"),
}  # fmt: skip
_LAX = {
    **{name: _operator(name) for name in (*_SAME, "stop_gradient", "rsqrt", "cbrt", "erf", "reciprocal")
       if name not in ("maximum", "minimum", "log2", "log10", "hypot", "remainder", "logaddexp")},
    "logistic": _operator("sigmoid"), "neg": _operator("negative"), "max": _operator("maximum"),
    "min": _operator("minimum"), "add": _operator("add"), "sub": _operator("subtract"),
    "mul": _operator("multiply"), "div": _operator("divide"), "pow": _operator("power"),
    "integer_pow": _operator("power"), "atan2": _operator("arctan2"),
    "select": _NUMPY["where"], "clamp": Function(lambda low, x, high: _clip(x, low, high), ("min", "x",
    "max"), 3),
    "gt": _operator("greater"), "ge": _operator("greater_equal"), "lt": _operator("less"),
    "le": _operator("less_equal"), "eq": _operator("equal"), "ne": _operator("not_equal"),
}  # fmt: skip
_SPECIAL = {"expit": _operator("sigmoid"), "erf": _operator("erf"), "logsumexp": _NN["logsumexp"]}
_TORCH = {
    **{name: _NUMPY[name] for name in (*_SAME, "reciprocal", "negative", "arctan", "atan", "atan2",
    "arctan2")},
    **{name: _NUMPY[name] for name in ("asinh", "arcsinh", "where", "mean", "sum", "amax", "amin",
    "quantile")},
    **{name: _NUMPY[name] for name in ("logical_and", "logical_or", "logical_not", "clip", "absolute")},
    **{name: _NUMPY[name] for name in ("ones_like", "zeros_like", "full_like")},
    **{name: _LAX[name] for name in ("add", "sub", "mul", "div", "pow", "neg", "gt", "ge", "lt", "le",
    "eq", "ne")},
    **{name: _NN[name] for name in ("sigmoid", "relu", "selu", "softmax", "log_softmax", "logsumexp")},
    "clamp": _NUMPY["clip"], "rsqrt": _operator("rsqrt"), "erf": _operator("erf"),
    "max": _extreme("max", "maximum"), "min": _extreme("min", "minimum"),
    "std": _spread("std", 1), "var": _spread("var", 1), "multiply": _operator("multiply"),
    "subtract": _operator("subtract"), "divide": _operator("divide"),
}  # fmt: skip
_TORCH_NN = {
    **{name: _NN[name] for name in ("relu", "relu6", "silu", "selu", "mish", "celu", "elu", "leaky_relu",
    "sigmoid")},
    **{name: _NN[name] for name in ("softmax", "log_softmax", "tanh")},
    "logsigmoid": _NN["log_sigmoid"], "softsign": _NN["soft_sign"], "hardtanh": _NN["hard_tanh"],
    "hardsigmoid": _NN["hard_sigmoid"], "softplus": Function(_softplus, ("x", "beta")), "gelu": _gelu(False),
}  # fmt: skip

FUNCTIONS: dict[str, Function] = {
    f"{prefix}.{name}": function
    for prefixes, table in (
        (("jnp", "jax.numpy", "np", "numpy"), _NUMPY),
        (("jax.nn", "nn"), _NN),
        (("jax.lax", "lax"), _LAX),
        (("jax.scipy.special", "jsp.special", "scipy.special"), _SPECIAL),
        (("torch",), _TORCH),
        (("F", "torch.nn.functional", "nn.functional"), _TORCH_NN),
    )
    for prefix in prefixes
    for name, function in table.items()
}
FUNCTIONS.update(
    {f"math.{name}": _NUMPY[name] for name in ("exp", "log", "sqrt", "log1p", "expm1", "tanh", "pow")}
)

BARE: dict[str, Function] = {
    **{name: _NN[name] for name in ("sigmoid", "log_sigmoid", "softplus", "relu", "softmax", "log_softmax")},
    **{name: _NUMPY[name] for name in ("exp", "log", "tanh", "sqrt", "square", "where", "clip", "mean",
    "maximum")},
    **{name: _NUMPY[name] for name in ("minimum", "log1p", "expm1", "abs", "sum", "pow", "round")},
    "logsigmoid": _NN["log_sigmoid"], "stop_gradient": _LAX["stop_gradient"],
    "max": _extreme("max", "maximum"), "min": _extreme("min", "minimum"),
    "float": Function(_cast, truths=True),
}  # fmt: skip
"""Names that mean one thing without a module, as after `from jax.nn import sigmoid`."""

METHODS: dict[str, Function] = {
    **{name: _NUMPY[name] for name in ("mean", "sum", "clip", "round", "sort")},
    "max": _reduction("max"), "min": _reduction("min"),
    "std": _spread("std", None), "var": _spread("var", None),
    "astype": Function(_cast, ("x", "dtype"), 2, truths=True), "float": Function(_cast, truths=True),
    "detach": _LAX["stop_gradient"],
    "clamp_min": _operator("maximum"), "clamp_max": _operator("minimum"),
    "masked_fill": Function(lambda x, c, y: apply("where", as_truth(c), as_number(y), as_number(x)),
                            ("x", "mask", "value"), 3, truths=True),
    **{name: _TORCH[name] for name in (
        "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "square", "abs", "sign", "tanh", "sin", "cos",
        "floor",
        "ceil", "sigmoid", "relu", "pow", "neg", "add", "sub", "mul", "div", "maximum", "minimum", "clamp",
        "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not", "quantile", "softmax",
        "log_softmax", "logsumexp", "reciprocal")},
}  # fmt: skip

CONSTANTS = {
    f"{module}.{name}": getattr(math, name) for module in ("jnp", "np", "math") for name in ("pi", "e")
}
DTYPES = {
    **{f"{module}.{name}": name for module in ("jnp", "np", "torch") for name in
       ("float32", "float64", "float16", "bfloat16", "int32", "int64", "bool_")},
    "torch.float": "float32", "torch.bool": "bool_", "torch.long": "int64", "torch.double": "float64",
}  # fmt: skip

_REFUSED = (
    (("random", "rand", "dropout", "bernoulli", "normal"), "a loss must be deterministic"),
    (("scan", "while_loop", "fori_loop", "cond", "switch", "map", "vmap"),
    "use jnp.where; there is no control flow"),
    (("stack", "concatenate", "cat", "arange", "linspace", "tile", "roll", "flip", "argsort", "take",
    "reshape",
      "squeeze", "flatten", "view", "expand_dims"),
      "values are [batch] and stay so; pairs cannot be addressed"),
    (("callback", "print", "debug", "save", "load", "open", "exec", "eval", "compile", "getattr",
    "setattr", "vars",
      "globals", "locals", "ffi"), "a loss only computes; nothing else can be reached"),
    (("cross_entropy", "logit", "kl_div", "mse_loss"), "write the formula out"),
    (("norm", "dot", "matmul", "einsum"), "use jnp.sum of a product"),
    (("nan_to_num", "isnan", "isfinite", "isinf"), "keep values finite, as with jnp.clip or jax.nn.softplus"),
)  # fmt: skip


def refusal(name: str) -> str:
    """Why a name is refused: a hint for common ones, otherwise an empty string."""
    last = name.rsplit(".", 1)[-1]
    if name in ("torch.median", "median"):
        return "PyTorch's median of an even count differs; write jnp.median(x)"
    if last.endswith("callback"):
        last = "callback"
    for words, hint in _REFUSED:
        if last in words or not set(words).isdisjoint(name.split(".")):
            return hint
    return ""


def remedy(name: str) -> str:
    """What to write instead of an unknown function."""
    if hint := refusal(name):
        return hint
    last = name.rsplit(".", 1)[-1]
    namesakes = {full.rsplit(".", 1)[-1]: full for full in reversed(FUNCTIONS)}
    namesakes |= {"logsigmoid": "jax.nn.log_sigmoid", "clamp": "jnp.clip"}
    near = namesakes.get(last) or nearest(name, FUNCTIONS).removeprefix(" Did you mean ").strip("'?")
    return f"did you mean {near}?" if near else "use functions of jnp, jax.nn or jax.lax"
