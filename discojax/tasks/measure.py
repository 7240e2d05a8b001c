"""Measuring trained policies: sample, divergence from the reference, reward. All lanes in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from discojax.policies.divergence import Divergence, completion_divergence
from discojax.policies.sampling import Samples, sample

__all__ = ["Measurement", "Prompts", "Sampler", "SamplingConfig", "make_measure", "make_sampler"]


class Prompts(NamedTuple):
    """Prompts to complete, padded on the right, each at least one token long."""

    ids: Int[np.ndarray, "prompts time"]
    lengths: Int[np.ndarray, " prompts"]


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn: at most `tokens` tokens each, at `temperature`, up to `eos_id`."""

    tokens: int
    eos_id: int
    pad_id: int = 0
    temperature: float = 1.0


class Measurement(NamedTuple):
    """What one policy did with every prompt of a split.

    Attributes:
      reward: of the completion.
      kl: KL(policy || reference) of the sequence over completion tokens, nats.
      reverse_kl: KL(reference || policy) per completion token, nats.
      length: completion tokens, end-of-sequence included.
      completions: their texts.
    """

    reward: Float[np.ndarray, " prompts"]
    kl: Float[np.ndarray, " prompts"]
    reverse_kl: Float[np.ndarray, " prompts"]
    length: Int[np.ndarray, " prompts"]
    completions: list[str]


Sampler = Callable[[Any, Any, Any, Prompts, Any], tuple[Samples, Divergence]]


def make_sampler(
    graph: nnx.GraphDef, config: SamplingConfig, *, mesh: jax.sharding.Mesh, implementation: str
) -> Sampler:
    """Builds `(params, chosen, seeds, prompts, reference) -> samples, divergences`, jitted.

    Results are `[lanes, prompts, ...]`. Only lanes where `chosen` is true are worked on; the
    others' values mean nothing. A lane's randomness comes from its seed alone, so lanes of one seed
    are given the same draws (common random numbers) and their difference is sharper than either.
    """
    tokens = config.tokens

    def measure_lane(params, seed, prompts, reference):
        policy = nnx.merge(graph, params)
        samples = sample(
            policy,
            prompts.ids,
            prompts.lengths,
            jax.random.fold_in(jax.random.key(0x5A3), seed),
            tokens=tokens,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            temperature=config.temperature,
        )
        divergence = completion_divergence(
            policy,
            nnx.merge(graph, reference),
            samples.ids,
            prompts.lengths,
            samples.completion_lengths,
            tokens=tokens,
        )
        return samples, divergence

    def skip_lane(prompts):
        batch, width = prompts.ids.shape
        zeros = jnp.zeros(batch, jnp.float32)
        empty = Samples(jnp.zeros((batch, width + tokens), jnp.int32), jnp.zeros(batch, jnp.int32))
        return empty, Divergence(zeros, zeros)

    def mapped(params, chosen, seeds, prompts, reference):
        def lane(arguments):
            params, chosen, seed = arguments
            return jax.lax.cond(
                chosen, lambda: measure_lane(params, seed, prompts, reference), lambda: skip_lane(prompts)
            )

        return jax.lax.map(lane, (params, chosen, seeds))

    def vmapped(params, chosen, seeds, prompts, reference):
        del chosen  # all lanes at once: leaving some out would save nothing
        return jax.vmap(measure_lane, in_axes=(0, 0, None, None))(params, seeds, prompts, reference)

    lane, everywhere = jax.P("lane"), jax.P()
    # Each device samples for its own lanes, and stops when they have ended: no device asks another.
    body = jax.shard_map(
        mapped if implementation == "map" else vmapped,
        mesh=mesh,
        in_specs=(lane, lane, lane, everywhere, everywhere),
        out_specs=lane,
        check_vma=False,
    )
    return jax.jit(body, out_shardings=jax.NamedSharding(mesh, lane))


def make_measure(
    sampler: Sampler,
    prompts: Prompts,
    reference: Any,
    *,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    reward: Callable[[Sequence[str]], Float[np.ndarray, " texts"]],
    reward_sees_prompt: bool = True,
) -> Callable[[Any, Bool[np.ndarray, " lanes"], Int[np.ndarray, " lanes"]], list[Measurement]]:
    """Builds the measure that `population.training.train` calls.

    Args:
      sampler: see `make_sampler`.
      prompts: what to complete.
      reference: SFT weights, from which KL is measured.
      decode: token ids to texts, special tokens left out.
      reward: of texts.
      reward_sees_prompt: whether it reads prompt and completion, as the DiscoPOP paper's does, or
        the completion alone.
    """

    def measure(params: Any, chosen: Any, seeds: Any) -> list[Measurement]:
        samples, divergence = jax.tree.map(
            np.asarray, sampler(params, np.asarray(chosen), np.asarray(seeds), prompts, reference)
        )
        results = []
        for lane in np.flatnonzero(chosen):
            ids, lengths = samples.ids[lane], samples.completion_lengths[lane]
            ends = prompts.lengths + lengths
            completions = decode([row[a:b] for row, a, b in zip(ids, prompts.lengths, ends, strict=True)])
            texts = completions
            if reward_sees_prompt:
                texts = decode([row[:b] for row, b in zip(ids, ends, strict=True)])
            results.append(
                Measurement(
                    np.asarray(reward(texts), np.float32),
                    divergence.sequence[lane],
                    divergence.reverse_per_token[lane],
                    lengths,
                    completions,
                )
            )
        return results

    return measure
