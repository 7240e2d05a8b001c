import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.errors import UserError
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.lora import LoraConfig, adapted, add_lora, merge_lora, without_lora
from discojax.policies.partition import partition

IDS = jnp.arange(20).reshape(2, 10) % 37


def make(scan=False):
    config = DecoderConfig(
        37, layers=2, width=16, heads=4, kv_heads=2, max_length=12, gated=True, qkv_bias=True, scan=scan
    )
    return Decoder(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", params=[False, True], ids=["listed", "scanned"])
def policy(request):
    return make(request.param)


def paths(policy):
    return [path for path, _ in adapted(policy)]


@jax.jit
def hidden(policy):
    return policy.hidden(IDS)


def moved(policy, seed=0):
    """The policy with adapters that do something."""
    graph, trainable, frozen = partition(policy)
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), trainable), frozen)


def test_an_adapted_policy_is_at_first_the_policy_it_was(policy):
    """To the last bit: the margin of the first step is zero."""
    adapted = add_lora(policy, LoraConfig(rank=3, targets=(".*",)), nnx.Rngs(1))
    np.testing.assert_array_equal(hidden(adapted), hidden(policy))


def test_only_adapters_train_and_the_base_is_not_touched(policy):
    before = jax.tree.map(np.array, nnx.split(policy)[1])
    _, trainable, frozen = partition(add_lora(policy, LoraConfig(rank=3), nnx.Rngs(1)))
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    assert leaves and all("lora_" in jax.tree_util.keystr(path) for path, _ in leaves)
    assert jax.tree.all(jax.tree.map(np.array_equal, frozen, before))
    assert paths(policy) == []


def test_merged_it_computes_the_same(policy):
    trained = moved(add_lora(policy, LoraConfig(rank=3, alpha=5.0, targets=(".*",)), nnx.Rngs(1)))
    merged = merge_lora(trained)
    assert paths(merged) == []
    assert nnx.split(merged)[0] == nnx.split(policy)[0]
    assert np.abs(hidden(trained) - hidden(policy)).max() > 0.1
    np.testing.assert_allclose(hidden(merged), hidden(trained), atol=1e-4)
    np.testing.assert_array_equal(hidden(without_lora(trained)), hidden(policy))


def test_the_change_is_alpha_over_rank(policy):
    adapters = [
        moved(add_lora(policy, LoraConfig(4, alpha, ("query",)), nnx.Rngs(1))) for alpha in (4.0, 12.0)
    ]
    path = paths(adapters[0])[0]
    kernels = [dict(nnx.iter_modules(merge_lora(p))) for p in adapters]
    base = dict(nnx.iter_modules(policy))
    keys = next(key for key in base if ".".join(map(str, key)) == path)
    changes = [modules[keys].kernel[...] - base[keys].kernel[...] for modules in kernels]
    np.testing.assert_allclose(changes[1], 3 * changes[0], rtol=1e-4, atol=1e-5)


def test_sampling_takes_an_adapted_policy(policy):
    trained = moved(add_lora(policy, LoraConfig(rank=2), nnx.Rngs(1)))
    full = hidden(trained)
    last, cache = jax.jit(lambda p: p.prefill(IDS[:, :4], room=2))(trained)
    np.testing.assert_allclose(last[:, -1], full[:, 3], atol=1e-4)
    step, _ = jax.jit(lambda p, cache: p.decode(IDS[:, 4], cache, jnp.full(2, 4)))(trained, cache)
    np.testing.assert_allclose(step, full[:, 4], atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("query",), ["attention.query"]),
        (("attention.value", "mlp.up"), ["attention.value", "mlp.up"]),
        ((r"attention\..*",), [f"attention.{name}" for name in ("key", "output", "query", "value")]),
        (("gate|down",), ["mlp.down", "mlp.gate"]),
    ],
)
def test_targets_are_the_ends_of_paths(targets, expected):
    policy = add_lora(make(), LoraConfig(2, targets=targets), nnx.Rngs(0))
    assert paths(policy) == [f"blocks.{layer}.{name}" for layer in (0, 1) for name in expected]


def test_single_layers_can_be_named_where_they_are_not_stacked():
    policy = add_lora(make(), LoraConfig(2, targets=(r"blocks\.1\.mlp\.up",)), nnx.Rngs(0))
    assert paths(policy) == ["blocks.1.mlp.up"]


def test_stacked_adapters_are_those_of_each_layer():
    """A scanned policy and its layers one by one, with the same adapters, are the same function."""
    from discojax.policies.blocks import unstack

    scanned = moved(add_lora(make(scan=True), LoraConfig(3), nnx.Rngs(1)))
    listed = unstack(scanned)
    assert paths(listed)[0] == "blocks.0.attention.query"
    np.testing.assert_allclose(hidden(listed), hidden(scanned), atol=1e-5)


def test_half_precision_of_the_base_stays(policy):
    graph, params = nnx.split(policy)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    merged = merge_lora(moved(add_lora(half, LoraConfig(2), nnx.Rngs(0))))
    assert {x.dtype for x in jax.tree.leaves(nnx.split(merged)[1])} == {jnp.dtype(jnp.bfloat16)}


def test_shapes_alone_can_be_adapted():
    shapes = nnx.eval_shape(lambda: add_lora(make(scan=True), LoraConfig(5), nnx.Rngs(0)))
    _, trainable, _ = partition(shapes)
    assert {x.shape for x in jax.tree.leaves(trainable)} == {(2, 16, 5), (2, 5, 16), (2, 5, 8)}


def test_mistakes_are_sentences(policy):
    for options, text in (
        ({"rank": 0}, "at least 1"),
        ({"alpha": 0.0}, "above 0"),
        ({"targets": ()}, "names no layer"),
        ({"targets": ("(",)}, "not a regular expression"),
    ):
        with pytest.raises(UserError, match=text):
            LoraConfig(**options)
    with pytest.raises(UserError, match=r"'qery' is no dense layer.*down, gate, key.*Did you mean 'query'"):
        add_lora(policy, LoraConfig(targets=("query", "qery")), nnx.Rngs(0))
    with pytest.raises(UserError, match="has adapters already"):
        add_lora(add_lora(policy, LoraConfig(), nnx.Rngs(0)), LoraConfig(), nnx.Rngs(0))
