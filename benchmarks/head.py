"""The streaming log-probability operator against the dense form: memory and time, value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import Row, timed, turns
from discojax.policies.logprobs import token_logps

__all__ = ["rows"]

LANES, TOKENS, WIDTH, VOCAB, BLOCK = 32, 512, 64, 50_257, 32


def dense(hidden, head, targets):
    """What one would write: logits of every token at once."""
    logps = jax.nn.log_softmax(hidden @ head.T)
    return jnp.take_along_axis(logps, targets[:, None], 1)[:, 0]


def streamed(hidden, head, targets):
    """The operator, in the blocks of 32 tokens that the engine chooses for 8 pairs in these lanes."""
    return token_logps(hidden, head, targets, block=BLOCK)


def _gradient(function: Callable, mapped: bool):
    every = jax.vmap(function) if mapped else function
    return jax.jit(jax.grad(lambda h, w, t: jnp.sum(every(h, w, t)), argnums=(0, 1)))


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on the operator."""
    shapes = (
        jax.ShapeDtypeStruct((LANES, TOKENS, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((LANES, VOCAB, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((LANES, TOKENS), jnp.int32),
    )
    memory = {
        f.__name__: _gradient(f, True).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
        for f in (streamed, dense)
    }
    rng = np.random.default_rng(0)
    one = (
        jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), jnp.float32),
        jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), jnp.float32),
        jnp.asarray(rng.integers(0, VOCAB, TOKENS), jnp.int32),
    )
    compiled = {f.__name__: _gradient(f, False) for f in (streamed, dense)}
    for function in compiled.values():
        jax.block_until_ready(function(*one))
    times = turns(
        {name: lambda f=f: timed(lambda: f(*one)) for name, f in compiled.items()}, 3 if quick else 9
    )
    what = f"log-probs of {TOKENS} tokens at vocabulary {VOCAB:,}"
    return [
        Row(f"{what}, {LANES} lanes: temporary memory against dense",
            f"{memory['streamed'] / 2**30:.2f}", f"{memory['dense'] / 2**30:.2f}",
            memory["dense"] / memory["streamed"], "GiB, value and gradient"),
        Row(f"{what}, 1 lane: time against dense",
            f"{1e3 * np.median(times['streamed']):.0f}", f"{1e3 * np.median(times['dense']):.0f}",
            float(np.median(np.divide(times["dense"], times["streamed"]))), "ms, value and gradient"),
    ]  # fmt: skip
