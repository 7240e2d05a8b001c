"""Every family's structure at a small size: a cache, a loop over layers, padding, low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig, Rope
from discojax.policies.blocks import stack, unstack
from discojax.policies.decoder import Decoder

SIZE = {"vocab_size": 61, "layers": 2, "width": 16, "max_length": 24}
ROTARY = {"positions": "rotary", "gated": True, "mlp_bias": False, "mlp_width": 24, "kv_heads": 2}
GEMMA = {**ROTARY, "unit_offset": True, "head_dim": 6, "embedding_scale": 4.0}
LOCAL = {"window": 4, "pattern": ("local", "global"), "post_norms": True}
FAMILIES = {
    "small": {},
    "gpt2": {"norm": "layer", "qkv_bias": True, "attention_output_bias": True, "norm_eps": 1e-5},
    "llama3": {
        **ROTARY,
        "activation": "silu",
        "rope": Rope(5e5, "llama3", 8.0, original_max_position_embeddings=16),
        "tied": False,
    },
    "qwen2": {**ROTARY, "activation": "silu", "qkv_bias": True, "window": 5, "pattern": ("local",)},
    "qwen3": {**ROTARY, "activation": "silu", "qk_norm": True, "head_dim": 8},
    "gemma": {**GEMMA, "kv_heads": 1},
    "gemma2": {**GEMMA, **LOCAL, "attention_softcap": 5.0, "logit_softcap": 3.0, "query_scale": 0.3},
    "gemma3": {**GEMMA, **LOCAL, "qk_norm": True, "rope": Rope(1e6, "linear", 8.0), "local_rope": Rope()},
}


def config_of(family: str, **changes) -> DecoderConfig:
    return DecoderConfig(**{**SIZE, **FAMILIES[family], **changes})


def randomised(config: DecoderConfig, seed: int = 0) -> Decoder:
    """Weights so large that everything matters, and no two parameters alike."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graph, jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), shapes)
    )


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 61, (3, 12)).astype(np.int32)


STARTS = np.array([3, 6, 1], np.int32)  # every row at its own position
STEPS = 5


def read_at_once(policy, ids):
    return policy.hidden(ids)


def read_token_by_token(policy, ids):
    """Hidden states `[steps, batch, width]` of `STEPS` tokens after `STARTS`, from a cache."""
    _, cache = policy.prefill(ids[:, :6], room=6)

    def one(cache, step):
        positions = STARTS + step
        last, cache = policy.decode(ids[jnp.arange(len(ids)), positions], cache, positions)
        return cache, last

    return jax.lax.scan(one, cache, jnp.arange(STEPS))[1]


@pytest.fixture(scope="module", params=FAMILIES)
def read(request, ids):
    """Of one family: the policy, and its hidden states in four ways, compiled as one."""
    policy = randomised(config_of(request.param))

    @jax.jit
    def every(policy, ids):
        stacked = stack(policy)
        return [f(p, ids) for p in (policy, stacked) for f in (read_at_once, read_token_by_token)]

    return policy, every(policy, jnp.asarray(ids))


def test_reading_token_by_token_from_a_cache_is_reading_at_once(read):
    _, (at_once, by_token, _, _) = read
    picked = at_once[np.arange(3), STARTS + np.arange(STEPS)[:, None]]
    np.testing.assert_allclose(by_token, picked, atol=2e-5, rtol=1e-4)


def test_layers_in_one_loop_are_layers_one_after_another(read):
    _, (at_once, by_token, stacked_at_once, stacked_by_token) = read
    np.testing.assert_allclose(stacked_at_once, at_once, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(stacked_by_token, by_token, atol=2e-5, rtol=1e-4)


def test_unstacking_gives_back_what_was_stacked(read):
    policy, _ = read
    stacked = stack(policy)
    assert stacked.config.scan and not policy.config.scan
    assert stacked.blocks.mlp.up.kernel.shape == (2, *policy.blocks[0].mlp.up.kernel.shape)
    back = unstack(stacked)
    assert back.config == policy.config
    one, other = nnx.split(policy), nnx.split(back)
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


def test_a_scanned_decoder_is_made_as_a_stacked_one():
    config = config_of("gemma3", scan=True)
    made = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    stacked = nnx.eval_shape(lambda: stack(Decoder(config_of("gemma3"), rngs=nnx.Rngs(0))))
    shapes = [jax.tree.map(lambda x: x.shape, nnx.state(policy)) for policy in (made, stacked)]
    assert shapes[0] == shapes[1]
    kernels = jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)).blocks.mlp.up.kernel[...])()
    assert not np.allclose(kernels[0], kernels[1])  # each layer drawn for itself


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scan", [False, True])
def test_low_precision_keeps_norms_softmax_and_angles_in_float32(family, scan, ids):
    config = config_of(family, scan=scan, activation="relu")  # which has no exponential of its own
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    dtypes = {name: set() for name in ("dot_general", "exp", "rsqrt", "cos", "sin", "tanh")}
    traced = jax.make_jaxpr(lambda params: nnx.merge(graph, params).hidden(ids))(low)
    assert traced.out_avals[0].dtype == jnp.bfloat16
    _visit(traced.jaxpr, dtypes)
    assert dtypes.pop("dot_general") == {"bfloat16"}
    assert set().union(*dtypes.values()) == {"float32"}


