"""Measuring trained policies: sample, divergence from the reference, reward. All lanes in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from discojax.data.pairs import Pairs
from discojax.policies.architecture import DecoderConfig
from discojax.policies.divergence import Divergence, completion_divergence
from discojax.policies.logprobs import completion_logps
from discojax.policies.sampling import Bucket, Samples, sample
from discojax.population.mesh import manual_axes
from discojax.population.step import cast
from discojax.tasks.types import Prompts, Reward, SamplingConfig, read

__all__ = [
    "Margins",
    "Measurement",
    "Observed",
    "Sampler",
    "make_judge",
    "make_margins",
    "make_observe",
    "make_sampler",
]


class Measurement(NamedTuple):
    """What one policy did with every prompt of a split.

    Attributes:
      reward: of the completion.
      kl: KL(policy || reference) of the sequence over completion tokens, nats.
      reverse_kl: KL(reference || policy) per completion token, nats.
      length: completion tokens, end-of-sequence included.
      completions: their texts.
      margin: the log-ratio margin of every held-out pair, nats, if there are such pairs.
    """

    reward: Float[np.ndarray, " prompts"]
    kl: Float[np.ndarray, " prompts"]
    reverse_kl: Float[np.ndarray, " prompts"]
    length: Int[np.ndarray, " prompts"]
    completions: list[str]
    margin: Float[np.ndarray, " pairs"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays that an archive can keep; `completions` as `completion`, of text."""
        kept = {name: np.asarray(x) for name, x in self._asdict().items() if x is not None}
        return {name.replace("completions", "completion"): x for name, x in kept.items()}


Sampler = Callable[[Any, Any, Any, Any, Sequence[Bucket], Any], tuple[Samples, Divergence]]


_MOST = 2**30  # bytes of caches and logits that a device holds at a time, by this count


def _row_bytes(config: DecoderConfig, time: int, itemsize: int) -> int:
    """Bytes of a row's keys, values and logits: what sampling holds of it grows with them."""
    return 2 * config.layers * config.key_heads * config.head_size * time * itemsize + 4 * config.vocab_size


