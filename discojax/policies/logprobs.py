"""Log-probabilities of completions, without ever holding logits for every token.

One operator serves training, the reference and evaluation: log-probabilities of given tokens from
hidden states and the head. It works in blocks of tokens, in float32, and keeps for its gradient
only the log-sum-exp of each token; the logits of a block are made again on the way back.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from discojax.policies.decoder import Decoder
from discojax.policies.dense import weight_gradient
from discojax.policies.sharding import batch_over_model, model_size
from discojax.policies.soft_cap import soft_cap, soft_cap_slope

__all__ = ["completion_hidden", "completion_logps", "completion_mask", "pair_logps", "token_logps"]


def token_logps(
    hidden: Float[Array, "tokens width"],
    head: Float[Array, "vocab width"],
    targets: Int[Array, " tokens"],
    *,
    block: int = 1024,
    softcap: float | None = None,
) -> Float[Array, " tokens"]:
    """Log-probability of each target, in nats, float32 whatever the dtype of its inputs.

    Equal to `log_softmax(soft_cap(hidden @ head.T))[arange(tokens), targets]`, value and gradient, with
    temporary memory of `block * vocab` values. Safe under `vmap`, and with a tied embedding as the
    head, since both inputs are arguments and get their own gradient.

    Args:
      hidden: final hidden states; the one that predicts the target of the same row.
      head: output matrix.
      targets: token ids, in `[0, vocab)`.
      block: tokens whose logits a device holds at a time.
      softcap: see `policies.soft_cap`.
    """
    tokens = hidden.shape[0]
    # Spread over `model`, a device does its share of every block: the more to a block, the more seldom
    # the head is gathered and its gradient added up.
    spread = model_size()
    block = min(block * spread, -(-tokens // spread) * spread)
    padding = -tokens % block
    if padding:
        hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
        targets = jnp.pad(targets, (0, padding))
    blocked = hidden.reshape(-1, block, hidden.shape[-1])
    blocked = batch_over_model(blocked, axis=1)
    return _blocked_logps(softcap, blocked, head, targets.reshape(-1, block)).reshape(-1)[:tokens]


def _logits(hidden: Array, head: Array) -> Array:
    return jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)


def _chosen(hidden: Array, head: Array, targets: Array, softcap: float | None) -> Array:
    """The targets' own logits, float32."""
    rows = head[targets].astype(jnp.float32)
    return soft_cap(jnp.sum(hidden.astype(jnp.float32) * rows, axis=-1), softcap)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked_logps(softcap: float | None, hidden: Array, head: Array, targets: Array) -> Array:
    return _forward(softcap, hidden, head, targets)[0]


def _forward(softcap: float | None, hidden: Array, head: Array, targets: Array):
    def one(block):
        h, t = block
        logits = soft_cap(_logits(h, head), softcap)
        top = jnp.max(logits, axis=-1)
        powers = jnp.exp(logits - top[:, None])
        total = jnp.sum(powers, axis=-1)
        normaliser = top + jnp.log(total)
        return _chosen(h, head, t, softcap) - normaliser, normaliser, powers, total

    if hidden.shape[0] == 1 and softcap is None:
        # All of it is held once anyway: kept from here on, it is not made again on the way back.
        logps, _, powers, total = one((hidden[0], targets[0]))
        return logps[None], (hidden, head, targets, (powers, total))
    logps, normalisers = jax.lax.map(lambda block: one(block)[:2], (hidden, targets))
    return logps, (hidden, head, targets, normalisers)


def _backward(softcap: float | None, saved, cotangents: Array):
    hidden, head, targets, kept = saved

    def spread(h, powers, scale):
        """What `scale` times the powers' row sums is to hidden states and, transposed, to the head."""
        powers = powers.astype(h.dtype)
        d_hidden = jnp.einsum("tv,vd->td", powers, head, preferred_element_type=jnp.float32) * scale
        return d_hidden, weight_gradient(powers, (h * scale).astype(h.dtype), jnp.float32)

    def one(d_head, block):
        h, normaliser, cotangent = block
        logits = soft_cap(_logits(h, head), softcap)
        powers = jnp.exp(logits - normaliser[:, None])
        powers = powers * soft_cap_slope(logits, softcap)
        d_hidden, more = spread(h, powers, -cotangent[:, None])
        return d_head + more, d_hidden

    if isinstance(kept, tuple):
        powers, total = kept
        d_hidden, d_head = spread(hidden[0], powers, -(cotangents[0] / total)[:, None])
        d_hidden = d_hidden[None]
    else:
        zeros = jnp.zeros(head.shape, jnp.float32)
        d_head, d_hidden = jax.lax.scan(one, zeros, (hidden, kept, cotangents))

    # The targets' own part, a row each: over the vocabulary it would be mostly zeros.
    own = cotangents * soft_cap_slope(_chosen(hidden, head, targets, softcap), softcap)
    own = own[..., None]
    d_hidden = d_hidden + own * head[targets].astype(jnp.float32)
    d_head = d_head.at[targets].add(own * hidden.astype(jnp.float32))
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None


_blocked_logps.defvjp(_forward, _backward)


