"""Small models on disk, written with neither Transformers nor our own writer."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

collect_ignore = ["transformers_models.py"]  # it needs PyTorch, and `test_parity.py` runs it

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def llama_shapes(layers=3, vocab=30, width=16, hidden=24, keys=8):
    """The tensors of a Llama, as its documentation has them."""
    block = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
        **{f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()},
    }


@pytest.fixture
def llama_tensors():
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape) for name, shape in llama_shapes().items()}
    return {name: tensor.astype(ml_dtypes.bfloat16).astype(np.float32) for name, tensor in drawn.items()}


@pytest.fixture
def write(tmp_path):
    """`write(tensors, files=1)`: a Llama's directory; `changes` are its configuration's."""

    def make(tensors, files=1, name="model", **changes):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({**LLAMA, **changes}))
        if files == 1:
            save_file(tensors, directory / "model.safetensors")
            return directory
        weight_map = {}
        for i in range(files):
            shard = f"model-{i + 1:05}-of-{files:05}.safetensors"
            held = {tensor: tensors[tensor] for tensor in sorted(tensors)[i::files]}
            save_file(held, directory / shard)
            weight_map |= dict.fromkeys(held, shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory

    return make
