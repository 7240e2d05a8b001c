"""Supervised fine-tuning: one policy, by the likelihood of its texts.

Matrices are trained with Muon (Jordan et al., 2024; `optax.contrib.muon`), embeddings and norms
with AdamW. From nothing, for the small policy, 400 steps of 32 reviews reach 5.48 nats a token
where AdamW alone needs more than 800 (5.64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Int

from discojax.policies.logprobs import token_logps

__all__ = ["SftConfig", "mean_loss", "train"]

_CHUNK = 10


@dataclass(frozen=True)
class SftConfig:
    """How the small policy is trained from nothing.

    Attributes:
      steps: optimisation steps.
      batch: texts a step.
      learning_rate: the peak for embeddings and norms (AdamW); warmed up over a twentieth of the
        steps, then along a cosine to zero.
      matrix_learning_rate: the same for matrices (Muon).
    """

    steps: int = 700
    batch: int = 32
    learning_rate: float = 4e-3
    matrix_learning_rate: float = 2e-2


def mean_loss(
    graph: nnx.GraphDef, params: Any, ids: Int[jax.Array, "batch time"], lengths: Int[jax.Array, " batch"]
):
    """Mean negative log-likelihood of every token after the first, in nats, float32 scalar."""
    policy = nnx.merge(graph, params)
    hidden = policy.hidden(ids[:, :-1])
    logps = token_logps(hidden.reshape(-1, hidden.shape[-1]), policy.head, ids[:, 1:].reshape(-1))
    mask = (jnp.arange(1, ids.shape[1]) < lengths[:, None]).astype(jnp.float32)
    return -jnp.sum(logps.reshape(mask.shape) * mask) / jnp.maximum(mask.sum(), 1.0)


def train(
    graph: nnx.GraphDef,
    params: Any,
    ids: Int[np.ndarray, "texts time"],
    lengths: Int[np.ndarray, " texts"],
    *,
    config: SftConfig,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Any, list[float]]:
    """Trains `params` on texts.

    Args:
      graph: the policy's definition.
      params: where to start.
      ids: texts, padded on the right.
      lengths: tokens of each.
      config: see `SftConfig`.
      seed: decides the order of the texts.
      progress: told the steps done and the loss, every few steps.

    Returns:
      The trained parameters, and the mean loss of each chunk of steps.
    """
    optimizer = _optimizer(config)

    def step(carry, batch):
        params, moments = carry
        loss, gradient = jax.value_and_grad(lambda p: mean_loss(graph, p, *batch))(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    @jax.jit
    def run(carry, batches):
        return jax.lax.scan(step, carry, batches)

    carry = (params, optimizer.init(params))
    order = _order(seed, len(ids), config.batch, config.steps)
    losses: list[float] = []
    for start in range(0, config.steps, _CHUNK):
        rows = order[start : start + _CHUNK]
        carry, chunk = run(carry, (ids[rows], lengths[rows]))
        losses.append(float(np.mean(chunk)))
        progress(min(start + _CHUNK, config.steps), losses[-1])
    return carry[0], losses


def _optimizer(config: SftConfig) -> optax.GradientTransformation:
    def rate(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(config.steps // 20, 1), config.steps)

    def matrices(params):
        def dimensions(path, _):
            is_matrix = "kernel" in jax.tree_util.keystr(path)
            return optax.contrib.MuonDimensionNumbers(0, 1) if is_matrix else None

        return jax.tree_util.tree_map_with_path(dimensions, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            rate(config.matrix_learning_rate),
            adam_b2=0.98,
            adam_learning_rate=rate(config.learning_rate),
            muon_weight_dimension_numbers=matrices,
        ),
    )


def _order(seed: int, texts: int, batch: int, steps: int) -> Int[np.ndarray, "steps batch"]:
    """Which texts each step sees: shuffled epochs, one after another."""
    generator = np.random.default_rng(seed)
    epochs = -(-steps * batch // texts)
    flat = np.concatenate([generator.permutation(texts) for _ in range(epochs)])
    return flat[: steps * batch].reshape(steps, batch)
