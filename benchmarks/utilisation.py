"""Model FLOPs utilisation of the training step, and how its cost grows.

Operations are counted from the model's shape (`policies.flops`), nothing twice, and checked against
the compiler's count of the same gradient without loops. The peak is the device's own: on an
accelerator its data sheet's, on a CPU the fastest matrix product measured in the same run.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import TINY_GPT2, Row, policy, timed
from benchmarks.steps import PAIRS, PROMPT, TOKENS, population
from discojax.policies.decoder import DecoderConfig
from discojax.policies.flops import forward_flops, gradient_flops

__all__ = ["growth", "needed_flops", "rows"]

PEAKS = {
    "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12,
    "TPU v5p": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}  # fmt: skip
"""Dense bfloat16 operations a second, from the makers' data sheets. A TPU's is by all of what JAX calls it
(`device_kind`; "TPU v5" is the v5p), a GPU's by the first of these that is a part of it."""

GPT2 = DecoderConfig(
    vocab_size=50_257, layers=12, width=768, heads=12, max_length=1024, norm="layer", norm_eps=1e-5,
    qkv_bias=True, attention_output_bias=True, mlp_bias=True,
)  # fmt: skip


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on utilisation."""
    accelerator = jax.default_backend() != "cpu"
    cases = [("tiny GPT-2, 16 lanes", TINY_GPT2, 16, PAIRS, PROMPT, TOKENS, "float32")]
    if accelerator:
        cases += [("GPT-2 (124M), 4 lanes, bf16", GPT2, 4, 16, 128, 384, "bfloat16")]
    result = []
    for name, config, lanes, pairs, prompt, tokens, dtype in cases:
        call, work = population(
            lanes, config=config, pairs=pairs, prompt=prompt, tokens=tokens, dtype=dtype, chunk=2
        )
        seconds = float(np.median([timed(call) for _ in range(3 if quick else 7)])) / work
        needed = needed_flops(config, pairs=pairs, prompt=prompt, tokens=tokens)
        result.append(_utilisation(name, needed / seconds))
    result.append(_cross_check())
    return result


def growth(*, quick: bool = False) -> list[Row]:
    """How a lane-step's cost grows with lanes, tokens and vocabulary, over that of the tiny GPT-2's own."""
    base: float | None = None
    result = []
    for what, lanes, changes in (
        ("4 lanes, 48 tokens, vocabulary 8,192", 4, {}),
        ("16 lanes", 16, {}),
        ("96 tokens", 4, {"tokens": 2 * TOKENS}),
        ("vocabulary 32,768", 4, {"vocab_size": 32_768}),
    ):
        tokens = changes.get("tokens", TOKENS)
        config = replace(
            TINY_GPT2, vocab_size=changes.get("vocab_size", 8192), max_length=max(64, PROMPT + tokens)
        )
        call, work = population(lanes, config=config, tokens=tokens, chunk=1)
        seconds = float(np.median([timed(call) for _ in range(3 if quick else 7)])) / work
        base = base or seconds
        more = needed_flops(config, tokens=tokens) / needed_flops(TINY_GPT2)
        result.append(
            Row(f"growth: {what}", f"{1e3 * seconds:.3g}", f"{1e3 * base:.3g}", base * more / seconds,
                f"ms a lane-step; {more:.2f} times the operations, ratio of throughput")
        )  # fmt: skip
    return result


def needed_flops(
    config: DecoderConfig, *, pairs: int = PAIRS, prompt: int = PROMPT, tokens: int = TOKENS
) -> int:
    """Operations that a step of one lane needs. The step reads a pair's prompt once, so it counts once."""
    return gradient_flops(
        config, sequences=2 * pairs, time=prompt + tokens - 1, predicted=tokens, shared=prompt
    )


def _cross_check() -> Row:
    graph, params = policy()
    ids = jnp.zeros((2 * PAIRS, PROMPT + TOKENS), jnp.int32)

    def total(params):
        model = nnx.merge(graph, params)
        return jnp.sum((model.hidden(ids) @ model.head.T) ** 2)

    compiler = jax.jit(jax.grad(total)).lower(params).compile().cost_analysis()["flops"]
    time = PROMPT + TOKENS
    ours = 3 * forward_flops(TINY_GPT2, sequences=2 * PAIRS, time=time, predicted=time, causal=False)
    return Row("operations of a gradient, our count against the compiler's", f"{ours / 1e9:.2f}",
               f"{compiler / 1e9:.2f}", ours / compiler, "GFLOP, dense attention and logits")  # fmt: skip


def _utilisation(name: str, reached: float) -> Row:
    """The line of what ran at so many operations a second; without a ratio where no peak is known."""
    what, ours = f"utilisation, {name}", f"{reached / 1e9:,.0f}"
    if (found := _peak()) is None:
        return Row(
            what, ours, "", None, f"GFLOP/s; no peak of a {jax.devices()[0].device_kind} is known here"
        )
    peak, source = found
    return Row(what, ours, f"{peak / 1e9:,.0f}", reached / peak, f"GFLOP/s against {source}")


def _peak() -> tuple[float, str] | None:
    """Operations a second that all devices can do, and whose figure it is; None for an accelerator not known.

    A float32 product measured there would be no peak for what runs in bfloat16.
    """
    device = jax.devices()[0]
    kind = device.device_kind
    for name, peak in PEAKS.items():
        if name == kind if name.startswith("TPU") else name in kind:
            return peak * jax.device_count(), f"{name}'s bf16 peak"
    if device.platform != "cpu":
        return None
    n = 2048
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    fastest = min(timed(lambda: product(x)) for _ in range(10))
    return 2 * n**3 / fastest, f"the fastest {n} x {n} product here"
