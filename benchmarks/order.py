"""A batch of the data's order against permuting all pairs for it, as `jax.random.permutation` does."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import Row, timed, turns
from discojax.population import batch_indices

__all__ = ["rows"]

LANES, PAIRS, BATCH = 32, (2_000, 60_000), 16


def permuting(seed, step, *, pairs, batch):
    """What one would write: the whole permutation of an epoch, and a slice of it."""
    key = jax.random.fold_in(jax.random.key(seed), step // (pairs // batch))
    order = jax.random.permutation(key, pairs)
    return jax.lax.dynamic_slice_in_dim(order, step % (pairs // batch) * batch, batch)


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on the order."""
    seeds, steps = jnp.arange(LANES), jnp.full(LANES, 3)
    found = []
    for pairs in PAIRS:
        compiled = {
            f.__name__: jax.jit(jax.vmap(functools.partial(f, pairs=pairs, batch=BATCH)))
            for f in (batch_indices, permuting)
        }
        for function in compiled.values():
            jax.block_until_ready(function(seeds, steps))
        times = turns(
            {name: lambda f=f: timed(lambda: f(seeds, steps)) for name, f in compiled.items()},
            3 if quick else 9,
        )
        ours, peer = times["batch_indices"], times["permuting"]
        found.append(
            Row(
                f"a batch of {pairs:,} pairs for each of {LANES} lanes: time against jax.random.permutation",
                f"{1e3 * np.median(ours):.2f}",
                f"{1e3 * np.median(peer):.1f}",
                float(np.median(np.divide(peer, ours))),
                "ms a step",
            )
        )
    return found