def completion_mask(lengths: Int[Array, " batch"], tokens: int) -> Float[Array, "batch tokens"]:
    """1.0 for the first `lengths` of `tokens` completion positions, from lengths, never from ids."""
    return (jnp.arange(tokens) < lengths[:, None]).astype(jnp.float32)


def completion_hidden(
    policy: Decoder,
    ids: Int[Array, "batch time"],
    prompt_lengths: Int[Array, " batch"],
    tokens: int,
) -> tuple[Float[Array, "batch tokens width"], Int[Array, "batch tokens"]]:
    """Hidden states that predict the completion's first `tokens` tokens, and those tokens.

    The token at position `t` is predicted by the hidden state at `t - 1`: the first completion
    token by the prompt's last. Positions past the end repeat the last one and must be masked.
    """
    time = ids.shape[1]
    positions = prompt_lengths[:, None] + jnp.arange(tokens)
    positions = jnp.minimum(positions, time - 1)
    hidden = policy.hidden(ids[:, :-1])  # the last token predicts none
    predicting = jnp.take_along_axis(hidden, (positions - 1)[:, :, None], axis=1)
    return predicting, jnp.take_along_axis(ids, positions, axis=1)


@partial(jax.named_call, name="completion_logps")
def completion_logps(
    policy: Decoder,
    ids: Int[Array, "batch time"],
    prompt_lengths: Int[Array, " batch"],
    completion_lengths: Int[Array, " batch"],
    *,
    tokens: int,
    block: int = 1024,
) -> Float[Array, " batch"]:
    """Log-probability of each completion given its prompt, summed over its tokens, float32 nats.

    Args:
      policy: the language model.
      ids: prompt then completion then any padding.
      prompt_lengths: tokens of the prompt.
      completion_lengths: tokens of the completion, its end-of-sequence token included.
      tokens: the longest completion (static).
      block: see `token_logps`.
    """
    hidden, targets = completion_hidden(policy, ids, prompt_lengths, tokens)
    flat = hidden.reshape(-1, hidden.shape[-1])
    logps = token_logps(
        flat, policy.head, targets.reshape(-1), block=block, softcap=policy.config.logit_softcap
    ).reshape(targets.shape)
    return jnp.sum(logps * completion_mask(completion_lengths, tokens), axis=-1)


@partial(jax.named_call, name="pair_logps")
def pair_logps(
    policy: Decoder,
    chosen_ids: Int[Array, "batch time"],
    rejected_ids: Int[Array, "batch time"],
    prompt_lengths: Int[Array, " batch"],
    chosen_lengths: Int[Array, " batch"],
    rejected_lengths: Int[Array, " batch"],
    *,
    tokens: int,
    prompts: int | None = None,
    block: int = 1024,
) -> Float[Array, "2 batch"]:
    """`completion_logps` of the chosen and of the rejected completions, which share their prompts.

    A prompt is read once for both where that is fewer tokens ("prefix sharing", Wang & Hegde 2024,
    "Accelerating Direct Preference Optimization with Prefix Sharing", section 3).

    Args:
      policy: the language model.
      chosen_ids, rejected_ids: the prompt, then a completion, then any padding.
      prompt_lengths, chosen_lengths, rejected_lengths: in tokens.
      tokens: the longest completion (static).
      prompts: the longest prompt (static); by default it may be all of `time` but a token.
      block: see `token_logps`.
    """
    batch, time = chosen_ids.shape
    prompts = time - 1 if prompts is None else min(prompts, time - 1)
    lengths = jnp.stack([chosen_lengths, rejected_lengths])
    if not _worth_sharing(batch, time, prompts, tokens):
        ids = jnp.concatenate([chosen_ids, rejected_ids])
        twice = jnp.concatenate([prompt_lengths] * 2)
        logps = completion_logps(policy, ids, twice, lengths.reshape(-1), tokens=tokens, block=block)
        return logps.reshape(2, batch)
    policy.check_length(time - 1)
    positions = jnp.minimum(prompt_lengths[:, None] + jnp.arange(tokens), time - 1)
    sides = (jnp.take_along_axis(ids, positions, axis=1) for ids in (chosen_ids, rejected_ids))
    targets = jnp.stack(list(sides), axis=1)
    read, continued = policy.branches(chosen_ids[:, :prompts], targets[:, :, :-1], prompt_lengths)
    last = jnp.take_along_axis(read, (prompt_lengths - 1)[:, None, None], axis=1)
    hidden = jnp.concatenate([jnp.stack([last, last], axis=1), continued], axis=2)
    flat = hidden.reshape(-1, hidden.shape[-1])
    softcap = policy.config.logit_softcap
    logps = token_logps(flat, policy.head, targets.reshape(-1), block=block, softcap=softcap)
    mask = completion_mask(lengths.T.reshape(-1), tokens)
    return jnp.sum(logps.reshape(-1, tokens) * mask, axis=-1).reshape(batch, 2).T


def _worth_sharing(batch: int, time: int, prompts: int, tokens: int) -> bool:
    """Whether a row for a pair is fewer tokens than a row for each completion, and spread as well."""
    spread = model_size()
    return prompts + 2 * (tokens - 1) < 2 * (time - 1) and (batch % spread == 0 or 2 * batch % spread != 0)
