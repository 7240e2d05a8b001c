"""What lies in a directory that we save; that Transformers reads it is in `test_parity.py`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from discojax.errors import UserError
from discojax.policies import pretrained
from discojax.policies.lora import LoraConfig, add_lora


@pytest.fixture
def source(write, llama_tensors):
    directory = write(llama_tensors, files=2, name="source")
    for name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"):
        (directory / name).write_text(name)
    (directory / "README.md").write_text("not ours to copy")
    return directory


def test_beside_the_weights_lies_what_lay_beside_them(source, tmp_path):
    made = pretrained.save(pretrained.load(source), tmp_path / "deep" / "saved")
    assert {file.name for file in made.iterdir()} == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.json",
    }
    assert (made / "vocab.json").read_text() == "vocab.json"
    with safe_open(made / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # Transformers refuses a file without it
    assert [path.name for path in made.parent.iterdir()] == ["saved"]


def test_the_configuration_says_the_dtype_of_what_is_saved(source, tmp_path):
    loaded = pretrained.load(source, dtype="bfloat16")
    saved = json.loads((pretrained.save(loaded, tmp_path / "saved") / "config.json").read_text())
    assert saved == {**json.loads((source / "config.json").read_text()), "torch_dtype": "bfloat16"}


def test_files_keep_to_their_size_and_the_index_says_what_is_where(source, tmp_path, llama_tensors):
    made = pretrained.save(pretrained.load(source), tmp_path / "saved", shard_bytes=8_000)
    files = sorted(made.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in llama_tensors.values())
    held = {}
    for file in files:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
            assert sum(opened.get_tensor(name).nbytes for name in names) <= 8_000
            held |= dict.fromkeys(names, file.name)
    assert held == index["weight_map"]
    assert held.keys() == llama_tensors.keys()


def test_what_was_trained_is_what_is_saved(source, tmp_path, llama_tensors):
    loaded = pretrained.load(source)
    graph, params = nnx.split(loaded.policy)
    trained = nnx.merge(graph, jax.tree.map(lambda x: x + 1, params))
    made = pretrained.save(dataclasses.replace(loaded, policy=trained), tmp_path / "saved")
    with safe_open(made / "model.safetensors", "np") as file:
        for name, before in llama_tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), before + 1)


def test_nothing_is_overwritten(source, tmp_path):
    loaded = pretrained.load(source)
    (tmp_path / "empty").mkdir()
    made = pretrained.save(loaded, tmp_path / "empty")
    with pytest.raises(UserError, match="exists and is not an empty directory: give another one"):
        pretrained.save(loaded, made)
    with pytest.raises(UserError, match="exists and is not an empty directory"):
        pretrained.save(loaded, source / "README.md")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        pretrained.save(loaded, source / "README.md" / "below")


def test_adapters_are_to_be_merged_first(source, tmp_path):
    loaded = pretrained.load(source)
    adapted = add_lora(loaded.policy, LoraConfig(rank=2), nnx.Rngs(0))
    with pytest.raises(
        UserError, match=r"parameter 'blocks\.0\.attention\..*' is in no LlamaForCausalLM: merge"
    ):
        pretrained.save(dataclasses.replace(loaded, policy=adapted), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_interrupted_save_leaves_nothing(source, tmp_path):
    resource = pytest.importorskip("resource")
    loaded = pretrained.load(source)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(UserError, match="saved cannot be written: .*[Ff]ile too large"):
            pretrained.save(loaded, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_stacked_and_sharded_policies_are_saved_as_any_other(source, tmp_path, llama_tensors):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = pretrained.load(source, scan=True, sharding=sharding, dtype=jnp.float32)
    made = pretrained.save(loaded, tmp_path / "saved")
    with safe_open(made / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(llama_tensors)
        for name, tensor in llama_tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor)
