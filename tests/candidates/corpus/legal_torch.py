"""Legal candidates as a PyTorch user writes them: the form in which the DiscoPOP paper prints its own.

Where torch is installed each is also run as it stands, and must agree with the translation.
"""

# ruff: noqa: ARG001, ANN
# mypy: ignore-errors

import torch
import torch.nn.functional as F


def logistic_log_loss(
    self,
    policy_chosen_logps: torch.FloatTensor,
    policy_rejected_logps: torch.FloatTensor,
    reference_chosen_logps: torch.FloatTensor,
    reference_rejected_logps: torch.FloatTensor,
) -> torch.FloatTensor:
    pi_logratios = policy_chosen_logps - policy_rejected_logps
    ref_logratios = reference_chosen_logps - reference_rejected_logps
    logits = pi_logratios - ref_logratios
    losses = -F.logsigmoid(self.beta * logits)
    return losses


def hinge_loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    losses = torch.relu(1 - self.beta * logits)
    return losses


def ipo_loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    losses = (logits - 1 / (2 * self.beta)) ** 2
    return losses


def kto_pair_loss(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    chosen_kl = (policy_chosen_logps - reference_chosen_logps).mean().clamp(min=0)
    rejected_kl = (policy_rejected_logps - reference_rejected_logps).mean().clamp(min=0)
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    return 0.5 * (1 - torch.sigmoid(self.beta * (chosen_logratios - rejected_kl))) + 0.5 * (
        1 - torch.sigmoid(self.beta * (chosen_kl - rejected_logratios))
    )


def logistic_with_margin(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.709."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return -F.logsigmoid(self.beta * logits - 0.1)


def adaptive_margin(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.519."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    margin = logits.detach().mean()
    return F.relu(margin - self.beta * logits) + F.softplus(-self.beta * logits)


def logistic_hinge(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.738."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return -F.logsigmoid(self.beta * logits) + torch.clamp(1 - self.beta * logits, min=0)


def two_logistic_half_hinge(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.856."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return 2 * -F.logsigmoid(self.beta * logits) + 0.5 * F.relu(1 - self.beta * logits)


def annealed_mixture(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.669."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    weight = torch.sigmoid(-logits)
    return weight * F.relu(1 - self.beta * logits) + (1 - weight) * -F.logsigmoid(self.beta * logits)


def squared_logistic(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.601."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return torch.square(F.logsigmoid(self.beta * logits))


def focal(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.841."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    p = torch.sigmoid(logits)
    return torch.pow(1 - p, 2) * -F.logsigmoid(self.beta * logits)


def temperature_two(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.869."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return -F.logsigmoid(self.beta * logits / 2.0)


def smoothed_on_one_logit(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 6.425."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    smoothing = 0.1
    return -(1 - smoothing) * F.logsigmoid(self.beta * logits) - smoothing * F.logsigmoid(self.beta * logits)


def padll(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.941: performance adaptive decay logistic loss."""
    base_decay_rate = 0.9
    mismatch_penalty = 0.5
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    mismatches = (logits < 0).float()
    adaptive_decay = base_decay_rate * (1 - mismatches * mismatch_penalty)
    return adaptive_decay * -F.logsigmoid(self.beta * logits)


def padll_with_margin(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.613."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    mismatches = (logits < 0.2).float()
    return 0.9 * (1 - mismatches * 0.5) * -F.logsigmoid(self.beta * logits)


def reinforced_margin(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.525."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    margin = torch.where(logits > 0, torch.full_like(logits, 0.1), torch.full_like(logits, -0.1))
    return -F.logsigmoid(self.beta * logits - margin)


def certainty_scaled(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's run, 7.331."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    certainty = torch.abs(torch.sigmoid(self.beta * logits) - 0.5) * 2
    return -F.logsigmoid(self.beta * logits) * (1 + certainty)


def dbaql(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's DBAQL: dynamic blended adaptive quantile loss."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    logits_variance = logits.var()
    adaptive_blend = torch.sigmoid(logits_variance)
    logistic = -F.logsigmoid(self.beta * logits / 0.9)
    exponential = torch.exp(-self.beta * logits * 0.9)
    return adaptive_blend * logistic + (1 - adaptive_blend) * exponential


def aqfl(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's AQFL: adaptive quantile feedback loss."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    dynamic_quantile = logits.std() * torch.sigmoid(-logits).mean()
    mean_signal = torch.sigmoid(logits.mean())
    dynamic_quantile = dynamic_quantile + 0.05 * (mean_signal - dynamic_quantile)
    distance = torch.abs(logits - dynamic_quantile)
    blend = torch.sigmoid(0.1 * distance)
    return blend * -F.logsigmoid(self.beta * logits) + (1 - blend) * torch.relu(1 - self.beta * logits)


def lrml(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """DiscoPOP as released; its exponential overflows only beyond the realistic range."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    logits = logits * self.beta
    log_ratio_modulation = torch.sigmoid(logits / 0.05)
    logistic_component = -F.logsigmoid(logits)
    exp_component = torch.exp(-logits)
    losses = logistic_component * (1 - log_ratio_modulation) + exp_component * log_ratio_modulation
    return losses


def pfl(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The paper's PFL: policy focused loss."""
    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    focus = policy_chosen_logps > policy_rejected_logps
    return torch.where(focus, 0.5 * F.softplus(-self.beta * logits), 2.0 * F.relu(1 - self.beta * logits))


def sums_and_means(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    import torch.nn.functional as F

    logits = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    centred = logits - logits.mean(dim=0, keepdim=True)
    scale = torch.sqrt(torch.mean(centred.pow(2)) + 1.0)
    return F.softplus(-beta * logits) + F.leaky_relu(-centred / scale, 0.1) * 0.01


def activations(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    return F.silu(-x) + F.gelu(1 - x) + F.elu(1 - x) + F.hardtanh(-x) + F.softplus(-x, beta=2) + F.mish(-x) - F.softsign(x)


def tensor_methods(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = (policy_chosen_logps.sub(reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)).mul(beta)
    y = x.sigmoid().clamp(min=1e-6, max=1 - 1e-6)
    return -y.log() + x.abs().neg().exp() - x.tanh() + torch.max(x.neg(), torch.zeros_like(x)) + x.masked_fill(x > 0, 0.0).square()


def quantiles(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    x = beta * ((policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps))
    high = torch.quantile(x.detach(), 0.9)
    return torch.where(x < high, 1.5, 1.0) * F.softplus(-x) * torch.ones_like(x)
