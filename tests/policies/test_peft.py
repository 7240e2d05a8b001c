import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

pytest.importorskip("transformers")

from discojax.errors import UserError
from discojax.policies import peft, pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.policies.pretrained.architectures import policy_config

GPT2 = {
    "model_type": "gpt2", "vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 24, "tie_word_embeddings": True,
}  # fmt: skip
IDS = jnp.arange(20).reshape(2, 10) % 61


def base(config, directory, scan=False) -> pretrained.Pretrained:
    """A small policy of an architecture, saved and loaded."""
    made = Decoder(policy_config(config, "the test"), rngs=nnx.Rngs(0))
    pretrained.save(pretrained.Pretrained(made, config, Path("nowhere")), directory)
    return pretrained.load(directory, scan=scan)


def trained(loaded, targets=("query", "value", "output", "mlp.up")):
    """With adapters that do something."""
    graph, trainable, frozen = partition(add_lora(loaded.policy, LoraConfig(3, 5.0, targets), nnx.Rngs(1)))
    rng = np.random.default_rng(0)
    policy = nnx.merge(graph, jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), trainable), frozen)
    return dataclasses.replace(loaded, policy=policy)


@jax.jit
def logits(policy):
    return policy.hidden(IDS) @ policy.head.T


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("scan", [False, True], ids=["listed", "scanned"])
def test_saved_adapters_load_onto_their_base(config, scan, tmp_path):
    loaded = base(config, tmp_path / "base", scan)
    adapted = trained(loaded)
    assert np.abs(logits(adapted.policy) - logits(loaded.policy)).max() > 0.1
    peft.save_adapters(adapted, tmp_path / "adapters")
    again = peft.load_adapters(loaded, tmp_path / "adapters")
    np.testing.assert_allclose(logits(again.policy), logits(adapted.policy), atol=1e-4)
    other = pretrained.load(tmp_path / "base", scan=not scan)
    np.testing.assert_allclose(
        logits(peft.load_adapters(other, tmp_path / "adapters").policy), logits(adapted.policy), atol=1e-4
    )


def test_the_names_are_pefts(tmp_path):
    peft.save_adapters(trained(base(LLAMA, tmp_path / "base")), tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / peft.CONFIG).read_text())
    assert config["target_modules"] == [
        "mlp.up_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 5.0, {})
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    tensors = load_file(tmp_path / "llama" / peft.WEIGHTS)
    stem = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
    assert tensors[f"{stem}A.weight"].shape == (3, 16) and tensors[f"{stem}B.weight"].shape == (8, 3)


def test_layers_that_gpt2_joins_have_one_adapter_of_a_higher_rank(tmp_path):
    peft.save_adapters(trained(base(GPT2, tmp_path / "base")), tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2" / peft.CONFIG).read_text())
    assert config["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]
    assert config["rank_pattern"] == {f"transformer.h.{layer}.attn.c_attn": 6 for layer in (0, 1)}
    assert config["alpha_pattern"]["transformer.h.0.attn.c_attn"] == pytest.approx(10.0)
    assert config["fan_in_fan_out"] is True
    b = load_file(tmp_path / "gpt2" / peft.WEIGHTS)[
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    ]
    assert b.shape == (48, 6) and not b[16:32].any(), "keys are not adapted"


def test_a_single_layer_is_named_whole(tmp_path):
    adapted = trained(base(LLAMA, tmp_path / "base"), (r"blocks\.1\..*query",))
    peft.save_adapters(adapted, tmp_path / "one")
    config = json.loads((tmp_path / "one" / peft.CONFIG).read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    scanned = pretrained.load(tmp_path / "base", scan=True)
    with pytest.raises(UserError, match="unalike"):
        peft.load_adapters(scanned, tmp_path / "one")


@pytest.mark.parity
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_peft_computes_the_same_and_is_read_back(config, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    loaded = base(config, tmp_path / "base")
    adapted = trained(loaded)
    peft.save_adapters(adapted, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    wrapped = theirs.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    ids = torch.tensor(np.asarray(IDS))
    with torch.no_grad():
        np.testing.assert_allclose(wrapped(ids).logits.numpy(), logits(adapted.policy), atol=1e-4)

    names = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"]}[config["model_type"]]
    made = theirs.LoraConfig(r=4, lora_alpha=7, target_modules=names, task_type="CAUSAL_LM")
    made.fan_in_fan_out = config["model_type"] == "gpt2"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    wrapped = theirs.get_peft_model(model, made).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    wrapped.save_pretrained(tmp_path / "theirs")
    read = peft.load_adapters(loaded, tmp_path / "theirs")
    with torch.no_grad():
        np.testing.assert_allclose(wrapped(ids).logits.numpy(), logits(read.policy), atol=1e-4)


def test_what_does_not_fit_is_a_sentence(tmp_path):
    loaded = base(LLAMA, tmp_path / "base")

    def refused(directory) -> str:
        with pytest.raises(UserError) as error:
            peft.load_adapters(loaded, directory)
        return str(error.value)

    with pytest.raises(UserError, match="no adapters"):
        peft.save_adapters(loaded, tmp_path / "none")
    assert "adapter_config.json" in refused(tmp_path / "none")
    peft.save_adapters(trained(loaded), tmp_path / "a")
    with pytest.raises(UserError, match="not an empty directory"):
        peft.save_adapters(trained(loaded), tmp_path / "a")
    config = json.loads((tmp_path / "a" / peft.CONFIG).read_text())

    def changed(**settings):
        (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(config | settings))

    changed(use_dora=True)
    assert "use_dora=True" in refused(tmp_path / "a")
    changed(peft_type="IA3")
    assert "not of LoRA" in refused(tmp_path / "a")
    changed()
    tensors = load_file(tmp_path / "a" / peft.WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: np.zeros((3, 15), np.float32)}, tmp_path / "a" / peft.WEIGHTS)
    assert "self_attn.q_proj' in" in refused(tmp_path / "a") and "[rank, 16]" in refused(tmp_path / "a")
    save_file({"base_model.model.x.lora_A.weight": np.zeros((3, 15))}, tmp_path / "a" / peft.WEIGHTS)
    assert "has a tensor 'base_model.model.x.lora_A.weight'" in refused(tmp_path / "a")
    (tmp_path / "a" / peft.WEIGHTS).write_bytes(b"x")
    assert "not a readable safetensors file" in refused(tmp_path / "a")
