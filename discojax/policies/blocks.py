"""Transformer blocks, and running them: one after another, or stacked in one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig
from discojax.policies.attention import Attention, KeyValueCache, View, Views
from discojax.policies.dense import dense
from discojax.policies.norms import Norm
from discojax.policies.sharding import batch_over_model

if TYPE_CHECKING:
    from discojax.policies.decoder import Decoder

__all__ = ["Block", "Mlp", "decode", "make_blocks", "prefill", "stack", "unstack"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class Mlp(nnx.Module):
    """The feed-forward layer: `down(activation(up(x)))`, or gated `down(activation(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        hidden = config.mlp_size
        layer = partial(dense, use_bias=config.mlp_bias, rngs=rngs)
        scale = nnx.initializers.normal(config.width**-0.5)
        out = nnx.initializers.normal((2 * config.layers * hidden) ** -0.5)
        self.activation = config.activation
        self.gate = layer(config.width, hidden, kernel_init=scale) if config.gated else None
        self.up = layer(config.width, hidden, kernel_init=scale)
        self.down = layer(hidden, config.width, kernel_init=out)

    def __call__(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        """Each token by itself."""
        activation = _ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activation(self.up(x)))
        return self.down(activation(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and a feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = Norm(config.width, config)
        self.attention = Attention(config, rngs=rngs)
        self.attention_post_norm = Norm(config.width, config) if config.post_norms else None
        self.mlp_norm = Norm(config.width, config)
        self.mlp = Mlp(config, rngs=rngs)
        self.mlp_post_norm = Norm(config.width, config) if config.post_norms else None

    def __call__(self, x: Float[Array, "batch time width"], view: View):
        """Whole sequences; also returns their keys and values for a cache."""
        flat = batch_over_model(x).reshape(-1, x.shape[-1])
        mixed, key, value = self.attention(self.attention_norm(flat), len(x), view)
        return self._finish(flat, mixed).reshape(x.shape), (key, value)

    def decode(
        self,
        x: Float[Array, "batch width"],
        view: View,
        cache: KeyValueCache,
        layer: int | Int[Array, ""],
        positions: Int[Array, " batch"],
    ):
        """One more token for each row; also returns the cache with it."""
        mixed, cache = self.attention.decode(self.attention_norm(x), view, cache, layer, positions)
        return self._finish(x, mixed), cache

    def _finish(self, x: Float[Array, "tokens width"], mixed: Float[Array, "tokens width"]):
        if self.attention_post_norm is not None:
            mixed = self.attention_post_norm(mixed)
        x = x + mixed.astype(x.dtype)
        y = self.mlp(self.mlp_norm(x))
        if self.mlp_post_norm is not None:
            y = self.mlp_post_norm(y)
        return x + y.astype(x.dtype)


def make_blocks(config: DecoderConfig, *, rngs: nnx.Rngs) -> nnx.List | Block:
    """All blocks: a list, or, where they are scanned, one whose weights are `[layers, ...]`."""
    if not config.scan:
        return nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
    keys = jax.random.split(rngs.params(), config.layers)
    return jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)


def prefill(
    config: DecoderConfig, blocks: Any, x: Float[Array, "batch time width"], views: Views, *, keep: bool
) -> tuple[Float[Array, "batch time width"], KeyValueCache | None]:
    """Runs every block over whole sequences; with `keep`, also returns their keys and values."""

    def layer(local, block: Block, x: Array):
        x, pair = block(x, views.of(local))
        return x, pair if keep else None

    if config.scan:
        x, pairs = jax.lax.scan(
            lambda x, each: _remat(config, partial(layer, _is_local(config, each[1])))(each[0], x),
            x,
            (blocks, _flags(config)),
        )
        return x, KeyValueCache(*pairs) if keep else None
    pairs = []
    for block, local in zip(blocks, config.local_layers, strict=True):
        x, pair = _remat(config, partial(layer, local))(block, x)
        pairs.append(pair)
    return x, KeyValueCache(*zip(*pairs, strict=True)) if keep else None


def decode(
    config: DecoderConfig,
    blocks: Any,
    x: Float[Array, "batch width"],
    views: Views,
    cache: KeyValueCache,
    positions: Int[Array, " batch"],
) -> tuple[Float[Array, "batch width"], KeyValueCache]:
    """Runs every block over one more token of each row."""
    if config.scan:

        def layer(carry, each):
            block, flag, index = each
            view = views.of(_is_local(config, flag))
            return block.decode(carry[0], view, carry[1], index, positions), None

        indices = jnp.arange(config.layers)
        return jax.lax.scan(layer, (x, cache), (blocks, _flags(config), indices))[0]
    for i, (block, local) in enumerate(zip(blocks, config.local_layers, strict=True)):
        x, cache = block.decode(x, views.of(local), cache, i, positions)
    return x, cache


def _flags(config: DecoderConfig) -> Array | None:
    """Which layers are local, to be scanned over; None where all are alike."""
    return None if len(set(config.local_layers)) == 1 else jnp.array(config.local_layers)


def _is_local(config: DecoderConfig, flag: Array | None):
    return config.local_layers[0] if flag is None else flag


def _remat(config: DecoderConfig, function: Callable) -> Callable:
    if config.remat == "none":
        return function
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Inside a loop nothing can be merged with the forward pass, so nothing needs to prevent it.
    return jax.checkpoint(
        function, policy=dots if config.remat == "dots" else None, prevent_cse=not config.scan
    )


def stack(policy: Decoder) -> Decoder:
    """The same policy with its blocks' weights stacked `[layers, ...]` and run by one loop.

    On shapes, call it as `nnx.eval_shape(stack, policy)`.

    Raises:
      UserError: the blocks differ in more than their weights, such as in which are adapted.
    """
    if policy.config.scan:
        return policy
    graphs, states = zip(*(nnx.split(block) for block in policy.blocks), strict=True)
    if any(graph != graphs[0] for graph in graphs):
        raise UserError("Layers that differ cannot be stacked: adapt every layer alike, or set scan=False.")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return _with_blocks(policy, nnx.merge(graphs[0], stacked), scan=True)


def unstack(policy: Decoder) -> Decoder:
    """The same policy with each block's weights its own, as they are saved: the inverse of `stack`."""
    if not policy.config.scan:
        return policy
    graph, stacked = nnx.split(policy.blocks)
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(policy.config.layers)]
    return _with_blocks(policy, nnx.List([nnx.merge(graph, layer) for layer in layers]), scan=False)


def _with_blocks(policy: Decoder, blocks: Any, *, scan: bool) -> Decoder:
    copy = nnx.merge(*nnx.split(policy))
    copy.blocks = blocks
    copy.config = replace(policy.config, scan=scan)
    return copy
