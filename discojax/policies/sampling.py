"""Sampling completions: a key-value cache, one compiled call for every prompt (and, mapped, every lane).

Prompts of unlike lengths are sampled in buckets (`length_buckets`): each is as wide as its longest
prompt, and stops when its own rows have ended.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from discojax.policies.decoder import Decoder
from discojax.policies.soft_cap import soft_cap

__all__ = ["Bucket", "Samples", "choose", "length_buckets", "likeliest", "sample"]


class Samples(NamedTuple):
    """Sampled completions.

    Attributes:
      ids: prompt, completion (with its end-of-sequence token, if it came to one), then padding.
      completion_lengths: tokens of each completion, end-of-sequence included.
    """

    ids: Int[Array, "batch time"]
    completion_lengths: Int[Array, " batch"]


class Bucket(NamedTuple):
    """Prompts of like lengths, sampled together.

    Attributes:
      ids: padded on the right, as wide as the bucket.
      lengths: tokens of each.
      rows: where each stands among all prompts.
    """

    ids: Int[Any, "bucket prompt"]
    lengths: Int[Any, " bucket"]
    rows: Int[Any, " bucket"]


class _Loop(NamedTuple):
    step: Int[Array, ""]
    ids: Int[Array, "batch time"]
    last: Float[Array, "batch width"]
    cache: Any
    lengths: Int[Array, " batch"]
    ended: Bool[Array, " batch"]


def choose(
    logits: Float[Array, "batch vocab"], uniforms: Float[Array, " batch"], temperature: float = 1.0
) -> Int[Array, " batch"]:
    """Draws a token a row by inverting the cumulative distribution at `uniforms` in [0, 1).

    One random number a row: cheaper than Gumbel noise over the vocabulary, and two policies given
    the same uniforms choose alike where they agree, which is what paired comparisons want. The
    inversion is in two levels, so nothing as long as the vocabulary is summed sequentially.
    Temperature 0 is greedy.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    batch, vocab = logits.shape
    side = math.isqrt(vocab - 1) + 1
    scaled = logits.astype(jnp.float32) / temperature
    weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, side * side - vocab))).reshape(batch, side, side)
    totals = weights.sum(axis=-1)
    ends = jnp.cumsum(totals, axis=-1)
    goal = uniforms[:, None] * ends[:, -1:]
    group = _first_past(ends, goal, totals)
    within = jnp.take_along_axis(weights, group[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(ends - totals, group[:, None], axis=1)
    offset = _first_past(before + jnp.cumsum(within, axis=-1), goal, within)
    return (group * side + offset).astype(jnp.int32)


def likeliest(
    logits: Float[Array, "batch vocab"], top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "batch vocab"]:
    """`logits` with all but each row's likeliest tokens at minus infinity.

    The `top_k` largest (0: all), and of these the fewest that together have `top_p` of what they all
    have, always at least one; a tie with the last that is kept is kept. In this order and of the
    tempered logits, as Transformers does it.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1.0:
        descending = -jnp.sort(-logits, axis=-1)
        mass = jax.nn.softmax(descending, axis=-1)
        needed = jnp.cumsum(mass, axis=-1) - mass < top_p  # what comes before does not suffice
        least = jnp.min(jnp.where(needed, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _first_past(
    ends: Float[Array, "batch side"], goal: Float[Array, "batch 1"], weights: Float[Array, "batch side"]
) -> Int[Array, " batch"]:
    """The first entry of any weight that ends past the goal; the last of any weight if rounding leaves none.

    Rounding may put an end a little before or after where it belongs. It then moves a boundary
    between tokens of some weight, but never chooses a token of none.
    """
    possible = weights > 0
    past = possible & (ends > goal)
    last = weights.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    return jnp.where(past.any(axis=-1), jnp.argmax(past, axis=-1), last)


def sample(
    policy: Decoder,
    prompt_ids: Int[Array, "batch prompt"],
    prompt_lengths: Int[Array, " batch"],
    key: PRNGKeyArray,
    *,
    tokens: int,
    eos_id: int,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rows: Int[Array, " batch"] | None = None,
    wanted: Bool[Array, ""] | None = None,
) -> Samples:
    """Samples one completion a prompt, of at most `tokens` tokens.

    Row `i` draws its randomness from `fold_in(key, rows[i])`, so a prompt's sample does not depend on
    which others are with it. Stops early once every row has ended.

    Args:
      policy: the language model.
      prompt_ids: prompts padded on the right.
      prompt_lengths: tokens of each prompt, at least 1.
      key: randomness.
      tokens: the longest completion (static).
      eos_id: ends a completion. It is part of it.
      pad_id: fills what follows.
      temperature: 0 is greedy.
      top_k, top_p: see `likeliest`; all tokens by default.
      rows: the row's number, by which it draws; its place in the batch by default.
      wanted: whether anybody wants these samples; if not, all are empty and nothing waits for them. Under
        `vmap` those that are wanted are then as soon done as without the others.

    Raises:
      UserError: prompt and completion are longer than the policy's `max_length`.
    """
    batch, prompt = prompt_ids.shape
    time = prompt + tokens
    policy.check_length(time)
    places = jnp.arange(batch)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(places if rows is None else rows)
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (tokens,)))(keys)

    hidden, cache = policy.prefill(prompt_ids, room=tokens)
    last = hidden[places, prompt_lengths - 1]
    inside = jnp.arange(prompt) < prompt_lengths[:, None]
    ids = jnp.pad(jnp.where(inside, prompt_ids, pad_id), ((0, 0), (0, tokens)), constant_values=pad_id)

    def next_token(last: Array, uniform: Array) -> Array:
        logits = jnp.einsum("bd,vd->bv", last, policy.head, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, policy.config.logit_softcap)
        if temperature == 0:
            return choose(logits, uniform, 0)
        return choose(likeliest(logits / temperature, top_k, top_p), uniform)

    def more(loop: _Loop) -> Array:
        return (loop.step < tokens) & ~jnp.all(loop.ended)

    def advance(loop: _Loop) -> _Loop:
        token = next_token(loop.last, uniforms[:, loop.step])
        positions = prompt_lengths + loop.step
        ids = loop.ids.at[places, positions].set(jnp.where(loop.ended, pad_id, token), unique_indices=True)
        lengths = loop.lengths + ~loop.ended
        ended = loop.ended | (token == eos_id)
        last, cache = policy.decode(token, loop.cache, jnp.minimum(positions, time - 1))
        return _Loop(loop.step + 1, ids, last, cache, lengths, ended)

    ended = jnp.zeros(batch, bool) if wanted is None else jnp.full(batch, ~wanted)
    start = _Loop(jnp.int32(0), ids, last, cache, jnp.zeros(batch, jnp.int32), ended)
    done = jax.lax.while_loop(more, advance, start)
    return Samples(done.ids, done.lengths)


def length_buckets(
    ids: Int[np.ndarray, "batch prompt"],
    lengths: Int[np.ndarray, " batch"],
    *,
    most: int = 4,
    multiple: int = 64,
) -> tuple[Bucket, ...]:
    """Prompts in at most `most` buckets of like lengths, those of a bucket as many as of any other.

    Widths are rounded up to a `multiple` (or to the longest prompt), so that other prompts of the same
    kind have buckets of the same shapes and compile nothing new, and so that nothing is divided where
    little would be saved: every bucket reads the weights anew for each token.

    Args:
      ids, lengths: prompts padded on the right, on the host.
    """
    ids, lengths = np.asarray(ids), np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths.max())
    buckets: dict[int, list[int]] = {}
    for part in np.array_split(order, most):
        if len(part):
            width = min(-(-int(lengths[part[-1]]) // multiple) * multiple, longest)
            buckets.setdefault(width, []).extend(part.tolist())
    rows = {width: np.sort(np.asarray(members, np.int32)) for width, members in buckets.items()}
    return tuple(Bucket(ids[members, :width], lengths[members], members) for width, members in rows.items())
