"""The order in which a lane sees the data: a function of its seed and step alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, UInt32

__all__ = ["batch_indices"]

_ROUNDS = 40  # each pair changes places in half of them


def batch_indices(
    seed: Int[Array, ""], step: Int[Array, ""], *, pairs: int, batch: int
) -> Int[Array, " batch"]:
    """Which pairs make up the batch of this step.

    Each epoch is a fresh permutation of `pairs // batch` whole batches, from `(seed, epoch)`. No
    state is kept, so a lane can stop and resume anywhere, and lanes with one seed share the order
    whatever else differs (common random numbers).

    Only this batch's places in the permutation are computed, so a step costs the same however many
    pairs there are: sorting 60,000 for each of 32 lanes would take a CPU seconds a step.

    Source: swap-or-not (Hoang, Morris and Rogaway, CRYPTO 2012), with a hash for its round function.
    """
    per_epoch = pairs // batch
    key = jax.random.fold_in(jax.random.key(seed), step // per_epoch)
    places = (step % per_epoch) * batch + jnp.arange(batch)
    return _permuted(key, places.astype(jnp.uint32), pairs).astype(jnp.int32)


def _permuted(key: Array, places: UInt32[Array, " n"], count: int) -> UInt32[Array, " n"]:
    """What a random permutation of `range(count)` has in these places."""
    pivots, salts = jax.random.bits(key, (2, _ROUNDS), jnp.uint32)
    pivots %= count

    def swap_or_not(round: int, x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
        partner = pivots[round] + (count - x)  # mirrored at the pivot, modulo `count`
        partner = jnp.where(partner >= count, partner - count, partner)
        swapped = _hash(jnp.maximum(x, partner) ^ salts[round]) >> 31  # one answer for both of the two
        return jnp.where(swapped == 1, partner, x)

    return jax.lax.fori_loop(0, _ROUNDS, swap_or_not, places)


def _hash(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """A bijection of 32 bits that leaves none of them as it was (Wellons' `lowbias32`)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
