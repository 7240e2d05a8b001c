"""GGUF files that the test writes with the format's own library."""

import gguf
import jax
import numpy as np
import pytest
from flax import nnx

from discojax.errors import UserError
from discojax.policies import Rope, pretrained

WIDTH, HEADS, KEYS, HIDDEN, LAYERS, VOCAB, HEAD = 32, 4, 2, 64, 2, 40, 8


def for_llama_cpp(weight, heads):
    """The order of rows that llama.cpp's rotary positions want, as its converter makes it."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors(tied, biased):
    rng = np.random.default_rng(0)
    shapes = {
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (KEYS * HEAD, WIDTH),
        "attn_v.weight": (KEYS * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_gate.weight": (HIDDEN, WIDTH),
        "ffn_up.weight": (HIDDEN, WIDTH),
        "ffn_down.weight": (WIDTH, HIDDEN),
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
    }
    if biased:
        shapes |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (KEYS * HEAD,), "attn_v.bias": (KEYS * HEAD,)}
    named = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    named |= {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        named["output.weight"] = (VOCAB, WIDTH)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in named.items()}


def written(path, made, architecture="llama", kind=None, epsilon=1e-5, base=500.0, **more):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_rope_freq_base(base)
    writer.add_eos_token_id(2)
    for name, value in more.items():
        getattr(writer, name)(value)
    for name, tensor in made.items():
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            tensor = for_llama_cpp(tensor, HEADS if "attn_q" in name else KEYS)
        if kind is not None and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", False)])
def test_each_tensor_is_where_it_belongs(tmp_path, architecture, tied):
    made = tensors(tied, biased=architecture == "qwen2")
    loaded = pretrained.load(written(tmp_path / "model.gguf", made, architecture))
    policy, config = loaded.policy, loaded.policy.config
    assert (config.norm_eps, config.rope.theta, config.tied) == (1e-5, 500.0, tied)
    assert loaded.hf_config["eos_token_id"] == 2
    np.testing.assert_array_equal(policy.embedding.embedding[...], made["token_embd.weight"])
    np.testing.assert_array_equal(policy.head, made["token_embd.weight" if tied else "output.weight"])
    np.testing.assert_array_equal(policy.norm.scale[...], made["output_norm.weight"])
    for i, block in enumerate(policy.blocks):
        for ours, theirs in (
            (block.attention.query, "attn_q"),
            (block.attention.key, "attn_k"),
            (block.attention.value, "attn_v"),
            (block.attention.output, "attn_output"),
            (block.mlp.gate, "ffn_gate"),
            (block.mlp.up, "ffn_up"),
            (block.mlp.down, "ffn_down"),
        ):
            np.testing.assert_array_equal(ours.kernel[...].T, made[f"blk.{i}.{theirs}.weight"])
            if ours.bias is not None:
                np.testing.assert_array_equal(ours.bias[...], made[f"blk.{i}.{theirs}.bias"])
        np.testing.assert_array_equal(block.attention_norm.scale[...], made[f"blk.{i}.attn_norm.weight"])
        np.testing.assert_array_equal(block.mlp_norm.scale[...], made[f"blk.{i}.ffn_norm.weight"])
    assert (policy.blocks[0].attention.query.bias is not None) == (architecture == "qwen2")


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16", "BF16"])
def test_quantised_tensors_are_what_the_library_makes_of_them(tmp_path, kind):
    made, quantised = tensors(True, False), gguf.GGMLQuantizationType[kind]
    policy = pretrained.load(written(tmp_path / "model.gguf", made, kind=quantised), dtype="float32").policy
    original = made["blk.1.attn_q.weight"]
    expected = gguf.dequantize(gguf.quantize(original, quantised), quantised)
    # Rows are quantised one by one, so their order does not matter to the result.
    np.testing.assert_array_equal(policy.blocks[1].attention.query.kernel[...].T, expected)
    assert 0 < np.abs(expected - original).max() < 0.2


def test_a_gguf_file_becomes_a_directory(tmp_path):
    loaded = pretrained.load(written(tmp_path / "model.gguf", tensors(True, False)), scan=True)
    again = pretrained.load(pretrained.save(loaded, tmp_path / "model"), scan=True)
    before, after = (jax.tree.leaves(nnx.state(one.policy)) for one in (loaded, again))
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    assert again.policy.config == loaded.policy.config


def test_llama_3_1_s_stretched_angles_are_read(tmp_path):
    """As llama.cpp's converter writes them: what each angle is divided by."""
    factors = []
    for wavelength in 2 * np.pi * 5e5 ** (np.arange(0, HEAD, 2) / HEAD):
        smooth = (8192 / wavelength - 1) / (4 - 1)
        between = 1 / ((1 - smooth) / 8 + smooth)
        factors.append(1 if wavelength < 8192 / 4 else 8 if wavelength > 8192 else between)
    assert 1 < factors[2] < factors[3] == 8
    made = tensors(True, False) | {"rope_freqs.weight": np.array(factors, np.float32)}
    loaded = pretrained.load(written(tmp_path / "model.gguf", made, base=5e5))
    assert loaded.policy.config.rope == Rope(5e5, "llama3", 8.0)
    again = pretrained.load(pretrained.save(loaded, tmp_path / "model"))
    assert again.policy.config == loaded.policy.config


def test_what_cannot_be_read_is_told(tmp_path):
    def refused(path, match):
        with pytest.raises(UserError, match=match):
            pretrained.load(path)

    made = tensors(True, False)
    refused(written(tmp_path / "a.gguf", made, "falcon"), "'falcon'; GGUF files of llama, qwen2, qwen3 are")
    del made["blk.1.ffn_up.weight"]
    refused(written(tmp_path / "b.gguf", made), r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'")
    del made["token_embd.weight"]
    refused(written(tmp_path / "c.gguf", made), r"no tensor 'token_embd\.weight'")
    made = tensors(True, False)
    scaling = {"add_rope_scaling_type": gguf.RopeScalingType.YARN}
    refused(written(tmp_path / "d.gguf", made, **scaling), r"scales its rotary positions \('yarn'\)")
    made["rope_freqs.weight"] = np.array([1, 2, 3, 4], np.float32)
    refused(written(tmp_path / "e.gguf", made), r"'rope_freqs\.weight'\) otherwise than Llama 3\.1")
    (tmp_path / "f.gguf").write_bytes(b"GGUF" + bytes(20))
    refused(tmp_path / "f.gguf", "is not a GGUF file that can be read")
    (tmp_path / "g.gguf").write_bytes(b"something else altogether")
    refused(tmp_path / "g.gguf", "is not a GGUF file that can be read")
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "h.gguf").write_bytes(whole[:2000])
    refused(tmp_path / "h.gguf", "is not a GGUF file that can be read")
