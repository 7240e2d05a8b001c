"""What a decoder is made of, said in fields: from the small policy to GPT-2, Llama, Qwen and Gemma.

| | positions | norm | mlp | of its own |
|---|---|---|---|---|
| small policy | learned | rms | gelu_tanh | biases in the mlp only |
| GPT-2 | learned | layer | gelu_tanh | biases everywhere, tied |
| Llama 2, 3 | rotary (3.1: `llama3` scaling) | rms | silu, gated | kv_heads |
| Qwen 2, 2.5 | rotary | rms | silu, gated | `qkv_bias` |
| Qwen 3 | rotary | rms | silu, gated | `qk_norm`, head_dim |
| Gemma 1 | rotary | rms, `unit_offset` | gelu_tanh, gated | `embedding_scale`, head_dim, tied |
| Gemma 2 | rotary | and `post_norms` | gelu_tanh, gated | soft-caps, every other layer local |
| Gemma 3 | rotary, `local_rope` | and `post_norms` | gelu_tanh, gated | `qk_norm`, 5 local layers a global |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from discojax.errors import UserError, nearest

__all__ = ["DecoderConfig", "Rope"]


def _check_choices(config: Any) -> None:
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, str) and value not in (choices := get_args(hint)):
            raise UserError(f"{name}={value!r} is none of {', '.join(choices)}.{nearest(value, choices)}")


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., 2021) and how their angles are stretched to longer texts.

    Names are those of `rope_parameters` in a Hugging Face `config.json`, and so is their meaning.

    Attributes:
      theta: base of the wavelengths (`rope_theta`).
      kind: `default`; `linear` divides every angle by `factor`; `llama3` only those of long
        wavelengths; `yarn` (Peng et al., 2023) too, and scales the attention.
      factor: how much longer the texts may be.
      low_freq_factor, high_freq_factor: where `llama3` begins and ends to stretch.
      original_max_position_embeddings: length the model was first trained on (`llama3`, `yarn`).
      beta_fast, beta_slow: where `yarn` ends and begins to stretch, in turns.
      attention_factor: of `yarn`; None is `0.1 log(factor) + 1`.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_choices(self)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. The defaults are the small policy's.

    Attributes:
      vocab_size: number of tokens.
      layers: transformer blocks.
      width: size of the residual stream.
      heads: attention heads, those of the queries.
      max_length: longest sequence, prompt and completion together, in tokens.
      mlp_ratio: hidden size of the feed-forward layer over `width`, where `mlp_width` says none.
      mlp_width: hidden size of the feed-forward layer.
      kv_heads: heads of keys and values, each shared by `heads / kv_heads` queries; None is `heads`.
      head_dim: size of a head; None is `width / heads`.
      positions: added to the embedding (`learned`) or turned into queries and keys (`rotary`).
      rope: of rotary positions.
      local_rope: of the local layers, where it differs.
      norm: `rms` (a scale) or `layer` (centred; a scale and a bias).
      norm_eps: added to the variance.
      unit_offset: an RMS norm multiplies by one plus its scale.
      post_norms: a norm also after attention and after the feed-forward layer, before they are added.
      qkv_bias, attention_output_bias, mlp_bias: whether these dense layers have biases.
      qk_norm: RMS norms over each head of queries and keys, before rotary positions.
      query_scale: what queries are multiplied by; None is `head_dim ** -0.5`.
      attention_softcap: attention logits are `cap * tanh(logits / cap)`.
      logit_softcap: the same for the logits of tokens; whoever makes logits applies it.
      window: tokens a local layer sees, the current one among them.
      pattern: which layers are local, repeated until there are enough: `("local", "global")`.
      activation: of the feed-forward layer; `gelu_tanh` is the approximation.
      gated: the feed-forward layer is `down(activation(gate(x)) * up(x))`.
      embedding_scale: what embeddings are multiplied by, rounded to their dtype first.
      tied: the output head is the embedding; otherwise it has its own weights.
      scan: layers are stacked and run by one loop, so that compile time does not grow with depth.
        Weights are saved unstacked: see `blocks.stack` and `blocks.unstack`.
      remat: what a block keeps for its gradient: everything it needs (`none`), the results of its
        matrix products (`dots`), or nothing but its input (`block`).
      attention: which implementation of `jax.nn.dot_product_attention`; `auto` is what JAX chooses,
        `xla` today, but on a CPU attention written for one. `cudnn` wants an NVIDIA GPU, and no `vmap`
        around it before JAX 0.12; float32, and one query against a cache, go through `xla`.

    Raises:
      UserError: fields that contradict one another, or an unknown choice.
    """

    vocab_size: int
    layers: int = 3
    width: int = 128
    heads: int = 4
    max_length: int = 64
    mlp_ratio: int = 4
    mlp_width: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rope: Rope = Rope()
    local_rope: Rope | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    unit_offset: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = True
    qk_norm: bool = False
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    window: int | None = None
    pattern: tuple[Literal["local", "global"], ...] = ("global",)
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    gated: bool = False
    embedding_scale: float | None = None
    tied: bool = True
    scan: bool = False
    remat: Literal["none", "dots", "block"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.head_dim is None and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads: give head_dim.")
        if self.heads % self.key_heads:
            raise UserError(f"{self.heads} heads cannot share {self.key_heads} kv_heads evenly.")
        if self.positions == "rotary" and self.head_size % 2:
            raise UserError(f"Rotary positions turn pairs: head_dim {self.head_size} must be even.")
        if not self.pattern or not set(self.pattern) <= {"local", "global"}:
            raise UserError(f"pattern {self.pattern} is made of 'local' and 'global'.")
        if "local" in self.pattern and not (self.window and self.window > 0):
            raise UserError(f"Local layers need a window of at least 1 token, not {self.window}.")

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Size of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """Hidden size of the feed-forward layer."""
        return self.mlp_ratio * self.width if self.mlp_width is None else self.mlp_width

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer is local."""
        return tuple(self.pattern[i % len(self.pattern)] == "local" for i in range(self.layers))
