"""The decoder: a pre-norm transformer language model in Flax NNX.

Every dense layer works on tokens flattened to `[batch * time, width]`: with `[batch, time, width]`
the weight gradients contract two dimensions and leave the fast matrix product on a CPU (measured
at 1.5 times a whole gradient). Weights are separate leaves for the same reason.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig

__all__ = ["Decoder", "DecoderConfig", "KeyValueCache"]


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far, one pair a layer, `[batch, time, heads, head]`."""

    keys: tuple[Float[Array, "batch time heads head"], ...]
    values: tuple[Float[Array, "batch time heads head"], ...]


class Attention(nnx.Module):
    """Causal self-attention with all heads' projections in one matrix."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        scale = nnx.initializers.normal(config.width**-0.5)
        out = nnx.initializers.normal((2 * config.layers * config.width) ** -0.5)
        self.heads = config.heads
        width = config.width
        self.project = nnx.Linear(width, 3 * width, use_bias=False, kernel_init=scale, rngs=rngs)
        self.output = nnx.Linear(width, width, use_bias=False, kernel_init=out, rngs=rngs)

    def _split(self, x: Float[Array, "tokens width"], batch: int):
        fused = self.project(x).reshape(batch, -1, 3, self.heads, x.shape[-1] // self.heads)
        return fused[:, :, 0], fused[:, :, 1], fused[:, :, 2]

    def __call__(self, x: Float[Array, "tokens width"], batch: int):
        """Attends over the whole sequence; also returns its keys and values for a cache."""
        query, key, value = self._split(x, batch)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.reshape(x.shape)), key, value

    def decode(self, x: Float[Array, "batch width"], keys, values, positions: Int[Array, " batch"]):
        """One more token for each row, each at its own position, against the cache."""
        query, key, value = self._split(x, x.shape[0])
        rows = jnp.arange(x.shape[0])
        keys = keys.at[rows, positions].set(key[:, 0], unique_indices=True)
        values = values.at[rows, positions].set(value[:, 0], unique_indices=True)
        seen = jnp.arange(keys.shape[1]) <= positions[:, None]
        mixed = jax.nn.dot_product_attention(query, keys, values, mask=seen[:, None, None, :])
        return self.output(mixed.reshape(x.shape)), keys, values


class Block(nnx.Module):
    """Attention and a feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        hidden = config.mlp_ratio * config.width
        scale = nnx.initializers.normal(config.width**-0.5)
        out = nnx.initializers.normal((2 * config.layers * hidden) ** -0.5)
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.up = nnx.Linear(config.width, hidden, kernel_init=scale, rngs=rngs)
        self.down = nnx.Linear(hidden, config.width, kernel_init=out, rngs=rngs)

    def mlp(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class Decoder(nnx.Module):
    """A causal language model; `hidden` states times the tied embedding give logits."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.config = config
        self.embedding = nnx.Embed(config.vocab_size, config.width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Embed(config.max_length, config.width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    @property
    def head(self) -> Float[Array, "vocab width"]:
        """The output matrix: the embedding itself (tied)."""
        return self.embedding.embedding[...]

    def check_length(self, time: int) -> None:
        """Refuses more tokens than there are positions: an embedding looked up past its end is NaN."""
        if time > self.config.max_length:
            raise UserError(
                f"{time} tokens do not fit into this policy's {self.config.max_length} positions: "
                "raise policy.max_length, or lower task.prompt_tokens or task.completion_tokens."
            )

    def hidden(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time width"]:
        """Final hidden states; the one at `t` predicts the token at `t + 1`.

        Attention is causal, so padding on the right changes nothing to its left.
        """
        return self.prefill(ids)[0]

    def prefill(self, ids: Int[Array, "batch time"]):
        """`hidden(ids)` and the `KeyValueCache` of these tokens.

        Raises:
          UserError: there are more of them than `max_length`.
        """
        batch, time = ids.shape
        self.check_length(time)
        x = self.embedding(ids) + self.positions(jnp.arange(time))
        x = x.reshape(batch * time, -1)
        keys, values = [], []
        for block in self.blocks:
            mixed, key, value = block.attention(block.attention_norm(x), batch)
            x = block.mlp(x + mixed)
            keys.append(key)
            values.append(value)
        return self.norm(x).reshape(batch, time, -1), KeyValueCache(tuple(keys), tuple(values))

    def decode(self, ids: Int[Array, " batch"], cache: KeyValueCache, positions: Int[Array, " batch"]):
        """Reads one more token for each row, each at its own position.

        Returns its hidden state `[batch, width]` and the cache with its keys and values. What a
        cache holds beyond a row's position is never looked at, so prompts may be padded on the right.
        """
        x = self.embedding(ids) + self.positions(positions)
        keys, values = list(cache.keys), list(cache.values)
        for i, block in enumerate(self.blocks):
            mixed, keys[i], values[i] = block.attention.decode(
                block.attention_norm(x), keys[i], values[i], positions
            )
            x = block.mlp(x + mixed)
        return self.norm(x), KeyValueCache(tuple(keys), tuple(values))
