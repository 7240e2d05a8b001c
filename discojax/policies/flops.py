"""Floating-point operations of a decoder, counted from its shape.

A compiler's own count (`cost_analysis()`) takes the body of a loop once, however often it runs, and
counts what a rematerialised program does twice; utilisation is of the operations the model needs.
"""

from __future__ import annotations

from discojax.policies.architecture import DecoderConfig

__all__ = ["forward_flops", "gradient_flops"]


def forward_flops(
    config: DecoderConfig, *, sequences: int, time: int, predicted: int, causal: bool = True
) -> int:
    """Operations of the matrix products of a forward pass, a multiplication and an addition being two.

    Args:
      config: of the decoder.
      sequences: how many are read.
      time: tokens read of each, padding among them.
      predicted: tokens of each whose logits are made.
      causal: whether attention is counted as it is needed, half of all pairs of tokens (less where a
        layer is local), or as a plain implementation computes it, all of them.
    """
    return sequences * (_dense(config, time, predicted) + _attention(config, time, causal))


def gradient_flops(
    config: DecoderConfig,
    *,
    sequences: int,
    time: int,
    predicted: int,
    causal: bool = True,
    adapters: int | None = None,
    shared: int = 0,
) -> int:
    """Operations of a forward pass and of its gradient; nothing is done twice.

    A matrix that trains takes as much again for the gradient of what went into it, and as much again for
    its own; a frozen one only the first.

    Args:
      config, sequences, time, predicted, causal: see `forward_flops`.
      adapters: parameters of a policy's low-rank adapters, where only they train; None where all do.
      shared: tokens at the beginning of every two sequences that are the same, and read once.
    """
    twice = sequences // 2
    dense = sequences * _dense(config, time, predicted) - twice * _dense(config, shared, 0)
    attention = sequences * _attention(config, time, causal) - twice * _attention(config, shared, causal)
    if adapters is None:
        return 3 * (dense + attention)
    return 2 * dense + 3 * attention + 3 * 2 * (sequences * time - twice * shared) * adapters


def _dense(config: DecoderConfig, time: int, predicted: int) -> int:
    width, inner = config.width, config.heads * config.head_size
    projections = width * inner * 2 + width * config.key_heads * config.head_size * 2
    feed_forward = width * config.mlp_size * (3 if config.gated else 2)
    return 2 * time * config.layers * (projections + feed_forward) + 2 * predicted * width * config.vocab_size


def _attention(config: DecoderConfig, time: int, causal: bool) -> int:
    inner = config.heads * config.head_size
    return sum(
        4 * inner * _seen(time, config.window if local else None, causal) for local in config.local_layers
    )


def _seen(time: int, window: int | None, causal: bool) -> int:
    """Pairs of tokens of which one sees the other."""
    if not causal:
        return time * time
    near = time if window is None else min(window, time)
    return near * (near + 1) // 2 + (time - near) * near
