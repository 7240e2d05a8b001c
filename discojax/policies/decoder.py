"""The decoder: a causal language model in Flax NNX, from the small policy to GPT-2, Llama, Qwen, Gemma.

What differs between them is in `DecoderConfig`; here is what they share. Its parameters:

    embedding.embedding              [vocab, width]
    positions.embedding              [max_length, width], where learned
    lm_head.embedding                [vocab, width], where untied
    norm.{scale,bias}                and the blocks', wherever `.norm` is read below
    blocks.0.attention_norm, .attention_post_norm, .mlp_norm, .mlp_post_norm
    blocks.0.attention.{query,key,value,output}.{kernel,bias}    [inputs, outputs], [outputs]
    blocks.0.attention.{query_norm,key_norm}.scale               [head]
    blocks.0.mlp.{gate,up,down}.{kernel,bias}

Scanned layers have no number, and a leading axis of layers: `blocks.mlp.up.kernel`.

Every dense layer works on tokens flattened to `[batch * time, width]`: with `[batch, time, width]`
the weight gradients contract two dimensions and leave the fast matrix product on a CPU (measured
at 1.5 times a whole gradient). Weights are separate leaves, unless `scan`, for the same reason.
Everything is computed in the dtype of the parameters, but for the statistics of norms, rotary
positions and the softmax, which are float32.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from discojax.errors import UserError
from discojax.policies import blocks
from discojax.policies.architecture import DecoderConfig
from discojax.policies.attention import Branches, KeyValueCache, Views
from discojax.policies.norms import Norm
from discojax.policies.sharding import batch_over_model

__all__ = ["Decoder", "DecoderConfig", "KeyValueCache"]


def _rows(table: nnx.Embed, ids: Array) -> Array:
    # Calling the module would give the dtype it was made with, not the one its rows have now.
    return jnp.take(table.embedding[...], ids, axis=0)


class Decoder(nnx.Module):
    """A causal language model; `hidden` states times the transposed `head` give logits."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.config = config

        def embed(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, config.width, embedding_init=small, rngs=rngs)

        self.embedding = embed(config.vocab_size)
        self.positions = embed(config.max_length) if config.positions == "learned" else None
        self.blocks: Any = blocks.make_blocks(config, rngs=rngs)
        self.norm = Norm(config.width, config)
        self.lm_head = None if config.tied else embed(config.vocab_size)

    @property
    def head(self) -> Float[Array, "vocab width"]:
        """The output matrix: the embedding itself where it is tied."""
        return (self.embedding if self.lm_head is None else self.lm_head).embedding[...]

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

        Raises:
          UserError: there are more tokens than `max_length`.
        """
        return self._read(ids, keep=False)[0]

    def branches(
        self,
        prompt_ids: Int[Array, "batch prompt"],
        continuation_ids: Int[Array, "batch count time"],
        prompt_lengths: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch prompt width"], Float[Array, "batch count time width"]]:
        """Hidden states of prompts, padded on the right, and of several continuations of each.

        They are those of `hidden` on each prompt with each of its continuations, but a prompt is read
        once for all of them. What lies past the last position there is means nothing.
        """
        rows, count, time = continuation_ids.shape
        room = prompt_ids.shape[1]
        ids = jnp.concatenate([prompt_ids, continuation_ids.reshape(rows, -1)], axis=1)
        # Past the last position there is only padding, but looking it up would give NaN.
        after = jnp.minimum(prompt_lengths[:, None] + jnp.arange(time), self.config.max_length - 1)
        before = jnp.broadcast_to(jnp.arange(room), (rows, room))
        positions = jnp.concatenate([before, jnp.tile(after, count)], axis=1)
        views = Views(self.config, positions, Branches(room, after, prompt_lengths))
        x, _ = blocks.prefill(self.config, self.blocks, self._embed(ids, positions), views, keep=False)
        x = self.norm(batch_over_model(x))
        return x[:, :room], x[:, room:].reshape(rows, count, time, -1)

    def prefill(
        self, ids: Int[Array, "batch time"], room: int = 0
    ) -> tuple[Float[Array, "batch time width"], KeyValueCache]:
        """`hidden(ids)` and the `KeyValueCache` of these tokens, with space for `room` more.

        Raises:
          UserError: there are more of them than `max_length`.
        """
        x, cache = self._read(ids, keep=True)
        assert cache is not None
        return x, cache.with_room(room)

    def decode(
        self, ids: Int[Array, " batch"], cache: KeyValueCache, positions: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch width"], KeyValueCache]:
        """Reads one more token for each row, each at its own position.

        Returns its hidden state and the cache with its keys and values. What a cache holds beyond a
        row's position is never looked at, so prompts may be padded on the right.
        """
        views = Views(self.config, positions[:, None])
        x, cache = blocks.decode(
            self.config, self.blocks, self._embed(ids, positions), views, cache, positions
        )
        return self.norm(x), cache

    def _read(self, ids: Int[Array, "batch time"], *, keep: bool):
        self.check_length(ids.shape[1])
        positions = jnp.arange(ids.shape[1])
        views = Views(self.config, positions)
        x, cache = blocks.prefill(self.config, self.blocks, self._embed(ids, positions), views, keep=keep)
        return self.norm(batch_over_model(x)), cache

    def _embed(self, ids: Array, positions: Array) -> Array:
        x = _rows(self.embedding, ids)
        if self.config.embedding_scale is not None:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        return x if self.positions is None else x + _rows(self.positions, positions)
