"""The losses that the DiscoPOP paper compared with, and the variants they are confused with.

Every function here is written in the candidate language: the arguments of `ARGUMENTS`, assignments
of expressions, one return. That language has no annotations; log-probabilities and lengths are
float32 `[batch]`, beta is a scalar, and the result is `[batch]`, one value per pair.
"""

import jax
import jax.numpy as jnp

from discojax.objectives.registry import objective

__all__ = ["dpo", "exp", "ipo", "ipo_avg", "kto_pair", "robust", "slic"]


@objective(
    formula="(1 − ε)·ℓ(x) + ε·ℓ(−x), ε = label_smoothing",
    reference="DPO: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; ε > 0 is cDPO: Mitchell 2023",
    aliases=("sigmoid",),
    ranges={"label_smoothing": "[0, 0.5]"},
)
def dpo(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    label_smoothing=0.0,
):
    """Direct preference optimisation: logistic loss of the log-ratio margin.

    TRL's `sigmoid` ignores label smoothing; this one applies it.

    >>> print(f"{dpo(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.6869
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    # l(-x) = l(x) + x
    return jax.nn.softplus(-x) + label_smoothing * x


@objective(
    formula="h(x)",
    reference="SLiC-HF: Zhao et al. 2023, arXiv 2305.10425; on log-ratios, RSO: Liu et al., arXiv 2309.06657",
    aliases=("hinge",),
)
def slic(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Sequence likelihood calibration: hinge loss of the log-ratio margin.

    >>> print(f"{slic(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.9875
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    return jax.nn.relu(1.0 - beta * log_ratio)


@objective(
    formula="(ρ − 1/(2β))²",
    reference="IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17, over summed log-probabilities as in DiscoPOP",
)
def ipo(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Identity preference optimisation over summed log-probabilities: a finite target margin.

    What TRL calls `ipo` is `ipo_avg` here.

    >>> print(f"{ipo(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    95.0625
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    return jnp.square(log_ratio - 0.5 / beta)


@objective(
    formula="(a/lc − b/lr − 1/(2β))²",
    reference="IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17, per token as its authors ran it; TRL's `ipo`",
)
def ipo_avg(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
    rejected_lengths,
):
    """Identity preference optimisation over log-probabilities averaged over tokens.

    >>> print(f"{ipo_avg(-40.0, -42.0, -41.0, -42.75, 0.05, 10.0, 15.0):.4f}")
    99.0025
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / jnp.maximum(chosen_lengths, 1.0)
    rejected = (policy_rejected_logps - reference_rejected_logps) / jnp.maximum(rejected_lengths, 1.0)
    return jnp.square(chosen - rejected - 0.5 / beta)


@objective(
    formula="½(1 − σ(β(a − max(mean b, 0)))) + ½(1 − σ(β(max(mean a, 0) − b)))",
    reference="KTO: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7, on pairs as in TRL 0.8 and DiscoPOP",
)
def kto_pair(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Kahneman-Tversky optimisation on pairs, each side judged against the other side's KL.

    The original concatenates the two terms to 2·batch values; here a pair's are averaged, which
    has the same mean. As in that code, and unlike the KTO paper, the KL estimates carry gradient.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(kto_pair(pc, pr, rc, rr, 0.05), precision=4))
    [0.4992 0.5039]
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    chosen_kl = jax.nn.relu(jnp.mean(chosen))
    rejected_kl = jax.nn.relu(jnp.mean(rejected))
    chosen_loss = jax.nn.sigmoid(beta * (rejected_kl - chosen))
    rejected_loss = jax.nn.sigmoid(beta * (rejected - chosen_kl))
    return 0.5 * (chosen_loss + rejected_loss)


@objective(
    formula="e^−x",
    reference="exponential loss, in GPO: Tang et al. 2024, arXiv 2402.05749",
)
def exp(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """Exponential loss of the log-ratio margin, as in boosting.

    The exponent is clamped at 80, so that float32 holds the value; the gradient beyond is zero.

    >>> print(f"{exp(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.9876
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    return jnp.exp(jnp.minimum(-beta * log_ratio, 80.0))


@objective(
    formula="((1 − ε)·ℓ(x) − ε·ℓ(−x)) / (1 − 2ε), ε = label_smoothing",
    reference="robust DPO: Chowdhury et al. 2024, arXiv 2403.00409",
    ranges={"label_smoothing": "[0, 0.5)"},
)
def robust(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    label_smoothing=0.1,
):
    """DPO made unbiased for preference labels that are flipped with a known probability.

    >>> print(f"{robust(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.6854
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    clean = (1.0 - label_smoothing) * jax.nn.softplus(-x)
    flipped = label_smoothing * jax.nn.softplus(x)
    return (clean - flipped) / (1.0 - 2.0 * label_smoothing)
