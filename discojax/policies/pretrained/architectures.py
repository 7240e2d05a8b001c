"""The table of architectures: how each one's `config.json` and tensors correspond to a policy of ours.

An architecture is a function from its Transformers configuration to ours, and rows that say which
tensor of a checkpoint is which of our parameters. A row that a policy has no parameter for (a bias,
a norm) does not apply to it, so one list of rows serves all that derive from Llama.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig
from discojax.policies.encoder import EncoderConfig
from discojax.policies.pretrained import configurations

__all__ = ["ARCHITECTURES", "Architecture", "Row", "architecture", "policy_config"]


@dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint and one parameter of ours.

    Attributes:
      name: of the tensor; `{}` stands for the layer.
      path: of the parameter, such as `blocks.{}.up.kernel`.
      transposed: the tensor is the parameter's transpose (PyTorch's dense layers are).
      part: `(i, n)` where the parameter is the `i`-th of `n` that the tensor joins on its last axis.
    """

    name: str
    path: str
    transposed: bool = False
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Architecture:
    """What is particular to one `model_type`.

    Attributes:
      model_class: what `architectures` in a `config.json` says.
      config: from a Transformers configuration to ours.
      rows: the correspondence of tensors.
      prefix: what a checkpoint of the model without its head leaves out of the names.
      ignored: patterns of tensors that a checkpoint may have and that are no weights of the policy.
    """

    model_class: str
    config: Callable[[Any], DecoderConfig | EncoderConfig]
    rows: tuple[Row, ...]
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def _dense(name: str, path: str, transposed: bool = True) -> tuple[Row, Row]:
    return Row(f"{name}.weight", f"{path}.kernel", transposed), Row(f"{name}.bias", f"{path}.bias")


def _norm(name: str, path: str) -> tuple[Row, Row]:
    return Row(f"{name}.weight", f"{path}.scale"), Row(f"{name}.bias", f"{path}.bias")


def _rows(block: str, ours: Mapping[str, str], rows: Callable[[str, str], tuple[Row, ...]]) -> list[Row]:
    return [row for name, path in ours.items() for row in rows(f"{block}{name}", f"blocks.{{}}.{path}")]


