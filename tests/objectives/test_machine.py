"""The machine computes what the objective computes, value and gradient, for any program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import objectives
from discojax.objectives import OPERATORS, discovered, encode, evaluate
from discojax.objectives.machine import MAX_CONSTANTS, MAX_INSTRUCTIONS

PC, PR, RC, RR, BETA = objectives.ARGUMENTS[:5]

MARGIN = [
    ("subtract", (PC, RC)),
    ("subtract", (PR, RR)),
    ("subtract", (0, 1)),
    ("multiply", (BETA, 2)),
]  # x is 3

# By hand, each with the operations of the library's text.
PROGRAMS = {
    "dpo": encode(
        [*MARGIN, ("negative", (3,)), ("softplus", (4,)), ("multiply", (0.0, 3)), ("add", (5, 6))], result=7
    ),
    "discopop": encode(
        [
            *MARGIN,
            ("divide", (3, 0.05)),
            ("negative", (4,)),
            ("sigmoid", (5,)),
            ("negative", (3,)),
            ("softplus", (7,)),
            ("multiply", (6, 8)),
            ("softplus", (5,)),
            ("subtract", (7, 10)),
            ("exp", (11,)),
            ("add", (9, 12)),
        ],
        result=13,
    ),
    "kto_pair": encode(
        [
            ("subtract", (PC, RC)),
            ("subtract", (PR, RR)),
            ("mean", (0,)),
            ("relu", (2,)),
            ("mean", (1,)),
            ("relu", (4,)),
            ("subtract", (5, 0)),
            ("multiply", (BETA, 6)),
            ("sigmoid", (7,)),
            ("subtract", (1, 3)),
            ("multiply", (BETA, 9)),
            ("sigmoid", (10,)),
            ("add", (8, 11)),
            ("multiply", (0.5, 12)),
        ],
        result=13,
    ),
    "aot": encode(
        [
            ("subtract", (PC, PR)),
            ("sort", (0,)),
            ("subtract", (RC, RR)),
            ("sort", (2,)),
            ("subtract", (1, 3)),
            ("multiply", (BETA, 4)),
            ("negative", (5,)),
            ("softplus", (6,)),
        ],
        result=7,
    ),
    "aqfl": encode(
        [
            *MARGIN,
            ("divide", (3, 0.05)),
            ("var_unbiased", (4,)),
            ("maximum", (5, 1e-12)),
            ("sqrt", (6,)),
            ("negative", (4,)),
            ("sigmoid", (8,)),
            ("mean", (9,)),
            ("multiply", (7, 10)),
            ("mean", (4,)),
            ("sigmoid", (12,)),
            ("subtract", (13, 11)),
            ("multiply", (0.05, 14)),
            ("add", (11, 15)),
            ("subtract", (4, 16)),
            ("abs", (17,)),
            ("multiply", (0.1, 18)),
            ("sigmoid", (19,)),
            ("negative", (3,)),
            ("softplus", (21,)),
            ("multiply", (20, 22)),
            ("negative", (19,)),
            ("sigmoid", (24,)),
            ("subtract", (1.0, 3)),
            ("relu", (26,)),
            ("multiply", (25, 27)),
            ("add", (23, 28)),
        ],
        result=29,
    ),
    "pfl": encode(
        [
            *MARGIN,
            ("greater", (PC, PR)),
            ("negative", (3,)),
            ("softplus", (5,)),
            ("multiply", (0.5, 6)),
            ("subtract", (1.0, 3)),
            ("relu", (8,)),
            ("multiply", (2.0, 9)),
            ("where", (4, 7, 10)),
        ],
        result=11,
    ),
    "sft": encode(
        [("negative", (PC,)), ("mean", ("chosen_lengths",)), ("maximum", (1, 1.0)), ("divide", (0, 2))],
        result=3,
    ),
}


def value_and_gradient(loss, logps):
    def total(four):
        values = loss(objectives.LogProbs(*four, *logps[4:]))
        return jnp.sum(values * jnp.arange(1.0, 1.0 + values.shape[0])), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(logps[:4])
    return values, jnp.stack(gradient)


@pytest.fixture
def logps(golden_rows):
    return objectives.LogProbs(*(jnp.asarray(a, jnp.float32) for a in golden_rows))


@jax.jit
def run_with_constants(code, logps, beta):
    """Values, gradient in the log-probabilities, gradient in the constants: compiled once for all tests."""

    def total(four, constants):
        rows = objectives.LogProbs(*four, *logps[4:])
        values = evaluate(code._replace(constants=constants), rows, beta)
        return jnp.sum(values * jnp.arange(1.0, 1.0 + values.shape[0])), values

    (_, values), (gradient, constants) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        logps[:4], code.constants
    )
    return values, jnp.stack(gradient), constants


@pytest.fixture
def run():
    return lambda *given: run_with_constants(*given)[:2]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.05, 1.0])
@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_with_the_objective(name, beta, logps, run):
    objective = objectives.get(name)
    expected = value_and_gradient(lambda rows: objective(rows, beta), logps)
    assert_same(run(PROGRAMS[name], logps, beta), expected)


@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_at_step_0(name, logps, run):
    start = logps._replace(reference_chosen=logps.policy_chosen, reference_rejected=logps.policy_rejected)
    expected = value_and_gradient(lambda rows: objectives.get(name)(rows, 0.05), start)
    found = run(PROGRAMS[name], start, 0.05)
    assert_same(found, expected)
    assert np.isfinite(found[1]).all()


def test_another_program_compiles_nothing(logps):
    before = None
    for code in PROGRAMS.values():
        run_with_constants(code, logps, 0.05)
        before = before or run_with_constants._cache_size()
    assert run_with_constants._cache_size() == before


@pytest.mark.parametrize("mapping", [jax.vmap, lambda f: lambda *xs: jax.lax.map(lambda x: f(*x), xs)])
def test_lanes_of_different_programs(mapping, logps):
    codes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *PROGRAMS.values())
    betas = jnp.linspace(0.02, 0.5, len(PROGRAMS))

    def lane(code, beta):
        return value_and_gradient(lambda rows: evaluate(code, rows, beta), logps)

    values, gradients = jax.jit(mapping(lane))(codes, betas)
    for i, name in enumerate(PROGRAMS):
        expected = value_and_gradient(
            lambda rows, i=i, name=name: objectives.get(name)(rows, betas[i]), logps
        )
        assert_same((values[i], gradients[i]), expected)


def test_constants_have_gradients(logps):
    def total(tau):
        values = discovered.discopop(*logps[:4], 0.05, tau=tau)
        return jnp.sum(values * jnp.arange(1.0, 9.0))

    _, _, gradient = run_with_constants(PROGRAMS["discopop"], logps, 0.05)
    np.testing.assert_allclose(gradient[0], jax.grad(total)(0.05), rtol=1e-5)
    assert not np.any(gradient[1:])


# Each operator in the plain JAX that a reader would write, over a whole vector.
PLAIN = {
    "reciprocal": lambda a: 1 / a,
    "rsqrt": jax.lax.rsqrt,
    "erf": jax.scipy.special.erf,
    "stop_gradient": jax.lax.stop_gradient,
    "leaky_relu": lambda a, b: jnp.where(a >= 0, a, a * b),
    "where": lambda a, b, c: jnp.where(a > 0.5, b, c),
    "logical_and": lambda a, b: ((a > 0.5) & (b > 0.5)).astype(float),
    "logical_or": lambda a, b: ((a > 0.5) | (b > 0.5)).astype(float),
    "logical_not": lambda a: 1.0 - a,
    "var_unbiased": lambda a: jnp.var(a, ddof=1),
    "std_unbiased": lambda a: jnp.std(a, ddof=1),
    "logsumexp": jax.scipy.special.logsumexp,
    "quantile": lambda a, b: jnp.quantile(a, b[0]),
    "sort": jnp.sort,
}


def plain(name):
    if name in PLAIN:
        return PLAIN[name]
    function = getattr(jnp, name, None) or getattr(jax.nn, name)
    if name in {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}:
        return lambda a, b: function(a, b).astype(float)
    return function


TAME = np.linspace(0.2, 0.8, 8)[[3, 0, 5, 7, 2, 6, 1, 4]]
OPERANDS = {
    "tame": (TAME, TAME[::-1] ** 2 + 0.1, np.sin(TAME * 9)),
    "signed": (8 * (TAME - 0.5), np.round(6 * (TAME[::-1] - 0.5)), TAME),
    "equal": (np.zeros(8), np.zeros(8), np.zeros(8)),
    "ones": (np.ones(8), np.ones(8), np.ones(8)),
    "huge": (1e3 * (TAME - 0.5), -1e3 * TAME, 1e30 * TAME),
}
# Every std is NaN in plain JAX where it is zero; the machine's has gradient zero there.
DEVIATIONS = {"std", "std_unbiased"}


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_its_plain_form(name, operands, run, logps):
    operator = OPERATORS[name]
    a, b, c = OPERANDS[operands]
    if operator.takes[0] == "truth":
        a = (a > 0.5).astype(float)
    if operator.takes[1:2] == ("truth",):
        b = (b > 0.5).astype(float)
    if name == "quantile":
        b = np.full(8, 0.3)
    rows = objectives.LogProbs(*(jnp.asarray(x, jnp.float32) for x in (a, b, c, a)), *logps[4:])
    code = encode([(name, (PC, PR, RC)[: operator.arity])], result=0)
    values, gradient = run(code, rows, 0.05)

    def direct(rows):
        given = (*rows[: operator.arity - 1], rows[operator.arity - 1])
        if name == "quantile":
            given = (given[0], jax.lax.stop_gradient(given[1]))
        result = jnp.broadcast_to(plain(name)(*given), (8,))
        return result

    expected, expected_gradient = value_and_gradient(direct, rows)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    if name in DEVIATIONS and float(expected[0]) == 0.0:
        assert np.isnan(expected_gradient[0]).all()
        assert not np.any(gradient)
        return
    if name.startswith("logical"):  # arithmetic on truth values, whose own gradient is zero
        return
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-5, atol=1e-6)


def test_power_of_a_negative_base_has_a_gradient(logps, run):
    rows = logps._replace(policy_chosen=jnp.linspace(-3.0, 3.0, 8))
    for exponent, slope in [(2.0, lambda x: 2 * x), (3.0, lambda x: 3 * x**2), (1.0, np.ones_like)]:
        values, gradient = run(encode([("power", (PC, exponent))], result=0), rows, 0.05)
        x = np.asarray(rows.policy_chosen)
        np.testing.assert_allclose(values, x**exponent, rtol=1e-5)
        np.testing.assert_allclose(gradient[0] / np.arange(1, 9), slope(x), rtol=1e-5)
        assert not np.any(gradient[1:])


def test_where_never_leaks_the_other_branch(logps, run):
    rows = logps._replace(policy_chosen=jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    # where(pc > 0, log(maximum(pc, 1e-6)), pc): the guard is needed, as in any JAX program
    code = encode(
        [("greater", (PC, 0.0)), ("maximum", (PC, 1e-6)), ("log", (1,)), ("where", (0, 2, PC))], result=3
    )
    values, gradient = run(code, rows, 0.05)
    assert np.isfinite(values).all() and np.isfinite(gradient).all()


def test_a_result_may_be_an_argument_or_a_constant(logps, run):
    values, gradient = run(encode([], result=PC), logps, 0.05)
    np.testing.assert_array_equal(values, logps.policy_chosen)
    np.testing.assert_array_equal(gradient[0], np.arange(1, 9))
    values, gradient = run(encode([], result=2.5), logps, 0.05)
    assert np.all(values == 2.5) and not np.any(gradient)


def test_progress_and_lengths_are_inputs(logps):
    code = encode([("multiply", ("progress", "chosen_lengths")), ("add", (0, "rejected_lengths"))], result=1)
    found = evaluate(code, logps, 0.05, progress=0.5)
    np.testing.assert_array_equal(found, 0.5 * logps.chosen_length + logps.rejected_length)


def test_too_long_a_program_is_refused():
    with pytest.raises(ValueError, match=f"at most {MAX_INSTRUCTIONS}"):
        encode([("exp", (PC,))] * (MAX_INSTRUCTIONS + 1), result=0)
    with pytest.raises(ValueError, match=f"at most {MAX_CONSTANTS}"):
        encode([("add", (PC, float(i))) for i in range(MAX_CONSTANTS + 1)], result=0)
