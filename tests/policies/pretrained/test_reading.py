"""Reading weights: which tensor goes where, dtypes, shards, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, processors

from discojax.errors import UserError
from discojax.policies import pretrained


def leaf(policy, path):
    for part in path.split("."):
        policy = policy[int(part)] if part.isdigit() else getattr(policy, part)
    return np.asarray(policy[...])


def test_each_tensor_is_where_it_belongs(write, llama_tensors):
    policy = pretrained.load(write(llama_tensors)).policy
    t = llama_tensors
    np.testing.assert_array_equal(leaf(policy, "embedding.embedding"), t["model.embed_tokens.weight"])
    np.testing.assert_array_equal(policy.head, t["lm_head.weight"])
    np.testing.assert_array_equal(leaf(policy, "norm.scale"), t["model.norm.weight"])
    for i in range(3):
        block = f"model.layers.{i}"
        for ours, theirs in (
            ("attention.query.kernel", "self_attn.q_proj"),
            ("attention.key.kernel", "self_attn.k_proj"),
            ("attention.value.kernel", "self_attn.v_proj"),
            ("attention.output.kernel", "self_attn.o_proj"),
            ("mlp.gate.kernel", "mlp.gate_proj"),
            ("mlp.up.kernel", "mlp.up_proj"),
            ("mlp.down.kernel", "mlp.down_proj"),
            ("attention_norm.scale", "input_layernorm"),
            ("mlp_norm.scale", "post_attention_layernorm"),
        ):
            np.testing.assert_array_equal(leaf(policy, f"blocks.{i}.{ours}"), t[f"{block}.{theirs}.weight"].T)


def test_stacked_layers_are_the_layers(write, llama_tensors):
    directory = write(llama_tensors)
    apart, stacked = pretrained.load(directory).policy, pretrained.load(directory, scan=True).policy
    assert stacked.config.scan
    for path in ("attention.query.kernel", "mlp.down.kernel", "mlp_norm.scale"):
        expected = np.stack([leaf(apart, f"blocks.{i}.{path}") for i in range(3)])
        np.testing.assert_array_equal(leaf(stacked, f"blocks.{path}"), expected)


def same(one, other):
    a, b = (jax.tree.leaves(nnx.state(policy)) for policy in (one, other))
    return len(a) == len(b) and all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True)
    )


def test_one_file_or_several_with_or_without_the_prefix(write, llama_tensors):
    expected = pretrained.load(write(llama_tensors)).policy
    assert same(pretrained.load(write(llama_tensors, files=3, name="sharded")).policy, expected)
    bare = {name.removeprefix("model."): tensor for name, tensor in llama_tensors.items()}
    assert same(pretrained.load(write(bare, name="bare")).policy, expected)


def test_dtypes_are_the_file_s_or_as_asked(write, llama_tensors):
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in llama_tensors.items()}
    directory = write(half)
    wide = pretrained.load(write(llama_tensors, name="wide")).policy
    assert same(pretrained.load(directory, dtype="float32").policy, wide)
    narrow = pretrained.load(directory).policy
    assert same(pretrained.load(write(llama_tensors, name="cast"), dtype=jnp.bfloat16).policy, narrow)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(narrow))} == {jnp.dtype(jnp.bfloat16)}
    assert nnx.eval_shape(lambda p: p.hidden(jnp.ones((1, 4), int)), narrow).dtype == jnp.bfloat16
    with pytest.raises(UserError, match="The dtype 'bf16' is none of"):
        pretrained.load(directory, dtype="bf16")
    with pytest.raises(UserError, match="The dtype 'int8' is none of"):
        pretrained.load(directory, dtype="int8")


def test_a_tied_head_is_the_embedding_even_if_it_is_stored_too(write, llama_tensors):
    policy = pretrained.load(write(llama_tensors, tie_word_embeddings=True)).policy
    np.testing.assert_array_equal(policy.head, llama_tensors["model.embed_tokens.weight"])
    assert policy.lm_head is None


NAME = "model.layers.1.mlp.up_proj.weight"


def test_a_missing_tensor_is_named(write, llama_tensors):
    del llama_tensors[NAME]
    with pytest.raises(UserError, match=rf"has no tensor '{NAME}', which its configuration asks for"):
        pretrained.load(write(llama_tensors))


def test_an_unexpected_tensor_is_named(write, llama_tensors):
    llama_tensors["model.layers.3.mlp.up_proj.weight"] = llama_tensors[NAME]
    with pytest.raises(
        UserError, match=r"has a tensor 'model\.layers\.3\.mlp\.up_proj\.weight' that no Llama"
    ):
        pretrained.load(write(llama_tensors))


def test_a_wrong_shape_is_told(write, llama_tensors):
    llama_tensors[NAME] = llama_tensors[NAME].T.copy()
    with pytest.raises(UserError, match=rf"'{NAME}' in .* is \[16, 24\]; by its configuration .* \[24, 16\]"):
        pretrained.load(write(llama_tensors))


def test_a_wrong_dtype_is_told(write, llama_tensors):
    llama_tensors[NAME] = llama_tensors[NAME].astype(np.int8)
    with pytest.raises(UserError, match=rf"'{NAME}' in .* is I8; weights must be one of F64, F32, F16, BF16"):
        pretrained.load(write(llama_tensors))


def test_a_missing_shard_is_named_with_a_tensor_of_it(write, llama_tensors):
    directory = write(llama_tensors, files=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"lacks the shard model-00002-of-00003.safetensors, which has 'model\..*' and 9 more"
    ):
        pretrained.load(directory)


def test_a_shard_of_another_version_is_told(write, llama_tensors):
    directory = write(llama_tensors, files=2)
    shutil.copyfile(
        directory / "model-00001-of-00002.safetensors", directory / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors has no tensor '.*', which"):
        pretrained.load(directory)


def test_an_index_does_not_point_elsewhere(write, llama_tensors):
    directory = write(llama_tensors, files=2)
    file = directory / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {NAME: "../other.safetensors"}}))
    with pytest.raises(UserError, match="which is no file beside it"):
        pretrained.load(directory)


def test_a_truncated_file_is_told(write, llama_tensors):
    directory = write(llama_tensors)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a safetensors file that can be read"):
        pretrained.load(directory)


def test_pickled_weights_are_refused_with_a_way_out(write, llama_tensors):
    directory = write(llama_tensors)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"is not opened: convert it .*LlamaForCausalLM\.from_pretrained"):
        pretrained.load(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        pretrained.load(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "'mamba', which is not supported; supported are gpt2, llama, qwen2, qwen3"),
        ({"model_type": "gemma3"}, "'gemma3', which is not supported; .* gemma3_text, roberta, distilbert"),
        ({"model_type": None}, "has no model_type"),
        ({"hidden_size": "wide"}, "not a valid configuration of 'llama'.*hidden_size"),
        ({"hidden_size": 18}, "not a valid configuration of 'llama'"),
        ({"hidden_act": "mish"}, "its activation 'mish' is none of"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "its rope_type 'dynamic' is none of",
        ),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 kv_heads"),
        *(
            ({name: 0}, rf"config\.json says that its {name} is 0, which must be at least 1")
            for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        ),
        *(
            (
                {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": factor}},
                rf"the factor of its rotary positions is {factor!r}, which is no positive number",
            )
            for factor in ("8", 0.0)
        ),
    ],
)
def test_a_configuration_that_is_not_supported_is_told(write, llama_tensors, change, message):
    with pytest.raises(UserError, match=message):
        pretrained.load(write(llama_tensors, **change))


def test_a_directory_without_a_configuration_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, so it is not a model's directory"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON that can be read"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is not a JSON object"):
        pretrained.load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_told(write, llama_tensors):
    directory = write(llama_tensors)
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(30)}, unk_token="w0")).save(
        str(directory / "tokenizer.json")
    )
    pretrained.load(directory)
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(31)}, unk_token="w0")).save(
        str(directory / "tokenizer.json")
    )
    with pytest.raises(UserError, match="its token 'w30' has the id 30, and the embedding has 30 rows"):
        pretrained.load(directory)


def test_a_special_token_beyond_the_embedding_is_told_where_text_has_it(write, llama_tensors):
    """Gemma 3's of text has one for images, which its embedding has no row for."""
    directory = write(llama_tensors)
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(30)}, unk_token="w0"))
    made.add_special_tokens(["<image_soft_token>"])
    made.save(str(directory / "tokenizer.json"))
    pretrained.load(directory)
    made.post_processor = processors.TemplateProcessing(
        single="<image_soft_token> $A", special_tokens=[("<image_soft_token>", 30)]
    )
    made.save(str(directory / "tokenizer.json"))
    with pytest.raises(UserError, match="its token '<image_soft_token>' has the id 30, and .* 30 rows"):
        pretrained.load(directory)