def _llama_rows(norms: Mapping[str, str]) -> tuple[Row, ...]:
    dense = {
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    head_norms = {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
    return (
        Row("model.embed_tokens.weight", "embedding.embedding"),
        *_rows("model.layers.{}.", dense, _dense),
        *_rows("model.layers.{}.", {**head_norms, **norms}, _norm),
        *_norm("model.norm", "norm"),
        Row("lm_head.weight", "lm_head.embedding"),
    )


_PRE_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
_SANDWICH_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def _gpt2_rows() -> tuple[Row, ...]:
    block = "transformer.h.{}."
    # GPT-2's dense layers are stored as ours are, and those of attention joined into one.
    joined = tuple(
        Row(f"{block}attn.c_attn.{kind}", f"blocks.{{}}.attention.{name}.{ours}", part=(i, 3))
        for i, name in enumerate(("query", "key", "value"))
        for kind, ours in (("weight", "kernel"), ("bias", "bias"))
    )
    dense = {"attn.c_proj": "attention.output", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    return (
        Row("transformer.wte.weight", "embedding.embedding"),
        Row("transformer.wpe.weight", "positions.embedding"),
        *joined,
        *_rows(block, dense, lambda name, path: _dense(name, path, transposed=False)),
        *_rows(block, {"ln_1": "attention_norm", "ln_2": "mlp_norm"}, _norm),
        *_norm("transformer.ln_f", "norm"),
        Row("lm_head.weight", "lm_head.embedding"),
    )


def _encoder_rows(
    model: str, block: str, dense: Mapping[str, str], norms: Mapping[str, str], pooler: str, classifier: str
) -> tuple[Row, ...]:
    return (
        Row(f"{model}.embeddings.word_embeddings.weight", "embedding.embedding"),
        Row(f"{model}.embeddings.position_embeddings.weight", "positions.embedding"),
        Row(f"{model}.embeddings.token_type_embeddings.weight", "types.embedding"),
        *_norm(f"{model}.embeddings.LayerNorm", "embedding_norm"),
        *_rows(block, dense, _dense),
        *_rows(block, norms, _norm),
        *_dense(pooler, "pooler"),
        *_dense(classifier, "classifier"),
    )


_ROBERTA_ROWS = _encoder_rows(
    "roberta",
    "roberta.encoder.layer.{}.",
    {
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.output",
        "intermediate.dense": "up",
        "output.dense": "down",
    },
    {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "mlp_norm"},
    "classifier.dense",
    "classifier.out_proj",
)

_DISTILBERT_ROWS = _encoder_rows(
    "distilbert",
    "distilbert.transformer.layer.{}.",
    {
        "attention.q_lin": "attention.query",
        "attention.k_lin": "attention.key",
        "attention.v_lin": "attention.value",
        "attention.out_lin": "attention.output",
        "ffn.lin1": "up",
        "ffn.lin2": "down",
    },
    {"sa_layer_norm": "attention_norm", "output_layer_norm": "mlp_norm"},
    "pre_classifier",
    "classifier",
)

_LLAMA = Architecture(
    "LlamaForCausalLM", configurations.llama, _llama_rows(_PRE_NORMS), "model.", ("*.rotary_emb.inv_freq",)
)
_GEMMA2 = replace(
    _LLAMA, model_class="Gemma2ForCausalLM", config=configurations.gemma2, rows=_llama_rows(_SANDWICH_NORMS)
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        configurations.gpt2,
        _gpt2_rows(),
        "transformer.",
        ("*.attn.bias", "*.attn.masked_bias"),  # the causal mask, in files of years ago
    ),
    "llama": _LLAMA,
    "qwen2": replace(_LLAMA, model_class="Qwen2ForCausalLM", config=configurations.qwen2),
    "qwen3": replace(_LLAMA, model_class="Qwen3ForCausalLM", config=configurations.qwen3),
    "gemma": replace(_LLAMA, model_class="GemmaForCausalLM", config=configurations.gemma),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, model_class="Gemma3ForCausalLM", config=configurations.gemma3),
    "roberta": Architecture(
        "RobertaForSequenceClassification",
        configurations.roberta,
        _ROBERTA_ROWS,
        ignored=("*.position_ids", "roberta.pooler.*"),
    ),
    "distilbert": Architecture(
        "DistilBertForSequenceClassification",
        configurations.distilbert,
        _DISTILBERT_ROWS,
        ignored=("*.position_ids",),
    ),
}
"""By `model_type`, as in a `config.json`."""


def architecture(model_type: str, where: str) -> Architecture:
    """The architecture of that `model_type`.

    Raises:
      UserError: it is not supported; the text says which are.
    """
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"{where} is of the architecture {model_type!r}, which is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[model_type]


_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar"),
    *("n_embd", "n_inner", "n_layer", "n_positions", "n_head"),
    *("dim", "hidden_dim", "n_layers", "n_heads"),
)
"""What a `config.json` counts, under the names of all architectures; by some of it others are divided."""


def policy_config(config: Mapping[str, Any], where: str) -> DecoderConfig | EncoderConfig:
    """Our configuration from a `config.json`, with the defaults that Transformers gives it.

    Raises:
      UserError: its architecture is not supported, or it has a setting that is not, or it is wrong;
        or Transformers is not installed.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{where} has no model_type, so its architecture is not known.")
    found = architecture(model_type, where)
    for name in _SIZES:
        size = config.get(name)
        if isinstance(size, int | float) and size < 1:
            raise UserError(f"{where} says that its {name} is {size}, which must be at least 1.")
    transformers_configs, invalid = _transformers(where)
    try:
        return found.config(transformers_configs[model_type].from_dict(dict(config)))
    except UserError as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    except (invalid, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{where} is not a valid configuration of {model_type!r}: {reason}") from error


def _transformers(where: str) -> tuple[Mapping[str, Any], type[Exception]]:
    """Its configurations by `model_type`, and what they raise where they are wrong."""
    # Otherwise it says at its import that there is no PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING
    except ImportError:
        raise UserError(
            f"Reading {where} takes the extra `hub`: run `pip install 'discojax[hub]'`."
        ) from None
    return CONFIG_MAPPING, StrictDataclassError
