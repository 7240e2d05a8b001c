"""Kullback-Leibler divergence between two policies along given completions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from discojax.policies.decoder import Decoder
from discojax.policies.logprobs import completion_hidden, completion_mask
from discojax.policies.soft_cap import soft_cap

__all__ = ["Divergence", "completion_divergence"]


class Divergence(NamedTuple):
    """Divergences of a policy from its reference on completions sampled from the policy, in nats.

    Attributes:
      sequence: KL(policy || reference), summed over completion tokens. Each token contributes its
        exact conditional divergence, so over samples of the policy this is an unbiased estimate of
        the divergence between the sequence distributions, never negative, and of lower variance
        than the difference of log-probabilities.
      reverse_per_token: KL(reference || policy), averaged over completion tokens: what the DiscoPOP
        paper reports (its code also counts the prompt, which this does not).
    """

    sequence: Float[Array, " batch"]
    reverse_per_token: Float[Array, " batch"]


def completion_divergence(
    policy: Decoder,
    reference: Decoder,
    ids: Int[Array, "batch time"],
    prompt_lengths: Int[Array, " batch"],
    completion_lengths: Int[Array, " batch"],
    *,
    tokens: int,
    block: int = 1024,
) -> Divergence:
    """Both divergences along completions; see `Divergence`. Logits are held for `block` tokens at a time."""
    mine, _ = completion_hidden(policy, ids, prompt_lengths, tokens)
    theirs, _ = completion_hidden(reference, ids, prompt_lengths, tokens)
    rows, width = mine.shape[0] * tokens, mine.shape[-1]
    block = min(block, rows)
    padding = -rows % block

    def blocks(hidden: Array) -> Array:
        return jnp.pad(hidden.reshape(rows, width), ((0, padding), (0, 0))).reshape(-1, block, width)

    def distribution(model: Decoder, hidden: Array) -> Array:
        logits = jnp.einsum("td,vd->tv", hidden, model.head, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(soft_cap(logits, model.config.logit_softcap))

    def one(pair):
        p, q = distribution(policy, pair[0]), distribution(reference, pair[1])
        return jnp.sum(jnp.exp(p) * (p - q), -1), jnp.sum(jnp.exp(q) * (q - p), -1)

    forward, reverse = jax.lax.map(one, (blocks(mine), blocks(theirs)))
    mask = completion_mask(completion_lengths, tokens)
    forward, reverse = (x.reshape(-1)[:rows].reshape(mask.shape) * mask for x in (forward, reverse))
    return Divergence(forward.sum(-1), reverse.sum(-1) / jnp.maximum(mask.sum(-1), 1.0))
