"""Causal self-attention: grouped heads, rotary positions, windows, soft-caps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig
from discojax.policies.dense import dense
from discojax.policies.norms import Norm
from discojax.policies.rotary import Angles, angles, rotate
from discojax.policies.soft_cap import soft_cap, soft_cap_slope

__all__ = ["Attention", "Branches", "KeyValueCache", "View", "Views", "choose"]


_FAR = jnp.iinfo(jnp.int32).max  # a position that no token sees, and more tokens than there are


def choose(
    config: DecoderConfig, attention: Literal["auto", "xla", "cudnn"], platform: str | None = None
) -> DecoderConfig:
    """The configuration with this implementation of attention.

    Args:
      config: of the decoder.
      attention: see `DecoderConfig`.
      platform: what it will run on, such as `"tpu"`; what JAX runs on here if None.

    Raises:
      UserError: the decoder, or the platform, cannot have it.
    """
    if attention == "auto":
        return config
    if config.attention_softcap is not None:
        raise UserError(
            f"attention={attention} cannot be had by a policy with soft-caps on its attention (Gemma 2): "
            "JAX's implementations have none, so it is written out here. Leave attention at auto."
        )
    platform = platform or _platform()
    if attention == "cudnn" and platform != "cuda":
        raise UserError(
            f"attention=cudnn takes an NVIDIA GPU, and this is for a {platform.upper()}: take xla, or leave "
            "attention at auto."
        )
    return replace(config, attention=attention)


def _platform() -> str:
    """What JAX runs on, with `"cuda"` for NVIDIA's GPUs alone."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" and "cuda" in jax.devices()[0].client.platform_version else backend


class Branches(NamedTuple):
    """Rows of `[prompt | continuation | continuation | ...]`: each of these sees the prompt and itself.

    Attributes:
      prompt: places of the prompt, padding on its right among them (static).
      positions: of a continuation's tokens, in the sequence that prompt and continuation make.
      lengths: tokens of the prompt.
    """

    prompt: int
    positions: Int[Array, "batch time"]
    lengths: Int[Array, " batch"]


class View(NamedTuple):
    """How a layer sees positions.

    Attributes:
      angles: of rotary positions, or None.
      window: tokens a query sees, itself among them; None is all before it. A Python integer where
        it is known, an array where a loop over layers says which layer this is.
      branches: what sees what, where that is more than everything before it.
    """

    angles: Angles | None
    window: int | Int[Array, ""] | None
    branches: Branches | None = None


class Views:
    """The views of local and global layers at given positions, made once for all layers.

    Args:
      config: of the decoder.
      positions: `[time]` for every row alike, or `[batch, time]`.
      branches: see `Branches`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        positions: Int[Array, "*positions"],
        branches: Branches | None = None,
    ):
        self.config = config
        self._branches = branches
        turned = config.positions == "rotary"
        self._global = angles(config.rope, config.head_size, positions) if turned else None
        self._local = self._global
        if turned and config.local_rope is not None:
            self._local = angles(config.local_rope, config.head_size, positions)

    def of(self, local: bool | Bool[Array, ""]) -> View:
        """The view of a local or of a global layer."""
        if isinstance(local, bool):
            turned, window = (self._local, self.config.window) if local else (self._global, None)
            return View(turned, window, self._branches)
        far = jnp.where(local, jnp.int32(self.config.window or _FAR), _FAR)
        turned = self._global
        if self._local is not self._global:
            turned = jax.tree.map(lambda x, y: jnp.where(local, x, y), self._local, self._global)
        return View(turned, far, self._branches)


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far.

    A tuple of `[batch, time, kv_heads, head]`, one for each layer; where layers are stacked
    (`DecoderConfig.scan`) one array `[layers, batch, time, kv_heads, head]`.
    """

    keys: (
        tuple[Float[Array, "batch time kv_heads head"], ...] | Float[Array, "layers batch time kv_heads head"]
    )
    values: (
        tuple[Float[Array, "batch time kv_heads head"], ...] | Float[Array, "layers batch time kv_heads head"]
    )

    def write(
        self,
        layer: int | Int[Array, ""],
        key: Float[Array, "batch 1 kv_heads head"],
        value: Float[Array, "batch 1 kv_heads head"],
        positions: Int[Array, " batch"],
    ) -> KeyValueCache:
        """The cache with one token more in each row, at its position."""
        rows = jnp.arange(len(positions))

        def put(all_layers, new):
            if isinstance(all_layers, tuple):
                changed = all_layers[layer].at[rows, positions].set(new[:, 0], unique_indices=True)
                return (*all_layers[:layer], changed, *all_layers[layer + 1 :])
            return all_layers.at[layer, rows, positions].set(new[:, 0], unique_indices=True)

        return KeyValueCache(put(self.keys, key), put(self.values, value))

    def with_room(self, tokens: int) -> KeyValueCache:
        """The cache with space for so many tokens more."""
        room = ((0, 0), (0, tokens), (0, 0), (0, 0))

        def widen(x: Array) -> Array:
            return jnp.pad(x, ((0, 0),) * (x.ndim - 4) + room)

        return jax.tree.map(widen, self) if tokens else self


