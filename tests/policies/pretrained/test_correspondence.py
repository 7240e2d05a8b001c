"""Every tensor of a checkpoint is one place of a policy and the other way round, for each architecture."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from discojax.policies import pretrained
from discojax.policies.pretrained.architectures import ARCHITECTURES, policy_config
from discojax.policies.pretrained.correspondence import correspondence, joined
from discojax.policies.pretrained.reading import abstract
from discojax.policies.pretrained.safetensor_files import SafetensorFiles, open_directory

CONFIGS = json.loads((Path(__file__).parent / "small_models.json").read_text())


def drawn(name):
    """A policy of random weights with the configuration of a small model."""
    config = policy_config(CONFIGS[name], name)
    graph, shapes = nnx.split(abstract(config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return pretrained.Pretrained(nnx.merge(graph, params), CONFIGS[name], Path(name))


def test_the_small_models_are_of_every_architecture():
    assert {config["model_type"] for config in CONFIGS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_one_to_one(architecture):
    rows = ARCHITECTURES[architecture].rows
    assert len({row.path for row in rows}) == len(rows)
    assert len({(row.name, row.part) for row in rows}) == len(rows)
    parts = [row for row in rows if row.part is not None]
    for name in {row.name for row in parts}:
        (count,) = {row.part[1] for row in parts if row.name == name}
        assert sorted(row.part[0] for row in parts if row.name == name) == list(range(count))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_element_of_a_directory_is_read_once_and_comes_back(name, tmp_path, monkeypatch):
    original = drawn(name)
    limit = 20_000 if "llama" in name else 10**9
    directory = pretrained.save(original, tmp_path / name, shard_bytes=limit)
    specs = open_directory(directory).specs
    stored = {tensor: np.zeros(spec.shape, int) for tensor, spec in specs.items()}
    read = SafetensorFiles.read

    def counted(self, tensor, index):
        stored[tensor][index] += 1
        return read(self, tensor, index)

    monkeypatch.setattr(SafetensorFiles, "read", counted)
    loaded = pretrained.load(directory)
    assert {count for counts in stored.values() for count in np.unique(counts)} == {1}
    assert loaded.policy.config == original.policy.config
    before, after = (jax.tree.leaves(nnx.state(one.policy)) for one in (original, loaded))
    assert len(before) == len(after)
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "prefix", "more"),
    [
        ("gpt2", "transformer.", {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.uint8)}),
        ("llama-2", "", {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}),
        (
            "roberta",
            "",
            {
                "roberta.embeddings.position_ids": np.arange(64)[None],
                "roberta.pooler.dense.weight": np.ones((32, 32), np.float32),
            },
        ),
    ],
)
def test_files_of_years_ago_hold_more_than_weights(name, prefix, more, tmp_path):
    """As those on the hub under openai-community/gpt2 and siebert/sentiment-roberta-large-english."""
    original = drawn(name)
    file = pretrained.save(original, tmp_path / name) / "model.safetensors"
    tensors = {tensor.removeprefix(prefix): value for tensor, value in load_file(file).items()}
    save_file(tensors | more, file)
    before, after = (nnx.state(one.policy) for one in (original, pretrained.load(file.parent)))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("roberta", "distilbert")])
def test_stacked_layers_are_the_same_tensors(name):
    config = policy_config(CONFIGS[name], name)
    found = ARCHITECTURES[CONFIGS[name]["model_type"]]
    apart = joined(correspondence(found, nnx.state(abstract(config))))
    stacked = joined(correspondence(found, nnx.state(abstract(dataclasses.replace(config, scan=True)))))
    assert apart.keys() == stacked.keys()
    for tensor, parts in apart.items():
        assert [leaf.tensor_shape for leaf, _ in parts] == [leaf.tensor_shape for leaf, _ in stacked[tensor]]
