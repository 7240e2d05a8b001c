"""The losses a language model discovered in the DiscoPOP paper, with its MT-Bench scores.

Lu et al. 2024, arXiv 2406.08414, Table 1 and appendix E: one run each, no error bars; on the same
scale DPO scored 7.888. Where the paper's equations and its released code differ (AQFL), these
follow the code. Written in the candidate language, as in `baselines`.
"""

import jax
import jax.numpy as jnp

from discojax.objectives.registry import objective

__all__ = ["aqfl", "aql", "aql_discovered", "cell", "dbaql", "discopop", "padll", "pfl", "pfl_discovered"]

_PAPER = "DiscoPOP: Lu et al. 2024, arXiv 2406.08414"


@objective(
    formula="(1 − σ(z))·ℓ(x) + σ(z)·e^−x, z = x/τ, τ = tau",
    reference=f"{_PAPER}, eq. 5 (LRML); MT-Bench 7.916",
    aliases=("lrml",),
    ranges={"tau": "(0, 1]"},
)
def discopop(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    tau=0.05,
):
    """Log-ratio modulated loss: logistic for negative margins, exponential for positive ones.

    Not convex: a local minimum at x = -0.1186 and a maximum at x = +0.0720 (tau = 0.05), so training
    first lowers the margin. Written with the gate inside the exponent, which never overflows.

    >>> print(f"{discopop(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.8559
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    z = x / tau
    logistic = jax.nn.sigmoid(-z) * jax.nn.softplus(-x)
    # sigmoid(z) * exp(-x) is 0 * inf in float32 from x = -88.7 on
    exponential = jnp.exp(-x - jax.nn.softplus(-z))
    return logistic + exponential


@objective(formula="½e^−x + ½ℓ(x)", reference=f"{_PAPER}; MT-Bench 7.925")
def cell(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Combined exponential and logistic loss: their mean.

    The exponent is clamped at 80, so that float32 holds the value.

    >>> print(f"{cell(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.8372
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    return 0.5 * jnp.exp(jnp.minimum(-x, 80.0)) + 0.5 * jax.nn.softplus(-x)


@objective(formula="0.9·(1 − ½·1[ρ < 0])·ℓ(x)", reference=f"{_PAPER}; MT-Bench 7.941")
def padll(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Performance adaptive decay logistic loss: pairs ranked wrongly weigh half.

    Jumps at margin 0, from 0.312 to 0.624.

    >>> print(f"{padll(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.6182
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    weight = jnp.where(log_ratio < 0.0, 0.45, 0.9)
    return weight * jax.nn.softplus(-beta * log_ratio)


@objective(
    formula="w·ℓ(x/0.9) + (1 − w)·e^(−0.9x), w = σ(var z), z = x/τ, τ = tau",
    reference=f"{_PAPER}; MT-Bench 7.978",
    ranges={"tau": "(0, inf)"},
    minimum_batch=2,
)
def dbaql(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    tau=0.05,
):
    """Dynamic blending adaptive quantile loss: the margins' variance blends logistic and exponential.

    The exponent is clamped at 80, so that float32 holds the value.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(dbaql(pc, pr, rc, rr, 0.05), precision=4))
    [0.8164 0.8429]
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    spread = jnp.var(x / tau, ddof=1)
    logistic = jax.nn.sigmoid(spread) * jax.nn.softplus(-x / 0.9)
    exponential = jax.nn.sigmoid(-spread) * jnp.exp(jnp.minimum(-0.9 * x, 80.0))
    return logistic + exponential


@objective(
    formula="q·ℓ(x) + (1 − q)·h(x), q = σ(m − z), m = 0.5 + 0.01(σ(mean z) − 0.5), z = x/τ, τ = tau",
    reference=f"{_PAPER}; MT-Bench 7.953",
    ranges={"tau": "(0, inf)"},
)
def aql(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    tau=0.05,
):
    """Adaptive quantile loss: logistic below a moving quantile of the margins, hinge above.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(aql(pc, pr, rc, rr, 0.05), precision=4))
    [0.8185 0.7916]
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    z = x / tau
    quantile = 0.5 + 0.01 * (jax.nn.sigmoid(jnp.mean(z)) - 0.5)
    logistic = jax.nn.sigmoid(quantile - z) * jax.nn.softplus(-x)
    hinge = jax.nn.sigmoid(z - quantile) * jax.nn.relu(1.0 - x)
    return logistic + hinge


@objective(
    formula="q·ℓ(x) + (1 − q)·h(x), q = σ(−β(ρ − m)), m = 0.5 + 0.01(σ(mean ρ) − 0.5)",
    reference=f"{_PAPER}, as first discovered and scored",
)
def aql_discovered(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Adaptive quantile loss as first discovered: the quantile is of raw margins, not of z.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(aql_discovered(pc, pr, rc, rr, 0.05), precision=4))
    [0.8363 0.8614]
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    quantile = 0.5 + 0.01 * (jax.nn.sigmoid(jnp.mean(log_ratio)) - 0.5)
    logistic = jax.nn.sigmoid(beta * (quantile - log_ratio)) * jax.nn.softplus(-x)
    hinge = jax.nn.sigmoid(beta * (log_ratio - quantile)) * jax.nn.relu(1.0 - x)
    return logistic + hinge


@objective(
    formula=(
        "g·ℓ(x) + (1 − g)·h(x), g = σ(0.1·|z − m|), m = m₁ + 0.05(σ(mean z) − m₁), "
        "m₁ = std z · mean σ(−z), z = x/τ, τ = tau"
    ),
    reference=f"{_PAPER}, its released code; MT-Bench 7.931",
    ranges={"tau": "(0, inf)"},
    minimum_batch=2,
)
def aqfl(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    tau=0.05,
):
    """Adaptive quantile feedback loss: the distance from a moving quantile blends logistic and hinge.

    The standard deviation has a floor of 1e-6 with zero gradient, for a batch of equal margins
    (the first step).

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(aqfl(pc, pr, rc, rr, 0.05), precision=4))
    [0.8369 0.8591]
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    z = x / tau
    spread = jnp.sqrt(jnp.maximum(jnp.var(z, ddof=1), 1e-12))
    start = spread * jnp.mean(jax.nn.sigmoid(-z))
    quantile = start + 0.05 * (jax.nn.sigmoid(jnp.mean(z)) - start)
    distance = 0.1 * jnp.abs(z - quantile)
    return jax.nn.sigmoid(distance) * jax.nn.softplus(-x) + jax.nn.sigmoid(-distance) * jax.nn.relu(1.0 - x)


@objective(formula="ℓ(x)/2 where pc > pr, else 2h(x)", reference=f"{_PAPER}; MT-Bench 7.900")
def pfl(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Policy focused loss: half the logistic loss where the policy prefers the chosen, else twice the hinge.

    The reference has no part in the gate, and the loss jumps there.

    >>> print(f"{pfl(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.3435
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    return jnp.where(
        policy_chosen_logps > policy_rejected_logps, 0.5 * jax.nn.softplus(-x), 2.0 * jax.nn.relu(1.0 - x)
    )


@objective(
    formula="ℓ(ρ)/2 where pc > pr, else 2h(ρ)",
    reference=f"{_PAPER}, as first discovered and scored",
)
def pfl_discovered(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Policy focused loss as first discovered: beta has no part.

    >>> print(f"{pfl_discovered(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.2880
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    return jnp.where(
        policy_chosen_logps > policy_rejected_logps,
        0.5 * jax.nn.softplus(-log_ratio),
        2.0 * jax.nn.relu(1.0 - log_ratio),
    )
