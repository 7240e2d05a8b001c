"""Preference pairs sampled from a policy and labelled by a reward: what preference training starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy.special import expit

from discojax.data.pairs import Dropped, Pairs, make_pairs
from discojax.errors import UserError
from discojax.policies.sampling import sample
from discojax.tasks.types import Prompts, Reward, SamplingConfig, read

__all__ = ["sample_completions", "sample_pairs"]

_ROWS = 256


def sample_pairs(
    graph: nnx.GraphDef,
    params: Any,
    prompts: Prompts,
    *,
    config: SamplingConfig,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    logit: Reward,
    seed: int,
    completions: int = 2,
    label_temperature: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Pairs, Dropped]:
    """Pairs of completions, the preferred one drawn by Bradley and Terry's model.

    Of `completions` samples a prompt the two whose rewards lie furthest apart make the pair. The
    probability that the first is preferred is `sigmoid((logit(first) - logit(second)) /
    label_temperature)`, where the logit is the labelling reward's.

    Returns:
      The pairs (no reference log-probabilities yet), and an account of those dropped.
    """
    if completions < 2:
        raise UserError(f"A pair takes two: task.completions must be at least 2, not {completions}.")
    run = _sampler(graph, config)
    total = completions * len(prompts.lengths)
    sampled, logits = [], []
    for number in range(completions):

        def so_far(done: int, _: int, before: int = number * len(prompts.lengths)) -> None:
            progress(before + done, total)

        ids, lengths = _sample_all(run, params, prompts, seed * completions + number, so_far)
        logits.append(logit(*read(decode, ids, prompts.lengths, lengths)))
        rows = zip(ids, prompts.lengths, lengths, strict=True)
        sampled.append([row[n : n + m].tolist() for row, n, m in rows])

    scores = np.asarray(logits, np.float64)
    high, low = scores.argmax(0), scores.argmin(0)
    gap = scores.max(0) - scores.min(0)
    swapped = np.random.default_rng(seed).random(len(gap)) > expit(gap / label_temperature)
    chosen, rejected = np.where(swapped, low, high), np.where(swapped, high, low)
    return make_pairs(
        [row[:n].tolist() for row, n in zip(prompts.ids, prompts.lengths, strict=True)],
        [sampled[which][row] for row, which in enumerate(chosen)],
        [sampled[which][row] for row, which in enumerate(rejected)],
        max_length=prompts.ids.shape[1] + config.tokens,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        append_eos=False,
        max_completion=config.tokens,
    )


def sample_completions(
    graph: nnx.GraphDef,
    params: Any,
    prompts: Prompts,
    *,
    config: SamplingConfig,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """One completion of each prompt, in words."""
    ids, lengths = _sample_all(_sampler(graph, config), params, prompts, seed, progress)
    return read(decode, ids, prompts.lengths, lengths)[1]


def _sampler(graph: nnx.GraphDef, config: SamplingConfig):
    @jax.jit
    def run(params, ids, lengths, key):
        return sample(
            nnx.merge(graph, params),
            ids,
            lengths,
            key,
            tokens=config.tokens,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    return run


def _sample_all(run, params: Any, prompts: Prompts, seed: int, progress: Callable[[int, int], None]):
    count = len(prompts.lengths)
    ids, lengths = [], []
    for part, start in enumerate(range(0, count, _ROWS)):
        rows = np.minimum(np.arange(start, start + _ROWS), count - 1)  # one shape, one compilation
        key = jax.random.fold_in(jax.random.key(seed), part)
        samples = run(params, prompts.ids[rows], prompts.lengths[rows], key)
        ids.append(np.asarray(samples.ids))
        lengths.append(np.asarray(samples.completion_lengths))
        progress(min(start + _ROWS, count), count)
    return np.concatenate(ids)[:count], np.concatenate(lengths)[:count]