def _visit(jaxpr, dtypes):
    """Collects the dtypes of the first operand of each primitive that is asked for."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].add(str(equation.invars[0].aval.dtype))
        for inner in jaxprs_in_params(equation.params):
            _visit(inner, dtypes)


def test_low_precision_says_nearly_the_same(ids):
    graph, params = nnx.split(randomised(config_of("gemma3", scan=True)))

    @jax.jit
    def both(params):
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return [nnx.merge(graph, p).hidden(ids).astype(jnp.float32) for p in (params, low)]

    full, low = both(params)
    assert np.corrcoef(full.ravel(), low.ravel())[0, 1] > 0.99


def test_compiling_does_not_grow_with_depth():
    def lines(layers):
        config = config_of("gemma3", layers=layers, scan=True, remat="block")
        graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
        loss = lambda params, ids: nnx.merge(graph, params).hidden(ids).sum()  # noqa: E731
        tokens = jax.ShapeDtypeStruct((2, 12), jnp.int32)
        return len(jax.jit(jax.grad(loss)).lower(params, tokens).as_text().splitlines())

    assert lines(32) <= 1.3 * lines(4)


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialising_changes_no_gradient_and_keeps_less(scan):
    ids = np.random.default_rng(1).integers(0, 61, (8, 24)).astype(np.int32)
    gradients, kept = {}, {}
    for remat in ("none", "dots", "block"):
        config = config_of("llama3", layers=4 if scan else 2, mlp_width=64, scan=scan, remat=remat)
        graph, params = nnx.split(randomised(config))

        def loss(params, graph=graph):
            return jnp.sum(nnx.merge(graph, params).hidden(ids) ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        gradients[remat] = compiled(params)
        kept[remat] = compiled.memory_analysis().temp_size_in_bytes
    for remat in ("dots", "block"):
        for one, other in zip(*map(jax.tree.leaves, (gradients["none"], gradients[remat])), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * float(np.abs(other).max()))
    assert max(kept["block"], kept["dots"]) < kept["none"], kept
    # Of two layers written out, what a whole block needs anew is as large as what it need not keep.
    assert kept["block"] < kept["dots"] or not scan, kept


def test_lanes_of_stacked_policies_have_the_gradients_of_single_ones():
    ids = np.random.default_rng(1).integers(0, 61, (2, 6)).astype(np.int32)
    config = config_of("gemma2", scan=True, remat="block")
    graph, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    policies = [nnx.state(randomised(config, seed)) for seed in (0, 1)]
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params).hidden(ids) ** 2)

    @jax.jit
    def both(lanes, one):
        return jax.vmap(jax.grad(loss))(lanes), jax.grad(loss)(one)

    every, one = both(lanes, policies[1])
    for lane, alone in zip(jax.tree.leaves(every), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(lane[1], alone, rtol=1e-3, atol=1e-4 * float(np.abs(alone).max()))


def test_shapes_are_stacked_as_weights_are():
    shapes = nnx.eval_shape(lambda: Decoder(config_of("qwen3"), rngs=nnx.Rngs(0)))
    stacked = nnx.eval_shape(stack, shapes)
    assert stacked.blocks.mlp.up.kernel.shape == (2, 16, 24)
    assert nnx.eval_shape(unstack, stacked).blocks[1].mlp.up.kernel.shape == (16, 24)


def test_layers_that_differ_are_not_stacked():
    policy = randomised(config_of("qwen3"))
    policy.blocks[0].mlp.adapter = nnx.LoRAParam(jnp.ones((2, 3)))
    with pytest.raises(UserError, match="Layers that differ cannot be stacked: adapt every layer alike"):
        stack(policy)
