"""Reference log-probabilities: computed once for a data set, kept on disk, shared by every lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Float32

from discojax.data import cache
from discojax.data.pairs import Pairs
from discojax.policies import logprobs

__all__ = ["digests", "pair_logps", "with_reference"]

VERSION = 3
_ROWS = 128


def with_reference(
    pairs: Pairs,
    graph: nnx.GraphDef,
    params: Any,
    *,
    tokens: int,
    dtype: str = "float32",
    rows: int = _ROWS,
    root: Path | str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    weights: Sequence[str] | None = None,
    measure: Callable[[], Sequence[np.ndarray]] | None = None,
) -> Pairs:
    """`pairs` with the summed log-probabilities of both completions under a policy, float32 nats.

    Cached by the content of pairs and weights, and by pair rather than by batch, so neither the
    order of training nor any random state is touched. The policy's own training goes through the
    same operator, so at step 0 policy and reference agree.

    Args:
      tokens: the longest completion.
      dtype: what the policy computes in; the one that it will be trained in.
      rows: completions at a time.
      weights: the `digests` of `params`, where they are known. None computes them.
      measure: computes what is not in the cache, for weights that lie in several processes, of which only
        one calls this; None is `pair_logps` of what is given.
    """
    inputs = {
        "pairs": cache.content_hash(pairs._asdict()),
        "params": list(digests(params) if weights is None else weights),
        # Weights do not say all: the number of heads, for one, changes the function but no shape.
        "policy": asdict(nnx.merge(graph, params).config),
        "tokens": tokens,
        "dtype": dtype,
        "version": VERSION,
    }

    def here() -> Sequence[np.ndarray]:
        return pair_logps(pairs, graph, params, tokens=tokens, dtype=dtype, rows=rows, progress=progress)

    def make(directory: Path) -> None:
        chosen, rejected = (measure or here)()
        np.savez(directory / "reference.npz", chosen=chosen, rejected=rejected)

    directory = cache.build("reference", inputs, make, root)
    with np.load(directory / "reference.npz") as saved:
        return pairs._replace(reference_chosen=saved["chosen"], reference_rejected=saved["rejected"])


def digests(params: Any) -> list[str]:
    """The content hash of every leaf. Where they lie in several processes, all of these must call it.

    One after another: the host need not hold the weights twice.
    """
    return [cache.content_hash(_whole(x)) for x in jax.tree.leaves(params)]


def _whole(x: Any) -> np.ndarray:
    """An array on this host, wherever it lies."""
    far = isinstance(x, jax.Array) and not x.is_fully_addressable
    return np.asarray(multihost_utils.process_allgather(x, tiled=True) if far else x)


def pair_logps(
    pairs: Pairs,
    graph: nnx.GraphDef,
    *states: Any,
    tokens: int,
    dtype: str = "float32",
    rows: int = _ROWS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Float32[np.ndarray, " pairs"]]:
    """Log-probabilities of the chosen and of the rejected completions, float32 nats summed over tokens.

    Where the weights lie in several processes, all of these must call it, with the same pairs.

    Args:
      states: of the policy, `nnx.merge(graph, *states)`; the others as in `with_reference`.
    """
    count, at_once = len(pairs.prompt_length), max(rows // 2, 1)
    prompts = int(pairs.prompt_length.max(initial=1))
    parts = []
    for start in range(0, count, at_once):
        some = np.minimum(np.arange(start, start + at_once), count - 1)  # one shape, one compilation
        batch = [x[some] for x in pairs[:5]]
        parts.append(_whole(_logps(graph, states, *batch, tokens=tokens, prompts=prompts, dtype=dtype)))
        progress(2 * min(start + at_once, count), 2 * count)
    chosen, rejected = np.concatenate(parts, axis=1)[:, :count].astype(np.float32)
    return [chosen, rejected]


@partial(jax.jit, static_argnames=("graph", "tokens", "prompts", "dtype"))
def _logps(graph: nnx.GraphDef, states: Any, *batch, tokens: int, prompts: int, dtype: str) -> jax.Array:
    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    policy = nnx.merge(graph, *jax.tree.map(cast, states))
    return logprobs.pair_logps(policy, *batch, tokens=tokens, prompts=prompts)
