"""What holds for every loss of the library."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from discojax import objectives
from discojax.errors import UserError

NAMES = objectives.names()
LOGPS = objectives.LogProbs._fields[:4]


def pairs(margins, beta, level=-2e4, length=20):
    """Pairs whose x = beta * margin; log-probabilities stay below zero."""
    margins = jnp.asarray(margins, jnp.float32) / beta
    reference = jnp.full(margins.shape, level, jnp.float32)
    lengths = jnp.full(margins.shape, length, jnp.int32)
    return objectives.LogProbs(
        reference + margins / 2, reference - margins / 2, reference, reference, lengths, lengths
    )


def value_and_gradients(objective, logps, beta):
    """Every pair's value, and the gradient of their sum."""

    def total(four):
        values = objective(logps._replace(**four), beta)
        return jnp.sum(values), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(
        {f: jnp.asarray(getattr(logps, f)) for f in LOGPS}
    )
    return values, gradient


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name, golden_rows, call, x64):
    objective = objectives.get(name)

    # The golden rows have equal log-ratios, where a sort has no derivative.
    apart = golden_rows._replace(policy_chosen=golden_rows.policy_chosen + np.linspace(0, 0.1, 8))

    def policy(pc, pr):
        return call(objective, apart._replace(policy_chosen=pc, policy_rejected=pr), 0.1)

    check_grads(policy, (apart.policy_chosen, apart.policy_rejected), order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 5.0])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extreme_margins(name, beta):
    objective = objectives.get(name)
    spread = jnp.linspace(-1e3, 1e3, 41)
    for margins in (spread, jnp.full(4, -1e3), jnp.full(4, 1e3), jnp.array([-100.0, -90.0, -88.0, 90.0])):
        values, gradient = value_and_gradients(objective, pairs(margins, beta), beta)
        for array in (values, *gradient.values()):
            assert np.isfinite(array).all()


@pytest.mark.parametrize("name", ["exp", "cell", "dbaql"])
def test_exponent_is_clamped_at_80_with_zero_gradient_beyond(name):
    objective = objectives.get(name)
    values, gradient = value_and_gradients(objective, pairs([-90.0, -90.0], 1.0, level=-50.0), 1.0)
    scale = {"exp": 1.0, "cell": 0.5, "dbaql": 0.5}[name]
    np.testing.assert_allclose(values, scale * np.exp(80.0), rtol=1e-4)
    logistic_slope = {"exp": 0.0, "cell": 0.5, "dbaql": 0.5 / 0.9}[name]
    np.testing.assert_allclose(gradient["policy_chosen"], -logistic_slope, rtol=1e-5)
    # and not clamped before
    values, gradient = value_and_gradients(objective, pairs([-79.0, -79.0], 1.0, level=-50.0), 1.0)
    slope = {"exp": -np.exp(79.0), "cell": -0.5 * np.exp(79.0), "dbaql": -0.45 * np.exp(0.9 * 79.0)}[name]
    np.testing.assert_allclose(gradient["policy_chosen"], slope, rtol=1e-3)


def test_discopop_stays_finite_where_the_published_form_overflows():
    x = jnp.float32(-100.0)
    assert np.isnan(jax.nn.sigmoid(x / 0.05) * jnp.exp(-x))
    (value, _) = objectives.get("discopop")(pairs([-100.0, 0.0], 1.0), 1.0)
    np.testing.assert_allclose(value, 100.0, rtol=1e-6)


LOG2 = np.log(2.0)
# every loss that is a function of log-ratios alone, at policy = reference
AT_STEP_0 = {
    "dpo": lambda beta: LOG2,
    "slic": lambda beta: 1.0,
    "ipo": lambda beta: 0.25 / beta**2,
    "ipo_avg": lambda beta: 0.25 / beta**2,
    "kto_pair": lambda beta: 0.5,
    "exp": lambda beta: 1.0,
    "robust": lambda beta: LOG2,
    "exo_pair": lambda beta: 0.5 * np.log(0.25 / (0.999 * 0.001)),
    "nca_pair": lambda beta: 2 * LOG2,
    "bco_pair": lambda beta: 2 * LOG2,
    "sppo_hard": lambda beta: 0.5 / beta**2,
    "aot": lambda beta: LOG2,
    "aot_unpaired": lambda beta: LOG2,
    "apo_zero": lambda beta: 1.0,
    "apo_down": lambda beta: 1.0,
    "sigmoid_norm": lambda beta: LOG2,
    "discopop": lambda beta: 0.5 * LOG2 + 0.5,
    "cell": lambda beta: 0.5 * LOG2 + 0.5,
    "padll": lambda beta: 0.9 * LOG2,
    "dbaql": lambda beta: 0.5 * LOG2 + 0.5,
}


