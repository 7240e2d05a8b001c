"""The allow-list of primitives stands by itself: functions that stages 1 to 3 would have stopped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.candidates import CandidateError
from discojax.candidates.trace import PRIMITIVES, check_trace
from discojax.objectives.operators import OPERATORS

SIGNATURE = ("policy_chosen_logps", "policy_rejected_logps", "beta")
BATCH = jax.ShapeDtypeStruct((8,), jnp.float32)


def refused(body) -> str:
    def function(policy_chosen_logps, policy_rejected_logps, beta):
        return body(policy_chosen_logps - policy_rejected_logps)

    with pytest.raises(CandidateError) as error:
        check_trace(function, SIGNATURE)
    assert error.value.stage == "trace"
    assert len(str(error.value)) < 300
    return error.value.reason


def _ffi(x):
    return jax.ffi.ffi_call("evil", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@jax.custom_jvp
def _callback_in_the_derivative(x):
    return x * 1.0


@_callback_in_the_derivative.defjvp
def _rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return x, jax.pure_callback(lambda v: v, BATCH, t, vmap_method="sequential")


@jax.custom_vjp
def _own_gradient(x):
    return x * 1.0


_own_gradient.defvjp(lambda x: (x, None), lambda _, g: (g,))


HOSTILE = {
    "pure callback": (
        lambda x: jax.pure_callback(np.sin, BATCH, x, vmap_method="sequential"),
        "pure_callback",
    ),
    "foreign function": (_ffi, "ffi_call"),
    "io callback": (lambda x: jax.experimental.io_callback(np.sin, BATCH, x), "side effects"),
    "debug print": (lambda x: (jax.debug.print("{}", x), x)[1], "side effects"),
    "debug callback": (lambda x: (jax.debug.callback(print, x), x)[1], "side effects"),
    "callback inside jit": (
        lambda x: jax.jit(lambda v: jax.pure_callback(np.sin, BATCH, v, vmap_method="sequential"))(x),
        "pure_callback",
    ),
    "callback inside cond": (
        lambda x: jax.lax.cond(x[0] > 0, lambda v: jax.pure_callback(np.sin, BATCH, v), lambda v: v, x),
        "",
    ),
    "callback inside scan": (
        lambda x: jax.lax.scan(lambda c, _: (jax.pure_callback(np.sin, BATCH, c), None), x, None, 3)[0],
        "",
    ),
    "callback inside a derivative": (_callback_in_the_derivative, "gradient"),
    "own gradient": (_own_gradient, "custom_vjp"),
    "while loop": (lambda x: jax.lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, x), ""),
    "dynamic fori loop": (lambda x: jax.lax.fori_loop(0, x[0].astype(int), lambda i, v: v + 1, x), ""),
    "scan": (lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, None, 1000)[0], "scan"),
    "conditional": (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), "cond"),
    "random": (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), ""),
    "random bits": (lambda x: x + jax.random.bits(jax.random.PRNGKey(0), (8,)).astype(jnp.float32), ""),
    "matrix product": (lambda x: x * (x @ x), "dot_general"),
    "singular values": (lambda x: x * jnp.linalg.svd(jnp.outer(x, x))[1], ""),
    "convolution": (lambda x: jnp.convolve(x, x, mode="same"), ""),
    "cumulative sum": (jnp.cumsum, "cumsum"),
    "top k": (lambda x: jax.lax.top_k(x, 8)[0], "top_k"),
    "dynamic slice": (lambda x: x + jax.lax.dynamic_slice(x, (x[0].astype(int),), (1,)), "dynamic_slice"),
    "reverse": (lambda x: x[::-1], "rev"),
    "device transfer": (lambda x: jax.device_put(x), "device_put"),
    "barrier": (lambda x: jax.lax.optimization_barrier(x), "optimization_barrier"),
    "huge intermediate": (lambda x: x + jnp.ones((200000, 200000)).sum(), "values for 8 pairs"),
    "outer product": (
        lambda x: jnp.max(x[:, None, None] * x[None, :, None] * x, axis=(1, 2)),
        "values for 8 pairs",
    ),
    "double precision": (lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), "bfloat16"),
    "eight bits": (lambda x: x.astype(jnp.int8).astype(jnp.float32), "int8"),
    "complex numbers": (lambda x: (x * 1j).real, "complex64"),
    "a large constant": (
        lambda x: x + jnp.asarray(np.zeros((8, 4096), np.float32))[:, 0],
        "values for 8 pairs",
    ),
    "two results": (lambda x: (x, x), "2 values"),
    "a scalar": (lambda x: x.sum(), "float32 [batch]"),
    "a matrix": (lambda x: x[:, None] + x[None], "float32 [batch]"),
    "integers": (lambda x: jnp.sign(x).astype(jnp.int32), "float32 [batch]"),
    "not an array": (lambda x: "loss", "traced"),
    "python control flow": (lambda x: x if x[0] > 0 else -x, "traced"),
    "an exception": (lambda x: 1 / 0, "ZeroDivisionError"),
    "recursion": (lambda x: (f := lambda g: g(g))(f), "nests too deeply"),
    "collective outside a map": (lambda x: jax.lax.psum(x, "lane"), "traced"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_functions_are_refused(name: str) -> None:
    function, word = HOSTILE[name]
    assert word in refused(function)


@pytest.mark.parametrize("collective", ["psum", "pmax", "all_gather", "axis_index"])
def test_collectives_are_refused_where_the_axis_exists(collective: str) -> None:
    # Under a named map a loss could read the other members of the population.
    def loss(x):
        function = getattr(jax.lax, collective)
        return function("lane") * x if collective == "axis_index" else function(x, "lane")

    traced = jax.make_jaxpr(loss, axis_env=[("lane", 4)])(BATCH)
    assert not {equation.primitive.name for equation in traced.jaxpr.eqns} <= PRIMITIVES


def test_an_effect_free_callback_is_caught_by_its_name_alone() -> None:
    traced = jax.make_jaxpr(lambda x: jax.pure_callback(np.sin, BATCH, x, vmap_method="sequential"))(BATCH)
    assert not traced.effects, "why an allow-list is needed"
    assert traced.jaxpr.eqns[-1].primitive.name not in PRIMITIVES


@pytest.mark.parametrize(
    "name",
    [
        "pure_callback", "io_callback", "debug_callback", "debug_print", "ffi_call", "while", "cond", "scan",
        "random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "custom_vjp_call",
        "custom_vjp_call_jaxpr", "device_put", "svd", "eigh", "lu", "triangular_solve", "custom_linear_solve",
        "conv_general_dilated",
        "dot_general", "dynamic_slice", "dynamic_update_slice", "shard_map", "pallas_call", "tpu_custom_call",
        "infeed", "outfeed", "composite", "run_state", "get", "swap", "addupdate", "call_exported",
        "xla_call",
        "a primitive of the future",
    ],
)  # fmt: skip
def test_what_is_not_listed_is_not_allowed(name: str) -> None:
    assert name not in PRIMITIVES


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_passes_on_this_jax(name: str) -> None:
    operator = OPERATORS[name]
    arguments: list[candidates.Node] = [
        candidates.Argument(n) for n in objectives.ARGUMENTS[: operator.arity]
    ]
    for position, kind in enumerate(operator.takes):
        if kind == "truth":
            arguments[position] = candidates.apply("less", arguments[position], 0.5)
    if name == "quantile":
        arguments[1] = candidates.Constant(0.5)
    program = candidates.from_graph(candidates.as_number(candidates.apply(name, *arguments)))
    check_trace(program.function, program.arguments)
