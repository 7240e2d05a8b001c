"""The encoder: a post-norm transformer that classifies a text, in Flax NNX.

RoBERTa and DistilBERT differ in what is added to the token embedding and in the head's
nonlinearity, which `EncoderConfig` says. As in the decoder, dense layers work on tokens flattened
to `[batch * time, width]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from discojax.errors import UserError
from discojax.policies.dense import dense

__all__ = ["Encoder", "EncoderConfig"]


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder.

    Attributes:
      vocab_size: number of tokens.
      labels: classes, or 1 for a score.
      layers: transformer blocks.
      width: size of the residual stream.
      heads: attention heads; must divide `width`.
      hidden: size of the feed-forward layer.
      max_length: longest text, in tokens, its special tokens included.
      first_position: the row of the position table that the first token uses: 0, or in RoBERTa the
        padding id plus 1, since its table has rows for padding that no token uses.
      types: rows of the segment table, of which a single text uses the first; 0 for no table.
      pooler: the nonlinearity of the head: tanh in RoBERTa, relu in DistilBERT.
      norm_epsilon: what every norm adds to the variance.

    Raises:
      UserError: heads do not divide the width.
    """

    vocab_size: int
    labels: int = 2
    layers: int = 6
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    max_length: int = 512
    first_position: int = 0
    types: int = 0
    pooler: Literal["tanh", "relu"] = "relu"
    norm_epsilon: float = 1e-12

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads.")


def _rows(table: nnx.Embed, ids: Array) -> Array:
    # Calling the module would give the dtype it was made with, not the one its rows have now.
    return jnp.take(table.embedding[...], ids, axis=0)


def _norm(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # E[x^2] - E[x]^2, the fast variance, cancels where a feature is large, as some are in RoBERTa.
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Self-attention in both directions."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.query = dense(width, width, rngs=rngs)
        self.key = dense(width, width, rngs=rngs)
        self.value = dense(width, width, rngs=rngs)
        self.output = dense(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "tokens width"], lengths: Int[Array, " batch"]):
        shape = (lengths.shape[0], -1, self.heads, x.shape[-1] // self.heads)
        query, key, value = (part(x).reshape(shape) for part in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths)
        return self.output(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Attention and a feed-forward layer; each is added to its input, then normed."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = _norm(config, rngs)
        self.up = dense(config.width, config.hidden, rngs=rngs)
        self.down = dense(config.hidden, config.width, rngs=rngs)
        self.mlp_norm = _norm(config, rngs)

    def __call__(self, x: Float[Array, "tokens width"], lengths: Int[Array, " batch"]):
        x = self.attention_norm(x + self.attention(x, lengths))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Encoder(nnx.Module):
    """A classifier of texts; as a reward model, one of its logits or their difference is the reward.

    It computes in the dtype of its parameters; statistics of norms, attention's softmax and the
    logits are float32.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.embedding = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.positions = nnx.Embed(config.first_position + config.max_length, width, rngs=rngs)
        self.types = nnx.Embed(config.types, width, rngs=rngs) if config.types else None
        self.embedding_norm = _norm(config, rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.pooler = dense(width, width, rngs=rngs)
        self.classifier = dense(width, config.labels, rngs=rngs)

    def check_length(self, time: int) -> None:
        """Refuses more tokens than there are positions: an embedding looked up past its end is NaN."""
        if time > self.config.max_length:
            raise UserError(
                f"{time} tokens do not fit into this encoder's {self.config.max_length} positions: "
                "truncate the texts."
            )

    def hidden(
        self, ids: Int[Array, "batch time"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch time width"]:
        """Final hidden states; those at and after a row's length mean nothing.

        Raises:
          UserError: there are more tokens than `max_length`.
        """
        batch, time = ids.shape
        self.check_length(time)
        x = _rows(self.embedding, ids) + _rows(self.positions, self.config.first_position + jnp.arange(time))
        if self.types is not None:
            x = x + _rows(self.types, jnp.int32(0))
        x = self.embedding_norm(x.reshape(batch * time, -1))
        for block in self.blocks:
            x = block(x, lengths)
        return x.reshape(batch, time, -1)

    def __call__(
        self, ids: Int[Array, "batch time"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch labels"]:
        """Logits of each text, float32, unchanged by padding.

        Args:
          ids: texts with their special tokens, padded on the right with any token.
          lengths: tokens of each text, at least 1.

        Raises:
          UserError: there are more tokens than `max_length`.
        """
        first = self.pooler(self.hidden(ids, lengths)[:, 0])
        pooled = jnp.tanh(first) if self.config.pooler == "tanh" else jax.nn.relu(first)
        classifier = self.classifier
        logits = jnp.einsum("bd,dl->bl", pooled, classifier.kernel[...], preferred_element_type=jnp.float32)
        return logits if classifier.bias is None else logits + classifier.bias[...]
