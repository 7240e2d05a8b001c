"""Values that were published or derived elsewhere: the losses are those, to the last digit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import objectives

# Mean over the golden rows at beta 0.05 and 0.1, in float64.
MEANS = {
    "dpo": (0.69659471, 0.78745648),
    "slic": (0.94644550, 1.04289100),
    "ipo": (264.36851045, 212.57941045),
    "kto_pair": (0.48455276, 0.47320306),
    "exp": (1.15064919, 2.18262293),
    "discopop": (0.80750849, 0.87556316),
    "cell": (0.92362195, 1.48503970),
    "padll": (0.45997452, 0.47645626),
    "dbaql": (0.70346622, 0.81404217),
    "aql": (0.74531668, 0.81688525),
    "aql_discovered": (0.78552550, 0.85116380),
    "aqfl": (0.76319203, 0.82130606),
    "pfl": (1.26430295, 1.58870261),
    "pfl_discovered": (7.83267129, 7.83267129),
}
DPO_GRADIENT = [
    -0.003105469, -0.002891063, -0.003310049, -0.003012539,
    -0.001140160, -0.004858124, -0.002214648, -0.003183587,
]  # fmt: skip


@pytest.mark.parametrize(("name", "means"), MEANS.items(), ids=MEANS)
def test_golden_means(name, means, golden_rows, call, x64):
    objective = objectives.get(name)
    found = [float(jnp.mean(call(objective, golden_rows, beta))) for beta in (0.05, 0.1)]
    np.testing.assert_allclose(found, means, rtol=0, atol=6e-9)


def test_dpo_gradient(golden_rows, mean_and_gradient, x64):
    _, gradient = mean_and_gradient(objectives.get("dpo"), golden_rows, 0.05)
    np.testing.assert_allclose(gradient["policy_chosen"], DPO_GRADIENT, rtol=0, atol=6e-10)
    np.testing.assert_array_equal(gradient["policy_rejected"], -gradient["policy_chosen"])


def sigmoid(u):
    return 1 / (1 + np.exp(-u))


def logistic(u):
    return np.log1p(np.exp(-u))


def hinge(u):
    return np.maximum(0, 1 - u)


def textbook(logps: objectives.LogProbs, beta: float) -> dict[str, np.ndarray]:
    """Every loss as its formula reads, in float64 NumPy, without care for overflow."""
    pc, pr, rc, rr, lc, lr = logps
    a, b = pc - rc, pr - rr
    rho = a - b
    x = beta * rho
    z = x / 0.05
    g = sigmoid(z)
    w = sigmoid(z.var(ddof=1))
    q = sigmoid(0.5 + 0.01 * (sigmoid(z.mean()) - 0.5) - z)
    q_raw = sigmoid(-beta * (rho - (0.5 + 0.01 * (sigmoid(rho.mean()) - 0.5))))
    m1 = z.std(ddof=1) * sigmoid(-z).mean()
    focus = sigmoid(0.1 * np.abs(z - (m1 + 0.05 * (sigmoid(z.mean()) - m1))))
    mc, mr = pc / lc, pr / lr
    odds_c, odds_r = np.exp(mc) / (1 - np.exp(mc)), np.exp(mr) / (1 - np.exp(mr))
    kl_c, kl_r = max(a.mean(), 0), max(b.mean(), 0)
    sorted_margin = np.sort(pc - pr) - np.sort(rc - rr)
    eps = 0.001
    return {
        "dpo": logistic(x),
        "slic": hinge(x),
        "ipo": (rho - 1 / (2 * beta)) ** 2,
        "ipo_avg": (a / lc - b / lr - 1 / (2 * beta)) ** 2,
        "kto_pair": ((1 - sigmoid(beta * (a - kl_r))) + (1 - sigmoid(beta * (kl_c - b)))) / 2,
        "exp": np.exp(-x),
        "robust": (0.9 * logistic(x) - 0.1 * logistic(-x)) / 0.8,
        "exo_pair": sigmoid(x) * np.log(sigmoid(x) / (1 - eps)) + sigmoid(-x) * np.log(sigmoid(-x) / eps),
        "nca_pair": logistic(beta * a) + logistic(-beta * a) / 2 + logistic(-beta * b) / 2,
        "bco_pair": logistic(beta * a) + logistic(-beta * b),
        "sppo_hard": (a - 0.5 / beta) ** 2 + (b + 0.5 / beta) ** 2,
        "aot": logistic(beta * sorted_margin),
        "aot_unpaired": logistic(beta * (np.sort(a) - np.sort(b))),
        "apo_zero": 1 - sigmoid(beta * a) + sigmoid(beta * b),
        "apo_down": sigmoid(beta * a) + 1 - sigmoid(x),
        "sft": -pc * len(pc) / lc.sum(),
        "sigmoid_norm": logistic(beta * (a / lc - b / lr)),
        "simpo": logistic(beta * (mc - mr) - 0.5),
        "orpo": -mc + beta * logistic(np.log(odds_c / odds_r)),
        "cpo": logistic(beta * (pc - pr)) - pc,
        "cpo_avg": logistic(beta * (pc - pr)) - pc / lc,
        "discopop": (1 - g) * logistic(x) + g * np.exp(-x),
        "cell": np.exp(-x) / 2 + logistic(x) / 2,
        "padll": 0.9 * (1 - 0.5 * (rho < 0)) * logistic(x),
        "dbaql": w * logistic(x / 0.9) + (1 - w) * np.exp(-0.9 * x),
        "aql": q * logistic(x) + (1 - q) * hinge(x),
        "aql_discovered": q_raw * logistic(x) + (1 - q_raw) * hinge(x),
        "aqfl": focus * logistic(x) + (1 - focus) * hinge(x),
        "pfl": np.where(pc > pr, logistic(x) / 2, 2 * hinge(x)),
        "pfl_discovered": np.where(pc > pr, logistic(rho) / 2, 2 * hinge(rho)),
    }


@pytest.mark.parametrize("beta", [0.01, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("name", objectives.names())
def test_every_pair_agrees_with_the_textbook_formula(name, beta, golden_rows, call, x64):
    found = call(objectives.get(name), golden_rows, beta)
    assert found.shape == (8,)
    np.testing.assert_allclose(found, textbook(golden_rows, beta)[name], rtol=2e-12, atol=1e-13)


@pytest.mark.parametrize("name", objectives.names())
def test_float32_is_as_close_as_float32_can_be(name, golden_rows):
    found = objectives.get(name)(golden_rows, 0.05)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, textbook(golden_rows, 0.05)[name], rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("dpo", {"label_smoothing": 0.2}, lambda x: 0.8 * logistic(x) + 0.2 * logistic(-x)),
        ("robust", {"label_smoothing": 0.3}, lambda x: (0.7 * logistic(x) - 0.3 * logistic(-x)) / 0.4),
        ("discopop", {"tau": 0.5}, lambda x: sigmoid(-2 * x) * logistic(x) + sigmoid(2 * x) * np.exp(-x)),
        ("discopop", {"tau": 1.0}, lambda x: sigmoid(-x) * logistic(x) + sigmoid(x) * np.exp(-x)),
    ],
)
def test_settings_reach_the_formula(name, settings, expected, golden_rows, call, x64):
    x = 0.1 * np.array([0.25, 3, -2.3714, 1.44012, 30, -25, 12, -0.75])
    found = call(objectives.get(name, **settings), golden_rows, 0.1)
    np.testing.assert_allclose(found, expected(x), rtol=1e-11)


def discopop_of_x(x):
    zero = jnp.zeros_like(x)
    return objectives.get("discopop").function(
        policy_chosen_logps=x,
        policy_rejected_logps=zero,
        reference_chosen_logps=zero,
        reference_rejected_logps=zero,
        beta=1.0,
    )


def test_discopop_has_the_published_stationary_points(x64):
    slope, curvature = jax.grad(discopop_of_x), jax.grad(jax.grad(discopop_of_x))
    minimum, maximum = jnp.float64(-0.11856989), jnp.float64(0.07200611)
    assert abs(slope(minimum)) < 1e-6 and curvature(minimum) > 0
    assert abs(slope(maximum)) < 1e-6 and curvature(maximum) < 0
    np.testing.assert_allclose(discopop_of_x(minimum), 0.78592392, atol=1e-8)
    np.testing.assert_allclose(discopop_of_x(maximum), 0.87828961, atol=1e-8)


def test_discopop_first_lowers_the_margin(x64):
    zero = jnp.float64(0.0)
    np.testing.assert_allclose(discopop_of_x(zero), 0.5 * np.log(2) + 0.5, rtol=1e-14)
    np.testing.assert_allclose(jax.grad(discopop_of_x)(zero), 0.7843, atol=5e-5)


def test_discopop_slope_is_the_derived_one(x64):
    x = np.linspace(-2, 2, 41)
    g = sigmoid(x / 0.05)
    slope = -(1 - g) * sigmoid(-x) - g * np.exp(-x) + g * (1 - g) / 0.05 * (np.exp(-x) - logistic(x))
    np.testing.assert_allclose(
        jax.vmap(jax.grad(discopop_of_x))(jnp.asarray(x)), slope, rtol=1e-9, atol=1e-12
    )


def test_padll_jumps_at_zero():
    rows = [jnp.array([x, 0.0, 0.0, 0.0]) for x in (-1e-4, 0.0)]
    below, at = (float(objectives.get("padll").function(*row, beta=1.0)) for row in rows)
    np.testing.assert_allclose([below, at], [0.312, 0.624], atol=5e-4)


@pytest.mark.parametrize("name", ["discopop", "dbaql", "aqfl"])
def test_scaled_and_discovered_forms_meet_at_beta_equal_tau(name, golden_rows, call, x64):
    # The paper's code had the raw margin where the table has x / tau.
    margins = golden_rows.policy_chosen - golden_rows.reference_chosen
    margins = margins - golden_rows.policy_rejected + golden_rows.reference_rejected
    zeros = np.zeros(8)
    raw = objectives.LogProbs(margins * 0.05, zeros, zeros, zeros, *golden_rows[4:])
    np.testing.assert_allclose(
        call(objectives.get(name), golden_rows, 0.05), call(objectives.get(name), raw, 1.0), rtol=1e-12
    )