def make_sampler(
    graph: nnx.GraphDef,
    config: SamplingConfig,
    *,
    mesh: jax.sharding.Mesh,
    implementation: str,
    dtype: str = "float32",
    most: int = _MOST,
) -> Sampler:
    """Builds `(params, frozen, chosen, seeds, buckets, reference) -> samples, divergences`, jitted.

    A lane's policy is `nnx.merge(graph, params, frozen)`, with `params` its own and `frozen` shared;
    the reference is of the same frozen weights. Policies compute in `dtype`.

    Results are `[lanes, prompts, ...]`. Only lanes where `chosen` is true are worked on; the
    others' values mean nothing. A lane's randomness comes from its seed alone, so lanes of one seed
    are given the same draws (common random numbers) and their difference is sharper than either. Into
    which buckets prompts are put (`policies.sampling.length_buckets`) changes no completion, and nor
    does how many of a bucket are measured at a time: as many as keep caches and logits of all lanes that
    a device works on at once within `most` bytes, each part stopping when its own have ended.
    """
    tokens = config.tokens
    itemsize = jnp.dtype(dtype).itemsize

    def measure_rows(policy, reference, key, wanted, rows: Bucket, block: int):
        samples = sample(
            policy,
            rows.ids,
            rows.lengths,
            key,
            tokens=tokens,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            rows=rows.rows,
            wanted=wanted,
        )
        divergence = completion_divergence(
            policy,
            reference,
            samples.ids,
            rows.lengths,
            samples.completion_lengths,
            tokens=tokens,
            block=block,
        )
        return samples, divergence

    def measure_bucket(policy, reference, key, wanted, bucket: Bucket, lanes: int):
        count, prompt = bucket.ids.shape
        one = lanes * _row_bytes(policy.config, prompt + tokens, itemsize)
        parts = -(-count // max(most // one, 1))
        # A token's logits, and as many of the reference: those of a block are held besides.
        block = max(min(most // (8 * policy.config.vocab_size * lanes), 1024), 8)
        if parts == 1:
            return measure_rows(policy, reference, key, wanted, bucket, block)
        size = -(-count // parts)  # alike, so that few are measured twice to fill the last one
        slices = jax.tree.map(
            lambda x: jnp.pad(
                x, ((0, -(-count // size) * size - count), *((0, 0),) * (x.ndim - 1)), mode="edge"
            ).reshape(-1, size, *x.shape[1:]),
            bucket,
        )
        found = jax.lax.map(lambda rows: measure_rows(policy, reference, key, wanted, rows, block), slices)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

    def measure_lane(params, frozen, wanted, seed, buckets, reference, lanes):
        policy, reference = (nnx.merge(graph, cast(x, dtype), frozen) for x in (params, reference))
        key = jax.random.fold_in(jax.random.key(0x5A3), seed)
        parts = [measure_bucket(policy, reference, key, wanted, bucket, lanes) for bucket in buckets]
        place = jnp.argsort(jnp.concatenate([bucket.rows for bucket in buckets]))
        width = max(bucket.ids.shape[1] for bucket in buckets) + tokens

        def widen(ids):
            return jnp.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=config.pad_id)

        wide = [(samples._replace(ids=widen(samples.ids)), divergence) for samples, divergence in parts]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[place], *wide)

    def skip_lane(buckets):
        batch = sum(len(bucket.rows) for bucket in buckets)
        width = max(bucket.ids.shape[1] for bucket in buckets)
        zeros = jnp.zeros(batch, jnp.float32)
        empty = Samples(jnp.zeros((batch, width + tokens), jnp.int32), jnp.zeros(batch, jnp.int32))
        return empty, Divergence(zeros, zeros)

    def mapped(params, frozen, chosen, seeds, buckets, reference):
        def lane(arguments):
            params, chosen, seed = arguments
            return jax.lax.cond(
                chosen,
                lambda: measure_lane(params, frozen, None, seed, buckets, reference, 1),
                lambda: skip_lane(buckets),
            )

        return jax.lax.map(lane, (params, chosen, seeds))

    def vmapped(params, frozen, chosen, seeds, buckets, reference):
        # All lanes at once: leaving some out saves no work, but no one need wait for their last tokens.
        every = jax.vmap(partial(measure_lane, lanes=len(seeds)), in_axes=(0, None, 0, 0, None, None))
        return every(params, frozen, chosen, seeds, buckets, reference)

    lane, everywhere = jax.P("lane"), jax.P()
    # Each device samples for its own lanes, and stops when they have ended: no device asks another.
    body = jax.shard_map(
        mapped if implementation == "map" else vmapped,
        mesh=mesh,
        in_specs=(lane, everywhere, lane, lane, everywhere, everywhere),
        out_specs=lane,
        axis_names=manual_axes(mesh),
        check_vma=False,
    )
    return jax.jit(body, out_shardings=jax.NamedSharding(mesh, lane))


Margins = Callable[[Any, Any, Any, Pairs], Float[Any, "lanes pairs"]]

_PAIRS = 32  # whose activations are held at a time, at most


def make_margins(
    graph: nnx.GraphDef,
    *,
    tokens: int,
    mesh: jax.sharding.Mesh,
    implementation: str,
    dtype: str = "float32",
    most: int = _MOST,
) -> Margins:
    """Builds `(params, frozen, chosen, pairs) -> margins`, jitted: the log-ratio margins `[lanes, pairs]`.

    The margin is (policy - reference) of the chosen minus that of the rejected completion, in nats,
    as in training: a policy that is its reference has 0 everywhere. Only lanes where `chosen` is
    true are worked on; the others' values mean nothing. As many pairs are read at a time as keep the
    logits of all lanes that a device works on at once within `most` bytes; it changes no margin.
    """

    def of_lane(params, frozen, pairs, lanes):
        policy = nnx.merge(graph, cast(params, dtype), frozen)
        logits = 12 * policy.config.vocab_size * tokens * lanes  # of a pair, and two more like them
        at_once = max(min(_PAIRS, most // logits, len(pairs.prompt_length)), 1)

        def logps(ids, prompts, lengths):
            one = (ids[None], prompts[None], lengths[None])
            return completion_logps(policy, *one, tokens=tokens)[0]

        def of_pair(pair):
            chosen = logps(pair.chosen_ids, pair.prompt_length, pair.chosen_length)
            rejected = logps(pair.rejected_ids, pair.prompt_length, pair.rejected_length)
            return (chosen - pair.reference_chosen) - (rejected - pair.reference_rejected)

        return jax.lax.map(of_pair, pairs, batch_size=at_once)

    def lanes(params, frozen, chosen, pairs):
        if implementation != "map":
            every = jax.vmap(partial(of_lane, lanes=len(chosen)), in_axes=(0, None, None))
            return every(params, frozen, pairs)

        def lane(arguments):
            params, chosen = arguments
            nothing = jnp.zeros(len(pairs.prompt_length), jnp.float32)
            return jax.lax.cond(chosen, lambda: of_lane(params, frozen, pairs, 1), lambda: nothing)

        return jax.lax.map(lane, (params, chosen))

    axis, everywhere = jax.P("lane"), jax.P()
    body = jax.shard_map(
        lanes,
        mesh=mesh,
        in_specs=(axis, everywhere, axis, everywhere),
        out_specs=axis,
        axis_names=manual_axes(mesh),
        check_vma=False,
    )
    return jax.jit(body, out_shardings=jax.NamedSharding(mesh, axis))


class Observed(NamedTuple):
    """What a device tells of all lanes, before anyone reads it."""

    samples: Samples
    divergence: Divergence
    margin: Float[Any, "lanes pairs"] | None


def make_observe(
    sampler: Sampler,
    buckets: Sequence[Bucket],
    reference: Any,
    *,
    frozen: Any = None,
    margins: Margins | None = None,
    held_out: Pairs | None = None,
) -> Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], Observed]:
    """Builds the device's part of measuring: `observe` of a `population.operations.Station`.

    Args:
      sampler: see `make_sampler`.
      buckets: of the prompts to complete.
      reference: SFT weights, those that train, from which KL is measured.
      frozen: the weights that all lanes share, in the dtype that policies compute in; None where
        all train.
      margins: see `make_margins`; without it, or without pairs, no margin is measured.
      held_out: pairs, with reference log-probabilities, that no policy was trained on.
    """
    frozen = nnx.State({}) if frozen is None else frozen

    def observe(params: Any, chosen: Any, seeds: Any) -> Observed:
        samples, divergence = sampler(params, frozen, chosen, seeds, buckets, reference)
        margin = None
        if margins is not None and held_out is not None:
            margin = margins(params, frozen, chosen, held_out)
        return Observed(samples, divergence, margin)

    return observe


def make_judge(
    prompts: Prompts, *, decode: Callable[[Sequence[Sequence[int]]], list[str]], reward: Reward
) -> Callable[[Observed, Bool[np.ndarray, " lanes"]], list[Measurement]]:
    """Builds the host's part of measuring: `judge` of a `population.operations.Station`.

    Args:
      prompts: those that `observe` completed.
      decode: token ids to texts, special tokens left out.
      reward: of prompts and completions.
    """

    def judge(observed: Observed, chosen: Bool[np.ndarray, " lanes"]) -> list[Measurement]:
        samples, divergence, margin = jax.tree.map(np.asarray, observed)
        results = []
        for lane in np.flatnonzero(chosen):
            ids, lengths = samples.ids[lane], samples.completion_lengths[lane]
            given, completions = read(decode, ids, prompts.lengths, lengths)
            results.append(
                Measurement(
                    np.asarray(reward(given, completions), np.float32),
                    divergence.sequence[lane],
                    divergence.reverse_per_token[lane],
                    lengths,
                    completions,
                    None if margin is None else margin[lane],
                )
            )
        return results

    return judge
