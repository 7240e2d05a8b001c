"""Preference pairs sampled from a policy and labelled by a reward: what preference training starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from discojax.data.pairs import Dropped, Pairs, make_pairs
from discojax.policies.sampling import sample
from discojax.tasks.measure import Prompts, SamplingConfig

__all__ = ["sample_pairs"]

_ROWS = 256


def sample_pairs(
    graph: nnx.GraphDef,
    params: Any,
    prompts: Prompts,
    *,
    config: SamplingConfig,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    logit: Callable[[Sequence[str]], Float[np.ndarray, " texts"]],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Pairs, Dropped]:
    """Two completions a prompt, the preferred one drawn by Bradley and Terry's model.

    The probability that the first is preferred is `sigmoid(logit(first) - logit(second))`, where
    the logit is the labelling reward's of prompt and completion together.

    Returns:
      The pairs (no reference log-probabilities yet), and an account of those dropped.
    """
    first, first_lengths = _sample_all(graph, params, prompts, config, 2 * seed, progress)
    second, second_lengths = _sample_all(graph, params, prompts, config, 2 * seed + 1, progress)

    def texts(ids, lengths):
        return decode([row[:end] for row, end in zip(ids, prompts.lengths + lengths, strict=True)])

    difference = logit(texts(first, first_lengths)) - logit(texts(second, second_lengths))
    draws = np.random.default_rng(seed).random(len(difference))
    first_wins = draws < 1.0 / (1.0 + np.exp(-np.asarray(difference, np.float64)))

    def rows(ids, lengths):
        starts = prompts.lengths
        return [row[a : a + n].tolist() for row, a, n in zip(ids, starts, lengths, strict=True)]

    one, other = rows(first, first_lengths), rows(second, second_lengths)
    chosen = [a if wins else b for a, b, wins in zip(one, other, first_wins, strict=True)]
    rejected = [b if wins else a for a, b, wins in zip(one, other, first_wins, strict=True)]
    return make_pairs(
        [row[:n].tolist() for row, n in zip(prompts.ids, prompts.lengths, strict=True)],
        chosen,
        rejected,
        max_length=prompts.ids.shape[1] + config.tokens,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
        append_eos=False,
    )


def _sample_all(graph, params, prompts: Prompts, config: SamplingConfig, seed: int, progress):
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
        )

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
