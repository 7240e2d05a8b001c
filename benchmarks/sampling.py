"""Sampling: every lane's policy completes every prompt, against Transformers' `generate`.

The peer calls `generate` once a lane, with the same weights each time, so that what switching
between models costs it is left out. Neither side may end early: both draw every token asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import TINY_GPT2, Row, peer_shape, policy, timed, turns
from benchmarks.peers import Peer
from discojax.policies.sampling import length_buckets
from discojax.population.backend import choose_implementation
from discojax.population.mesh import make_mesh
from discojax.tasks.measure import SamplingConfig, make_sampler

__all__ = ["rows", "sampler"]

PROMPTS, PROMPT, TOKENS = 16, 16, 48


def sampler(lanes: int, *, implementation: str | None = None) -> tuple[Callable[[], Any], int]:
    """A call that samples for so many lanes, with their divergences as a measurement has, and its tokens."""
    graph, params = policy()
    mesh = make_mesh()
    sample = make_sampler(
        graph,
        SamplingConfig(tokens=TOKENS, eos_id=-1),  # an id that nothing has: no completion ends early
        mesh=mesh,
        implementation=implementation or choose_implementation("auto"),
    )
    sharding = jax.NamedSharding(mesh, jax.P("lane"))
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), params)
    stacked = jax.device_put(stacked, sharding)
    ids = np.random.default_rng(0).integers(3, TINY_GPT2.vocab_size, (PROMPTS, PROMPT)).astype(np.int32)
    prompts = length_buckets(ids, np.full(PROMPTS, PROMPT, np.int32))
    empty = type(params)({})

    def call() -> Any:
        return sample(stacked, empty, np.ones(lanes, bool), np.arange(lanes), prompts, params)

    jax.block_until_ready(call())
    return call, lanes * PROMPTS * TOKENS


def rows(peer: Peer | None, *, quick: bool = False) -> list[Row]:
    """The table's lines on sampling."""
    accelerator = jax.default_backend() != "cpu"
    counts = (16,) if quick or not accelerator else (16, 64)
    subjects: dict[str, Callable[[], float]] = {}
    for count in counts:
        call, tokens = sampler(count)
        subjects[f"{count}"] = lambda call=call, tokens=tokens: tokens / timed(call)
    if peer is not None:
        ids = np.random.default_rng(0).integers(3, TINY_GPT2.vocab_size, (PROMPTS, PROMPT))
        peer.build("generate", peer_shape(TINY_GPT2), prompts=ids, tokens=TOKENS)
        peer.run("generate", 1)
        subjects["peer"] = lambda: 2 * PROMPTS * TOKENS / peer.run("generate", 2)[0]
    rates = turns(subjects, 3 if quick else 7)
    result = []
    for count in counts:
        ours = rates[f"{count}"]
        theirs = rates.get("peer")
        result.append(
            Row(
                f"sampling with its KL, {count} lanes against Transformers' generate",
                f"{np.median(ours):,.0f}",
                "" if theirs is None else f"{np.median(theirs):,.0f}",
                None if theirs is None else float(np.median(np.divide(ours, theirs))),
                "tokens/s",
            )
        )
    return result
