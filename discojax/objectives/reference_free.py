"""Losses that need no reference model: its log-probabilities are arguments they ignore.

Written in the candidate language, as in `baselines`: float32 `[batch]` in, `[batch]` out.
"""

import jax
import jax.numpy as jnp

from discojax.objectives.registry import objective

__all__ = ["cpo", "cpo_avg", "orpo", "simpo"]


@objective(
    formula="ℓ(β(pc/lc − pr/lr) − γ), γ = gamma",
    reference="SimPO: Meng et al. 2024, arXiv 2405.14734, eq. 6",
    ranges={"gamma": "[0, inf)"},
)
def simpo(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
    rejected_lengths,
    *,
    gamma=0.5,
):
    """Simple preference optimisation: mean log-probability as the reward, with a target margin.

    The paper runs it at beta 2 to 10, since rewards are per token.

    >>> print(f"{simpo(-40.0, -42.0, -41.0, -42.75, 2.0, 20.0, 20.0):.4f}")
    0.8544
    """
    chosen = policy_chosen_logps / jnp.maximum(chosen_lengths, 1.0)
    rejected = policy_rejected_logps / jnp.maximum(rejected_lengths, 1.0)
    return jax.nn.softplus(gamma - beta * (chosen - rejected))


@objective(
    formula="−mc + β·ℓ(log(odds(mc)/odds(mr))), mc = pc/lc, mr = pr/lr, odds(m) = e^m / (1 − e^m)",
    reference="ORPO: Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7; β is the paper's λ",
)
def orpo(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
    rejected_lengths,
):
    """Odds ratio preference optimisation: likelihood of the chosen plus beta times the log odds' loss.

    A mean log-probability above -1e-7 counts as that in the odds, which are infinite at zero.

    >>> print(f"{orpo(-40.0, -42.0, -41.0, -42.75, 0.1, 20.0, 20.0):.4f}")
    2.0637
    """
    chosen = policy_chosen_logps / jnp.maximum(chosen_lengths, 1.0)
    rejected = policy_rejected_logps / jnp.maximum(rejected_lengths, 1.0)
    chosen_capped = jnp.minimum(chosen, -1e-7)
    rejected_capped = jnp.minimum(rejected, -1e-7)
    chosen_log_odds = chosen_capped - jnp.log(-jnp.expm1(chosen_capped))
    rejected_log_odds = rejected_capped - jnp.log(-jnp.expm1(rejected_capped))
    return beta * jax.nn.softplus(rejected_log_odds - chosen_log_odds) - chosen


@objective(
    formula="ℓ(β(pc − pr)) − α·pc, α = alpha",
    reference="CPO: Xu et al. 2024, arXiv 2401.08417",
    ranges={"alpha": "[0, inf)"},
)
def cpo(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    *,
    alpha=1.0,
):
    """Contrastive preference optimisation: DPO without reference plus the chosen's likelihood.

    As the paper writes it: the likelihood is the sequence's. The authors' code averages that term
    over tokens: `cpo_avg`.

    >>> print(f"{cpo(-40.0, -42.0, -41.0, -42.75, 0.1):.4f}")
    40.5981
    """
    margin = policy_chosen_logps - policy_rejected_logps
    return jax.nn.softplus(-beta * margin) - alpha * policy_chosen_logps


@objective(
    formula="ℓ(β(pc − pr)) − α·pc/lc, α = alpha",
    reference="CPO as its authors released it: Xu et al. 2024, arXiv 2401.08417",
    ranges={"alpha": "[0, inf)"},
)
def cpo_avg(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps,
    reference_rejected_logps,
    beta,
    chosen_lengths,
    *,
    alpha=1.0,
):
    """Contrastive preference optimisation with the likelihood term averaged over tokens.

    >>> print(f"{cpo_avg(-40.0, -42.0, -41.0, -42.75, 0.1, 20.0):.4f}")
    2.5981
    """
    margin = policy_chosen_logps - policy_rejected_logps
    return jax.nn.softplus(-beta * margin) - alpha * policy_chosen_logps / jnp.maximum(chosen_lengths, 1.0)
