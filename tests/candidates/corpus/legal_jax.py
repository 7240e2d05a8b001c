"""Legal candidates in plain JAX. Each is also a Python function, which is the hand-written version
that the accepted program must agree with, in value and gradient."""

# ruff: noqa: ARG001, ANN
# mypy: ignore-errors

import jax
import jax.numpy as jnp
from jax import lax, nn


def logistic_with_margin(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return -jax.nn.log_sigmoid(beta * logits - 0.1)


def smoothed(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Conservative DPO, with label smoothing of 0.1."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    eps = 0.1
    return -(1 - eps) * jax.nn.log_sigmoid(beta * logits) - eps * jax.nn.log_sigmoid(-beta * logits)


def focal(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = policy_chosen_logps - policy_rejected_logps - reference_chosen_logps + reference_rejected_logps
    p = jax.nn.sigmoid(beta * rho)
    return -((1 - p) ** 2) * jax.nn.log_sigmoid(beta * rho)


def elu_hinge(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.elu(1.0 - beta * rho, alpha=0.5)


def gelu_hinge(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.gelu(1.0 - beta * rho) + 0.1 * jax.nn.gelu(-beta * rho, approximate=False)


def silu_leaky(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return nn.silu(1.0 - beta * rho) + nn.leaky_relu(0.5 - beta * rho, negative_slope=0.2)


def huberised(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    d = jnp.maximum(0.0, 1.0 - beta * rho)
    return jnp.where(d < 1.0, 0.5 * jnp.square(d), d - 0.5)


def squared_hinge(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jnp.clip(1.0 - beta * rho, 0.0, None) ** 2


def cubic(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    x = jnp.tanh(beta * rho)
    return (1 - x) ** 3 + jnp.power(1 - x, 5) - 0.1 * x**7


def fractional_power(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.softplus(-beta * rho) ** 1.3


def pseudo_huber(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jnp.sqrt(1.0 + jnp.square(beta * rho - 1.0)) - 1.0


def arctan_loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jnp.pi / 2 - jnp.arctan(beta * rho)


def probit(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    p = 0.5 * (1.0 + jax.scipy.special.erf(beta * rho / jnp.sqrt(2.0)))
    return -jnp.log(jnp.clip(p, 0.01, 1.0))


def savage(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return 1 / (1 + jnp.exp(jnp.clip(beta * rho, -30, 30))) ** 2


def tangent(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return (2 * jnp.arctan(beta * rho) - 1) ** 2


def cauchy(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jnp.log1p(jax.nn.relu(1 - beta * rho) ** 2)


def logaddexp_of_three(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jnp.logaddexp(jnp.logaddexp(0.0, -beta * rho), -2 * beta * rho)


def stop_gradient_weight(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    weight = jax.lax.stop_gradient(jax.nn.sigmoid(-beta * rho))
    return -weight * beta * rho


def masked(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    wrong = (rho < 0).astype(jnp.float32)
    return jax.nn.softplus(-beta * rho) * (1.0 + wrong)


def both_conditions(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    x = beta * rho
    middle = jnp.logical_and(x > -1.0, x < 1.0) | (jnp.abs(rho) <= 0.5)
    return jnp.where(~middle, jax.nn.relu(1 - x), 0.25 * (x - 1) ** 2 + 0.5 * jax.nn.softplus(-x))


def chosen_kept_likely(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """DPO-positive: a penalty when the chosen completion becomes less likely than it was."""
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    penalty = jnp.maximum(0.0, -chosen)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - 5.0 * penalty))


def reference_free_hinge(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """SLiC as first published: no reference at all."""
    return jax.nn.relu(1.0 - beta * (policy_chosen_logps - policy_rejected_logps)) - 0.01 * policy_chosen_logps


def ranking_only(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    return jnp.log1p(jnp.exp(jnp.clip(policy_rejected_logps - policy_chosen_logps, -50.0, 50.0)))


def likelihood_only(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    return -policy_chosen_logps


def unlikelihood_only(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    return jnp.exp(policy_rejected_logps / 500.0)


def length_normalised(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta,
    chosen_lengths, rejected_lengths,
):  # fmt: skip
    chosen = policy_chosen_logps / chosen_lengths
    rejected = policy_rejected_logps / jnp.maximum(rejected_lengths, 1)
    return -jax.nn.log_sigmoid(10.0 * beta * (chosen - rejected) - 0.5)


def length_penalised(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta,
    chosen_lengths, rejected_lengths,
):  # fmt: skip
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return -jax.nn.log_sigmoid(beta * rho - 0.01 * (chosen_lengths - rejected_lengths))


def annealed(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta, progress):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return (1 - progress) * jax.nn.softplus(-beta * rho) + progress * jax.nn.relu(1 - beta * rho)


def cosine_schedule(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta, progress):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    warm = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jax.nn.softplus(-beta * rho * (0.5 + warm))


def batch_normalised(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    scale = jax.lax.stop_gradient(jnp.std(rho, ddof=1)) + 1.0
    return jax.nn.softplus(-rho / scale)


def batch_weighted(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    weights = jax.nn.softmax(-jax.lax.stop_gradient(beta * rho))
    return weights * jax.nn.softplus(-beta * rho)


def quantile_gate(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    low = jnp.quantile(rho, 0.25)
    return jnp.where(rho < low, 2.0, 1.0) * jax.nn.softplus(-beta * rho) + 0.01 * jnp.median(jnp.abs(rho))


def sorted_matching(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    chosen = jnp.sort(policy_chosen_logps - reference_chosen_logps)
    rejected = jnp.sort(policy_rejected_logps - reference_rejected_logps)
    return jax.nn.softplus(-beta * (chosen - rejected))


def kl_anchor(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    kl = jax.lax.stop_gradient(jnp.maximum(jnp.mean(0.5 * (chosen + rejected)), 0.0))
    return 2.0 - jax.nn.sigmoid(beta * (chosen - kl)) - jax.nn.sigmoid(beta * (kl - rejected))


def sum_over_batch(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.softplus(-beta * rho) / (1e-3 + jnp.sum(jax.nn.softplus(-beta * rho)))  * jnp.max(jnp.exp(-beta * rho / 10))


def everything_lax(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = lax.mul(beta, (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return lax.max(lax.neg(x), -1.0) + lax.logistic(-x) + lax.clamp(-2.0, -x, 2.0)


def mish_soft_sign(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return jax.nn.mish(-x) - jax.nn.soft_sign(x) + jax.nn.celu(-x) + jax.nn.selu(-x) + jax.nn.relu6(1 - x)


def hard_gates(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return -jax.nn.hard_sigmoid(x) * x - jax.nn.hard_tanh(x) + jnp.exp2(-jnp.clip(x, -8, 8)) + jnp.arcsinh(-x)


def sine_ripple(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return jax.nn.softplus(-x) + 0.05 * jnp.sin(3 * x)


def unused_values(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """A comment, an unused value, a name used twice."""
    unused = jnp.exp(policy_chosen_logps * 1000.0)
    x = policy_chosen_logps - policy_rejected_logps
    x = x - (reference_chosen_logps - reference_rejected_logps)
    x = beta * x
    x = jax.nn.softplus(-x)
    return x


def one_line(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta): return -jax.nn.log_sigmoid(beta * (policy_chosen_logps - policy_rejected_logps - (reference_chosen_logps - reference_rejected_logps)))  # noqa: E704


def typed(
    policy_chosen_logps: jax.Array, policy_rejected_logps: jax.Array, reference_chosen_logps: jax.Array,
    reference_rejected_logps: jax.Array, beta: float,
) -> jax.Array:  # fmt: skip
    """Annotated, as models like to write it."""
    ratio: jax.Array = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    losses = jax.nn.softplus(-beta * ratio)
    losses += 0.01 * jnp.square(ratio) / 100
    return losses


def methods(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    ratio = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    centre = lax.stop_gradient(ratio.mean())
    spread = lax.stop_gradient(ratio.std(ddof=1)) + ratio.var() / 100 + ratio.max() - ratio.min() + 1.0
    return jax.nn.softplus(-beta * ratio.clip(-20.0, 20.0)) + jax.nn.relu((centre - ratio) / spread)
