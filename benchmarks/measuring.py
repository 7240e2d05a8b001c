"""What the benchmarks share: a row of the table, the model they all use, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from discojax.data.pairs import Pairs
from discojax.policies.decoder import Decoder, DecoderConfig

__all__ = ["TINY_GPT2", "Row", "peer_shape", "policy", "synthetic_pairs", "timed", "turns"]

TINY_GPT2 = DecoderConfig(
    vocab_size=8192, layers=4, width=128, heads=4, max_length=64, norm="layer", norm_eps=1e-5,
    qkv_bias=True, attention_output_bias=True, mlp_bias=True,
)  # fmt: skip
"""GPT-2 in every detail but its size: 1.8 million parameters."""


class Row(NamedTuple):
    """A line of the table: what was compared, both figures, and their ratio (larger is better for us)."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    note: str = ""


def policy(config: DecoderConfig = TINY_GPT2) -> tuple[nnx.GraphDef, Any]:
    """A policy of random weights."""
    return nnx.split(Decoder(config, rngs=nnx.Rngs(0)))


def peer_shape(config: DecoderConfig) -> dict[str, int]:
    """What `torch_peer` needs to make the same one."""
    return {name: asdict(config)[name] for name in ("vocab_size", "layers", "width", "heads", "max_length")}


def synthetic_pairs(config: DecoderConfig, *, pairs: int, prompt: int, tokens: int, seed: int = 0) -> Pairs:
    """Random pairs without padding, so that every program has the same number of tokens to do."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, config.vocab_size, (2, pairs, prompt + tokens)).astype(np.int32)
    ids[1, :, :prompt] = ids[0, :, :prompt]
    full = np.full(pairs, tokens, np.int32)
    reference = rng.normal(-9.0 * tokens, 5, (2, pairs)).astype(np.float32)
    return Pairs(ids[0], ids[1], np.full(pairs, prompt, np.int32), full, full, reference[0], reference[1])


def timed(function: Callable[[], Any]) -> float:
    """Seconds until what the function returns is there."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def turns(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Sequence[float]]:
    """Every subject once a round, so that each sees the same machine; what each returned, by round."""
    results: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            results[name].append(subject())
    return results
