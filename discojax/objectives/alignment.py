"""The other losses of TRL's `DPOConfig.loss_type`, each as TRL defines it, value and gradient.

Written in the candidate language, as in `baselines`: float32 `[batch]` in, `[batch]` out.
`tests/objectives/trl_golden.py` compares them with TRL's own trainer.
"""

import jax
import jax.numpy as jnp

from discojax.objectives.registry import objective

__all__ = [
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "exo_pair",
    "nca_pair",
    "sft",
    "sigmoid_norm",
    "sppo_hard",
]


@objective(
    formula="σ(x)·log(σ(x)/(1 − ε)) + σ(−x)·log(σ(−x)/ε), ε = label_smoothing",
    reference="EXO: Ji et al. 2024, arXiv 2402.00856, eq. 16",
    ranges={"label_smoothing": "(0, 0.5)"},
)
def exo_pair(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    label_smoothing=0.001,
):
    """Efficient exact optimisation: reverse KL from the policy's preference to the smoothed label.

    >>> print(f"{exo_pair(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    2.7397
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    log_ratio = chosen - rejected
    x = beta * log_ratio
    agree = jax.nn.sigmoid(x) * (jax.nn.log_sigmoid(x) - jnp.log1p(-label_smoothing))
    disagree = jax.nn.sigmoid(-x) * (jax.nn.log_sigmoid(-x) - jnp.log(label_smoothing))
    return agree + disagree


@objective(
    formula="ℓ(βa) + ½ℓ(−βa) + ½ℓ(−βb)",
    reference="NCA: Chen et al. 2024, arXiv 2402.05369",
)
def nca_pair(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Noise contrastive alignment on pairs: keeps the chosen completion's likelihood from falling.

    >>> print(f"{nca_pair(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    1.3837
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.softplus(-chosen) + 0.5 * jax.nn.softplus(chosen) + 0.5 * jax.nn.softplus(rejected)


@objective(
    formula="ℓ(βa − δ) + ℓ(δ − βb), δ = delta",
    reference="BCO: Jung et al. 2024, arXiv 2404.04656; δ = 0 as in TRL's pair form",
    ranges={"delta": "(-inf, inf)"},
)
def bco_pair(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    delta=0.0,
):
    """Binary classifier optimisation on pairs: chosen rewards above a threshold, rejected below.

    In the paper the threshold `delta` is a running mean of rewards, without gradient; TRL's pair
    form has zero.

    >>> print(f"{bco_pair(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    1.3805
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps) - delta
    rejected = beta * (policy_rejected_logps - reference_rejected_logps) - delta
    return jax.nn.softplus(-chosen) + jax.nn.softplus(rejected)


@objective(
    formula="(a − 1/(2β))² + (b + 1/(2β))²",
    reference="SPPO: Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with win probabilities 1 and 0",
)
def sppo_hard(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Self-play preference optimisation with hard labels: each side has its own target.

    >>> print(f"{sppo_hard(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    196.5625
    """
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)


@objective(
    formula="(1 − ε)·ℓ(βδ) + ε·ℓ(−βδ), δ = sort(pc − pr) − sort(rc − rr), ε = label_smoothing",
    reference="AOT: Melnyk et al. 2024, arXiv 2406.05882",
    ranges={"label_smoothing": "[0, 0.5]"},
)
def aot(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    label_smoothing=0.0,
):
    """Alignment via optimal transport: the policy's margins dominate the reference's in distribution.

    Values come in the order of the sorted margins, not of the pairs.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -56.0], [-42.75, -56.5]])
    >>> print(jnp.array_str(aot(pc, pr, rc, rr, 0.05), precision=4))
    [0.6564 0.6746]
    """
    policy = jnp.sort(policy_chosen_logps - policy_rejected_logps)
    reference = jnp.sort(reference_chosen_logps - reference_rejected_logps)
    x = beta * (policy - reference)
    # l(-x) = l(x) + x
    return jax.nn.softplus(-x) + label_smoothing * x


@objective(
    formula="(1 − ε)·ℓ(βδ) + ε·ℓ(−βδ), δ = sort a − sort b, ε = label_smoothing",
    reference="AOT, unpaired: Melnyk et al. 2024, arXiv 2406.05882",
    ranges={"label_smoothing": "[0, 0.5]"},
)
def aot_unpaired(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    label_smoothing=0.0,
):
    """Alignment via optimal transport, unpaired: chosen log-ratios dominate rejected in distribution.

    Values come in sorted order, not in that of the pairs.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -55.5], [-42.0, -58.0], [-41.0, -56.0], [-42.75, -56.5]])
    >>> print(jnp.array_str(aot_unpaired(pc, pr, rc, rr, 0.05), precision=4))
    [0.6444 0.6869]
    """
    chosen = jnp.sort(policy_chosen_logps - reference_chosen_logps)
    rejected = jnp.sort(policy_rejected_logps - reference_rejected_logps)
    x = beta * (chosen - rejected)
    # l(-x) = l(x) + x
    return jax.nn.softplus(-x) + label_smoothing * x


@objective(
    formula="1 − σ(βa) + σ(βb)",
    reference="APO-zero: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
)
def apo_zero(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Anchored preference optimisation for chosen completions better than the model's own.

    >>> print(f"{apo_zero(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    0.9969
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


@objective(
    formula="σ(βa) + 1 − σ(x)",
    reference="APO-down: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8",
)
def apo_down(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    """Anchored preference optimisation for chosen completions worse than the model's own.

    >>> print(f"{apo_down(-40.0, -42.0, -41.0, -42.75, 0.05):.4f}")
    1.0094
    """
    chosen = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = beta * (policy_rejected_logps - reference_rejected_logps)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


@objective(
    formula="−pc / mean lc",
    reference="negative log-likelihood of the chosen completion, averaged over the batch's tokens as in TRL",
)
def sft(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
):
    """Supervised fine-tuning on the chosen completions; beta and the rejected ones have no part.

    The mean over pairs is the mean over the batch's completion tokens.

    >>> pc, pr, rc, rr = jnp.array([[-40.0, -50.0], [-42.0, -58.0], [-41.0, -57.0], [-42.75, -60.0]])
    >>> print(jnp.array_str(sft(pc, pr, rc, rr, 0.05, jnp.array([10.0, 15.0])), precision=4))
    [3.2 4. ]
    """
    return -policy_chosen_logps / jnp.maximum(jnp.mean(chosen_lengths), 1.0)


@objective(
    formula="ℓ(β(a/lc − b/lr))",
    reference="length-normalised DPO, Tülu 3: Lambert et al. 2024, arXiv 2411.15124; TRL's `sigmoid_norm`",
)
def sigmoid_norm(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
    rejected_lengths,
):
    """DPO over log-probabilities averaged over tokens; use a beta about a completion's length times DPO's.

    >>> print(f"{sigmoid_norm(-40.0, -42.0, -41.0, -42.75, 0.5, 10.0, 15.0):.4f}")
    0.6807
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / jnp.maximum(chosen_lengths, 1.0)
    rejected = (policy_rejected_logps - reference_rejected_logps) / jnp.maximum(rejected_lengths, 1.0)
    return jax.nn.softplus(-beta * (chosen - rejected))
