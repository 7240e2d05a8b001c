"""Reference log-probabilities: computed once for a data set, kept on disk, shared by every lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from discojax.data import cache
from discojax.data.pairs import Pairs
from discojax.policies.logprobs import completion_logps

__all__ = ["with_reference"]

VERSION = 1
_ROWS = 128


def with_reference(
    pairs: Pairs,
    graph: nnx.GraphDef,
    params: Any,
    *,
    tokens: int,
    root: Path | str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """`pairs` with the summed log-probabilities of both completions under a policy, float32 nats.

    Cached by the content of pairs and weights, and by pair rather than by batch, so neither the
    order of training nor any random state is touched. The policy's own training goes through the
    same operator, so at step 0 policy and reference agree.
    """
    inputs = {
        "pairs": cache.content_hash(pairs._asdict()),
        "params": cache.content_hash([np.asarray(x) for x in jax.tree.leaves(params)]),
        # Weights do not say all: the number of heads, for one, changes the function but no shape.
        "policy": asdict(nnx.merge(graph, params).config),
        "tokens": tokens,
        "version": VERSION,
    }

    def make(directory: Path) -> None:
        chosen, rejected = _logps(pairs, graph, params, tokens, progress)
        np.savez(directory / "reference.npz", chosen=chosen, rejected=rejected)

    directory = cache.build("reference", inputs, make, root)
    with np.load(directory / "reference.npz") as saved:
        return pairs._replace(reference_chosen=saved["chosen"], reference_rejected=saved["rejected"])


def _logps(pairs: Pairs, graph: nnx.GraphDef, params: Any, tokens: int, progress: Callable[[int, int], None]):
    @jax.jit
    def run(params, ids, prompts, lengths):
        return completion_logps(nnx.merge(graph, params), ids, prompts, lengths, tokens=tokens)

    count = len(pairs.prompt_length)
    sides: list[np.ndarray] = []
    chosen = (pairs.chosen_ids, pairs.chosen_length)
    for ids, lengths in (chosen, (pairs.rejected_ids, pairs.rejected_length)):
        parts = []
        for start in range(0, count, _ROWS):
            rows = np.minimum(np.arange(start, start + _ROWS), count - 1)  # one shape, one compilation
            parts.append(np.asarray(run(params, ids[rows], pairs.prompt_length[rows], lengths[rows])))
            progress(min(start + _ROWS, count) + count * len(sides), 2 * count)
        sides.append(np.concatenate(parts)[:count].astype(np.float32))
    return sides
