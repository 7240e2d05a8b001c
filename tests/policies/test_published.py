"""Published architectures: what Transformers makes of the models' own configurations."""

import json
from dataclasses import replace

import jax
import pytest
from flax import nnx

from discojax.errors import UserError
from discojax.policies.decoder import Decoder
from discojax.policies.published import PUBLISHED, architecture_of

PARAMETERS = {
    "gpt2": 124_439_808,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "google/gemma-7b": 8_537_680_896,
    "smollm2": 134_515_008,
}
CONFIGS = {  # of the hub, without what is the default or says nothing about shapes
    "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new"},
    "google/gemma-7b": {"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh"},
    "meta-llama/Meta-Llama-3-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "smollm2": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_as_many_parameters_as_were_published(name):
    weights = nnx.state(nnx.eval_shape(lambda: Decoder(PUBLISHED[name], rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_a_config_json_says(name, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    read = architecture_of(str(tmp_path))
    named = PUBLISHED[name]
    same = {"mlp_width": named.mlp_size, "kv_heads": named.key_heads, "head_dim": named.head_size}
    assert replace(read, **same) == replace(named, **same)
    assert architecture_of(str(tmp_path / "config.json")) == read


def test_what_is_not_known_is_answered_with_what_is(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no folder with a config\.json.*Did you mean 'google/gemma-7b'\?"):
        architecture_of("google/gema-7b")