class Attention(nnx.Module):
    """Self-attention; every dense layer works on tokens flattened to `[batch * time, width]`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, inner = config.width, config.heads * config.head_size

        def project(outputs: int) -> nnx.Linear:
            scale = nnx.initializers.normal(width**-0.5)
            return dense(width, outputs, use_bias=config.qkv_bias, kernel_init=scale, rngs=rngs)

        self.query = project(inner)
        self.key = project(config.key_heads * config.head_size)
        self.value = project(config.key_heads * config.head_size)
        out = nnx.initializers.normal((2 * config.layers * inner) ** -0.5)
        self.output = dense(inner, width, use_bias=config.attention_output_bias, kernel_init=out, rngs=rngs)
        self.query_norm = Norm(config.head_size, config, kind="rms") if config.qk_norm else None
        self.key_norm = Norm(config.head_size, config, kind="rms") if config.qk_norm else None

    def _project(self, x: Float[Array, "tokens width"], batch: int, view: View):
        """Queries, keys and values `[batch, time, heads, head]`, normed and turned."""
        query, key, value = (
            layer(x).reshape(batch, -1, heads, self.config.head_size)
            for layer, heads in (
                (self.query, self.config.heads),
                (self.key, self.config.key_heads),
                (self.value, self.config.key_heads),
            )
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if view.angles is not None:
            query, key = rotate(query, view.angles), rotate(key, view.angles)
        return query, key, value

    def __call__(self, x: Float[Array, "tokens width"], batch: int, view: View):
        """Attends over whole sequences; also returns their keys and values for a cache."""
        query, key, value = self._project(x, batch, view)
        if view.branches is None:
            mixed = self._before(query, key, value, view.window)
        else:
            mixed = self._branched(query, key, value, view.window, view.branches)
        return self.output(mixed.reshape(len(x), -1)), key, value

    def _before(self, query, key, value, window):
        """Every token sees those before it."""
        if _by_hand(self.config) or isinstance(window, Array):
            steps = jnp.arange(query.shape[1])
            return self._attend(query, key, value, mask=_seen(steps[:, None], steps, window))
        return self._attend(query, key, value, causal=True, window=window)

    def _branched(self, query, key, value, window, branches: Branches):
        """Every token of a continuation sees the prompt, and those before it in its own continuation."""
        rows, time = branches.positions.shape
        room = branches.prompt

        def own(x):
            return x[:, room:].reshape(-1, time, *x.shape[2:])

        def seen(x):
            prompt = jnp.repeat(x[:, :room], (x.shape[1] - room) // time, axis=0)
            return jnp.concatenate([prompt, own(x)], axis=1)

        places = jnp.arange(room)
        prompt_at = jnp.where(places < branches.lengths[:, None], places, _FAR)
        seen_at = jnp.concatenate([prompt_at, branches.positions], axis=1)
        mask = _seen(branches.positions[:, :, None], seen_at[:, None, :], window)
        mask = jnp.repeat(mask, (query.shape[1] - room) // time, axis=0)[:, None]
        prompt = self._before(query[:, :room], key[:, :room], value[:, :room], window)
        rest = self._attend(own(query), seen(key), seen(value), mask=mask)
        return jnp.concatenate([prompt, rest.reshape(rows, -1, *rest.shape[2:])], axis=1)

    def decode(
        self,
        x: Float[Array, "batch width"],
        view: View,
        cache: KeyValueCache,
        layer: int | Int[Array, ""],
        positions: Int[Array, " batch"],
    ):
        """One more token for each row, each at its own position, against the cache."""
        query, key, value = self._project(x, len(x), view)
        cache = cache.write(layer, key, value, positions)
        keys, values = cache.keys[layer], cache.values[layer]
        mask = _seen(positions[:, None], jnp.arange(keys.shape[1]), view.window)
        mixed = self._attend(query, keys, values, mask=mask[:, None, None, :])
        return self.output(mixed.reshape(len(x), -1)), cache

    def _attend(self, query, key, value, *, mask=None, causal=False, window=None):
        scale = self.config.query_scale
        if _by_hand(self.config):
            return _plain(query, key, value, mask, scale, self.config.attention_softcap)
        chosen = self.config.attention
        if chosen == "cudnn" and (query.shape[1] == 1 or query.dtype not in (jnp.bfloat16, jnp.float16)):
            chosen = "xla"  # which has float32 and is as quick for one query
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=None if mask is None else jnp.broadcast_to(mask, (1,) * (4 - mask.ndim) + mask.shape),
            scale=scale,
            is_causal=causal,
            local_window_size=None if window is None else (window - 1, 0),
            implementation=None if chosen == "auto" else chosen,
        )


def _seen(query: Array, key: Array, window: int | Array | None) -> Bool[Array, "query key"]:
    """Which positions a query sees: those up to its own, and of them the last `window`."""
    back = query - key
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _by_hand(config: DecoderConfig) -> bool:
    """Whether attention is written out: JAX's has no soft-caps, and on a CPU is slower than `_plain`."""
    return config.attention_softcap is not None or (
        config.attention == "auto" and jax.default_backend() == "cpu"
    )


