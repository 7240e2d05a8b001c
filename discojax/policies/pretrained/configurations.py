"""From the configuration of Transformers to ours, for each architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig, Rope
from discojax.policies.encoder import EncoderConfig

__all__ = ["distilbert", "gemma", "gemma2", "gemma3", "gpt2", "llama", "qwen2", "qwen3", "roberta"]

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


def _activation(name: str) -> Any:
    if name not in _ACTIVATIONS:
        raise UserError(f"its activation {name!r} is none of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _refuse(**settings: tuple[Any, Any]) -> None:
    """Refuses settings, `name=(value, supported)`, that would change what the model computes."""
    for name, (value, supported) in settings.items():
        if value is not None and value != supported:
            raise UserError(f"its {name} is {value!r}; only {supported!r} is supported.")


def _rope(parameters: Mapping[str, Any]) -> Rope:
    kind = parameters["rope_type"]
    _refuse(partial_rotary_factor=(parameters.get("partial_rotary_factor"), 1.0))
    known = {"default", "linear", "llama3", "yarn"}
    if kind not in known:
        raise UserError(f"its rope_type {kind!r} is none of {', '.join(sorted(known))}.")
    _refuse(
        mscale=(parameters.get("mscale"), None),
        mscale_all_dim=(parameters.get("mscale_all_dim"), None),
        truncate=(parameters.get("truncate"), True),
    )
    fields = {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
    }
    given = {name: value for name, value in parameters.items() if name in fields and value is not None}
    given = {"factor": parameters.get("factor"), **given} if kind != "default" else {}
    for name, value in {"rope_theta": parameters["rope_theta"], **given}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"the {name} of its rotary positions is {value!r}, which is no positive number.")
    return Rope(theta=parameters["rope_theta"], kind=kind, **given)


def _pattern(layer_types: Sequence[str]) -> tuple[Any, ...]:
    """The shortest pattern that, repeated, gives the layers."""
    layers = ["local" if kind == "sliding_attention" else "global" for kind in layer_types]
    sizes = range(1, len(layers) + 1)
    size = next(n for n in sizes if all(layer == layers[i % n] for i, layer in enumerate(layers)))
    return tuple(layers[:size])


def llama(c: Any) -> DecoderConfig:
    """Llama 2 and 3."""
    local = getattr(c, "layer_types", None) or ["full_attention"]
    pattern = _pattern(local)
    heads = c.num_attention_heads
    # Gemma 3 has one set of rotary parameters for each kind of layer.
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    nested = c.rope_parameters.get("sliding_attention")
    return DecoderConfig(
        vocab_size=c.vocab_size,
        layers=c.num_hidden_layers,
        width=c.hidden_size,
        heads=heads,
        kv_heads=c.num_key_value_heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // heads,
        mlp_width=c.intermediate_size,
        max_length=c.max_position_embeddings,
        positions="rotary",
        rope=_rope(rope),
        local_rope=_rope(nested) if nested else None,
        norm_eps=c.rms_norm_eps,
        qkv_bias=bool(getattr(c, "attention_bias", False)),
        attention_output_bias=bool(getattr(c, "attention_bias", False)),
        mlp_bias=bool(getattr(c, "mlp_bias", False)),
        window=c.sliding_window if "local" in pattern else None,
        pattern=pattern,
        activation=_activation(getattr(c, "hidden_activation", None) or c.hidden_act),
        gated=True,
        tied=c.tie_word_embeddings,
    )


def qwen2(c: Any) -> DecoderConfig:
    """Qwen 2 and 2.5: Llama with biases on queries, keys and values."""
    return replace(llama(c), qkv_bias=True)


def qwen3(c: Any) -> DecoderConfig:
    """Qwen 3: Llama with norms on queries and keys."""
    return replace(llama(c), qk_norm=True)


def gemma(c: Any) -> DecoderConfig:
    """Gemma 1: Llama with scaled embeddings and norms that add one to their scale."""
    _refuse(use_bidirectional_attention=(c.use_bidirectional_attention, False))
    return replace(llama(c), unit_offset=True, embedding_scale=float(c.hidden_size) ** 0.5)


def gemma2(c: Any) -> DecoderConfig:
    """Gemma 2: Gemma with more norms, soft-caps and local layers."""
    return replace(
        gemma(c),
        post_norms=True,
        query_scale=float(c.query_pre_attn_scalar) ** -0.5,
        attention_softcap=c.attn_logit_softcapping,
        logit_softcap=c.final_logit_softcapping,
    )


def gemma3(c: Any) -> DecoderConfig:
    """Gemma 3, of text: Gemma 2 with norms on queries and keys."""
    return replace(gemma2(c), qk_norm=True)


def gpt2(c: Any) -> DecoderConfig:
    """GPT-2."""
    _refuse(
        scale_attn_by_inverse_layer_idx=(c.scale_attn_by_inverse_layer_idx, False),
        add_cross_attention=(c.add_cross_attention, False),
    )
    return DecoderConfig(
        vocab_size=c.vocab_size,
        layers=c.n_layer,
        width=c.n_embd,
        heads=c.n_head,
        mlp_width=c.n_inner,
        max_length=c.n_positions,
        norm="layer",
        norm_eps=c.layer_norm_epsilon,
        qkv_bias=True,
        attention_output_bias=True,
        query_scale=None if c.scale_attn_weights else 1.0,
        activation=_activation(c.activation_function),
        tied=c.tie_word_embeddings,
    )


def roberta(c: Any) -> EncoderConfig:
    """RoBERTa."""
    _refuse(hidden_act=(c.hidden_act, "gelu"), is_decoder=(c.is_decoder, False))
    first = c.pad_token_id + 1
    return EncoderConfig(
        vocab_size=c.vocab_size,
        labels=c.num_labels,
        layers=c.num_hidden_layers,
        width=c.hidden_size,
        heads=c.num_attention_heads,
        hidden=c.intermediate_size,
        max_length=c.max_position_embeddings - first,
        first_position=first,
        types=c.type_vocab_size,
        pooler="tanh",
        norm_epsilon=c.layer_norm_eps,
    )


def distilbert(c: Any) -> EncoderConfig:
    """DistilBERT."""
    _refuse(activation=(c.activation, "gelu"))
    return EncoderConfig(
        vocab_size=c.vocab_size,
        labels=c.num_labels,
        layers=c.n_layers,
        width=c.dim,
        heads=c.n_heads,
        hidden=c.hidden_dim,
        max_length=c.max_position_embeddings,
    )