@pytest.mark.parametrize("beta", [0.05, 1.0])
@pytest.mark.parametrize("name", AT_STEP_0)
def test_value_at_step_0(name, beta, golden_rows):
    pc, pr = golden_rows[:2]
    start = golden_rows._replace(reference_chosen=pc, reference_rejected=pr)
    np.testing.assert_allclose(objectives.get(name)(start, beta), AT_STEP_0[name](beta), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_at_step_0_is_finite_and_moves_the_policy(name, golden_rows):
    pc, pr = golden_rows[:2]
    start = golden_rows._replace(reference_chosen=pc, reference_rejected=pr)
    values, gradient = value_and_gradients(objectives.get(name), start, 0.05)
    assert np.isfinite(values).all()
    assert all(np.isfinite(array).all() for array in gradient.values())
    # apo_down leaves the chosen completion alone at first
    assert max(np.abs(gradient[side]).max() for side in ("policy_chosen", "policy_rejected")) > 1e-6


def test_every_name_is_its_own_loss(golden_rows, mean_and_gradient, x64):
    # A trainer once trained plain DPO whatever the loss was called (ms-swift 10167).
    found = {}
    for name in NAMES:
        value, gradient = mean_and_gradient(objectives.get(name), golden_rows, 0.1)
        found[name] = np.append(gradient["policy_chosen"], value)
    for one, other in itertools.combinations(NAMES, 2):
        assert abs(found[one][-1] - found[other][-1]) > 1e-9, (one, other)
        assert np.abs(found[one][:-1] - found[other][:-1]).max() > 1e-9, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_beta_matters_where_it_should(name, golden_rows):
    small, large = (objectives.get(name)(golden_rows, beta) for beta in (0.05, 0.5))
    assert np.array_equal(small, large) == (name in {"sft", "pfl_discovered"})


@pytest.mark.parametrize("name", ["simpo", "orpo", "cpo", "cpo_avg", "sft"])
def test_reference_free_losses_ignore_the_reference(name, golden_rows):
    _, gradient = value_and_gradients(objectives.get(name), golden_rows, 0.1)
    assert not np.any(gradient["reference_chosen"]) and not np.any(gradient["reference_rejected"])


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_vmap_change_nothing(name, golden_rows):
    objective = objectives.get(name)
    logps = jax.tree.map(jnp.asarray, golden_rows)
    plain = objective(logps, 0.1)
    np.testing.assert_allclose(jax.jit(objective)(logps, 0.1), plain, rtol=1e-5, atol=1e-6)
    as_argument = jax.jit(lambda loss, rows: loss(rows, 0.1), static_argnums=0)
    np.testing.assert_allclose(as_argument(objective, logps), plain, rtol=1e-5, atol=1e-6)
    # Lanes: a leading axis, each with its own batch and beta.
    other = logps._replace(policy_chosen=logps.policy_chosen - 3.0)
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), logps, other)
    mapped = jax.vmap(objective)(lanes, jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mapped[1], objective(other, 0.2), rtol=1e-5, atol=1e-6)


LENGTH_NORMALISED = ["ipo_avg", "sft", "sigmoid_norm", "simpo", "orpo", "cpo_avg"]


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_asked_for_only_where_needed(name, golden_rows):
    without = golden_rows._replace(chosen_length=None, rejected_length=None)
    if name in LENGTH_NORMALISED:
        with pytest.raises(UserError, match=f"'{name}' needs chosen_lengths"):
            objectives.get(name)(without, 0.1)
    else:
        np.testing.assert_array_equal(
            objectives.get(name)(without, 0.1), objectives.get(name)(golden_rows, 0.1)
        )


@pytest.mark.parametrize("name", LENGTH_NORMALISED)
def test_an_empty_completion_does_not_divide_by_zero(name, golden_rows):
    empty = golden_rows._replace(chosen_length=np.zeros(8, np.int32), rejected_length=np.zeros(8, np.int32))
    values, gradient = value_and_gradients(objectives.get(name), empty, 0.1)
    assert all(np.isfinite(array).all() for array in (values, *gradient.values()))


@pytest.mark.parametrize("name", NAMES)
def test_one_pair(name, golden_rows):
    one = jax.tree.map(lambda array: array[:1], golden_rows)
    if name in {"dbaql", "aqfl"}:
        with pytest.raises(UserError, match="at least 2 pairs in it, not 1"):
            objectives.get(name)(one, 0.1)
    else:
        assert np.isfinite(objectives.get(name)(one, 0.1)).all()


def test_orpo_odds_are_finite_at_certainty():
    certain = objectives.LogProbs(*jnp.zeros((4, 3)), *jnp.full((2, 3), 5))
    values, gradient = value_and_gradients(objectives.get("orpo"), certain, 0.1)
    assert all(np.isfinite(array).all() for array in (values, *gradient.values()))


@pytest.mark.parametrize("name", NAMES)
def test_batch_coupling(name, golden_rows):
    """Whether a pair's value depends on the other pairs, loss by loss."""
    first_four = jax.tree.map(lambda array: array[:4], golden_rows)

    def alone(beta):
        values = objectives.get(name)(golden_rows, beta)
        return np.allclose(values[:4], objectives.get(name)(first_four, beta), rtol=1e-6, atol=0)

    coupled = {"kto_pair", "aot", "aot_unpaired", "sft", "dbaql", "aql", "aql_discovered", "aqfl"}
    # At the small beta the variance in dbaql does not saturate its gate.
    assert (alone(0.001) and alone(0.1)) == (name not in coupled)