def _plain(
    query, key, value, mask, scale: float | None, cap: float | None
) -> Float[Array, "batch time heads head"]:
    """`jax.nn.dot_product_attention` with soft-caps, and with heads before time.

    That order makes whole matrices of each head's rows. Laid out before they are multiplied (the
    barrier), they take a CPU 0.6 of the time, gradient and all; otherwise XLA turns them as it multiplies.
    """
    batch, time, heads, size = query.shape
    grouped = query.reshape(batch, time, key.shape[2], -1, size).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if time > 1:
        grouped, key, value = jax.lax.optimization_barrier((grouped, key, value))
    mask = mask if mask.ndim == 2 else mask[:, :, None]
    mixed = _softmax_mix(size**-0.5 if scale is None else scale, cap, grouped, key, value, mask)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, size)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax_mix(scale: float, cap: float | None, query, key, value, mask) -> Array:
    """`softmax(soft_cap(scale * query @ key.T), where=mask) @ value`, the softmax in float32.

    Its gradient is written out, as FlashAttention's is (Dao et al., 2022, appendix B.2): what passes
    through the softmax's sum is read off the mixed values, fewer than the weights.
    """
    return _mix_forward(scale, cap, query, key, value, mask)[0]


def _mix_forward(scale: float, cap: float | None, query, key, value, mask):
    logits = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32)
    logits = soft_cap(logits * scale, cap)
    seen = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(seen - jnp.max(seen, axis=-1, keepdims=True))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgts,bksh->bkgth", powers.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    mixed = mixed / total
    kept = None if cap is None else logits
    return mixed.astype(value.dtype), (query, key, value, powers, total, mixed, kept)


def _mix_backward(scale: float, cap: float | None, saved, cotangent: Array):
    query, key, value, powers, total, mixed, logits = saved
    dtype = value.dtype
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    spread = jax.lax.optimization_barrier(cotangent).astype(jnp.float32) / total
    # A product rather than a sum, which a CPU would spread over the keys before it subtracts it.
    through = jnp.einsum("bkgth,bkgth->bkgt", spread, mixed)[..., None]
    spread = spread.astype(dtype)
    d_weights = product("bkgth,bksh->bkgts", spread, value)
    d_logits = powers * (d_weights - through) * (scale * soft_cap_slope(logits, cap))
    d_logits = d_logits.astype(dtype)
    d_query = product("bkgts,bksh->bkgth", d_logits, key)
    d_key = product("bkgts,bkgth->bksh", d_logits, query)
    d_value = product("bkgts,bkgth->bksh", powers.astype(dtype), spread)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(dtype), None


_softmax_mix.defvjp(_mix_forward, _mix_backward)
