"""RMS and layer norms, in float32 whatever the dtype of the stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from discojax.policies.architecture import DecoderConfig

__all__ = ["Norm"]


class Norm(nnx.Module):
    """Normalises the last axis: RMS (Zhang and Sennrich, 2019) or layer (Ba et al., 2016).

    Args:
      size: of the last axis.
      config: says the kind, epsilon, and whether one is added to the scale (Gemma).
      kind: instead of the config's.
    """

    def __init__(self, size: int, config: DecoderConfig, *, kind: str | None = None):
        self.centred = (kind or config.norm) == "layer"
        self.eps = config.norm_eps
        self.offset = 1.0 if config.unit_offset else 0.0
        self.scale = nnx.Param(jnp.full((size,), 1.0 - self.offset))
        self.bias = nnx.Param(jnp.zeros((size,))) if self.centred else None

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """`x` normalised, in its own dtype."""
        wide = x.astype(jnp.float32)
        if self.centred:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        y = wide * (jax.lax.rsqrt(variance + self.eps) * scale)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
