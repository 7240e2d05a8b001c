"""Seconds to trace and compile a policy's gradient, of 4 layers and of 32: a loop's body is compiled once."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import Row, timed, turns
from discojax.policies.architecture import DecoderConfig, Rope
from discojax.policies.decoder import Decoder
from discojax.policies.logprobs import completion_logps
from discojax.policies.published import PUBLISHED

__all__ = ["rows"]

SHALLOW, DEEP = 4, 32
SEQUENCES, TIME, COMPLETION = 4, 256, 128
STRUCTURES = {
    "Llama 3 8B": PUBLISHED["meta-llama/Meta-Llama-3-8B"],
    "Gemma 3 1B": DecoderConfig(
        262144, width=1152, heads=4, kv_heads=1, head_dim=256, mlp_width=6912, max_length=32768,
        positions="rotary", rope=Rope(1e6), local_rope=Rope(1e4), unit_offset=True, post_norms=True,
        mlp_bias=False, qk_norm=True, window=512, pattern=("local",) * 5 + ("global",), gated=True,
        embedding_scale=1152**0.5,
    ),
}  # fmt: skip
"""Whole layers, of which there are 4 or 32; weights are shapes."""


def _compile(config: DecoderConfig, layers: int) -> float:
    config = replace(config, layers=layers, scan=True, remat="block")
    graph, weights = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    ids = jax.ShapeDtypeStruct((SEQUENCES, TIME), jnp.int32)
    lengths = jax.ShapeDtypeStruct((SEQUENCES,), jnp.int32)

    def loss(weights, ids, prompts, completions):
        policy = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights))
        return -completion_logps(policy, ids, prompts, completions, tokens=COMPLETION).mean()

    def compiled() -> None:
        jax.jit(jax.grad(loss)).lower(weights, ids, lengths, lengths).compile()

    return timed(compiled)


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on depth."""
    found = []
    for name, config in STRUCTURES.items():
        times = turns(
            {str(n): lambda n=n, config=config: _compile(config, n) for n in (SHALLOW, DEEP)},
            1 if quick else 5,
        )
        shallow, deep = (float(np.median(times[str(n)])) for n in (SHALLOW, DEEP))
        found.append(
            Row(f"compiling {DEEP} layers against {SHALLOW}: {name}'s structure", f"{deep:.2f}",
                f"{shallow:.2f}", shallow / deep, "s, gradient, traced and compiled")
        )  # fmt: skip
    return found
