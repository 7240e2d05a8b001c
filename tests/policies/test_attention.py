"""Attention against its textbook, one query at a time in NumPy, and rotary positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig, Rope
from discojax.policies.attention import Attention, View, Views, choose
from discojax.policies.rotary import angles, frequencies, rotate

BATCH, TIME = 2, 7


def textbook(attention, x, window):
    config = attention.config
    query, key, value = (
        np.asarray(dense(x)).reshape(BATCH, TIME, -1, config.head_size)
        for dense in (attention.query, attention.key, attention.value)
    )
    scale = config.head_size**-0.5 if config.query_scale is None else config.query_scale
    mixed = np.zeros_like(query)
    for row, t, head in np.ndindex(mixed.shape[:3]):
        first = 0 if window is None else max(0, t + 1 - window)
        shared = head // (config.heads // config.key_heads)
        logits = key[row, first : t + 1, shared] @ query[row, t, head] * scale
        if config.attention_softcap is not None:
            logits = config.attention_softcap * np.tanh(logits / config.attention_softcap)
        weights = np.exp(logits - logits.max())
        mixed[row, t, head] = weights / weights.sum() @ value[row, first : t + 1, shared]
    return attention.output(mixed.reshape(BATCH * TIME, -1))


# With soft-caps there is no choice.
COMPUTED = [("auto", None), ("auto", 1.5), ("xla", None)]


@pytest.mark.parametrize(("implementation", "cap"), COMPUTED)
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_its_textbook(implementation, cap, scale, kv_heads, window):
    config = DecoderConfig(
        61, width=12, heads=4, head_dim=6, kv_heads=kv_heads, attention_softcap=cap, query_scale=scale,
        attention=implementation,
    )  # fmt: skip
    attention = Attention(config, rngs=nnx.Rngs(0))
    x = 3 * jax.random.normal(jax.random.key(1), (BATCH * TIME, 12))
    expected = textbook(attention, x, window)
    np.testing.assert_allclose(attention(x, BATCH, View(None, window))[0], expected, atol=1e-5)
    if window is not None:  # as it comes from a loop over layers
        looped = attention(x, BATCH, View(None, jnp.int32(window)))[0]
        np.testing.assert_allclose(looped, expected, atol=1e-5)


@pytest.mark.parametrize(("implementation", "cap"), COMPUTED)
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_the_gradient_is_what_differentiation_makes_of_the_textbook(implementation, cap, kv_heads, window):
    config = DecoderConfig(
        vocab_size=11, layers=1, width=16, heads=4, kv_heads=kv_heads, max_length=8, attention_softcap=cap,
        attention=implementation,
    )  # fmt: skip
    attention = Attention(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attention)
    x, weights = jax.random.normal(jax.random.key(1), (2, BATCH * TIME, 16))
    angled = Views(config, jnp.arange(TIME)).of(False).angles

    def ours(state, x):
        mixed, _, _ = nnx.merge(graph, state)(x, BATCH, View(angled, window))
        return jnp.sum(mixed * weights)

    def plain(state, x):
        layer = nnx.merge(graph, state)
        query, key, value = layer._project(x, BATCH, View(angled, window))
        key, value = (jnp.repeat(y, 4 // kv_heads, axis=2) for y in (key, value))
        logits = jnp.einsum("bthd,bshd->bhts", query, key) * config.head_size**-0.5
        if cap is not None:
            logits = cap * jnp.tanh(logits / cap)
        back = jnp.arange(TIME)[:, None] - jnp.arange(TIME)
        seen = (back >= 0) & (back < (TIME if window is None else window))
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), value)
        return jnp.sum(layer.output(mixed.reshape(BATCH * TIME, -1)) * weights)

    found, expected = (jax.grad(f, argnums=(0, 1))(state, x) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_norms_of_queries_and_keys_take_away_their_size():
    config = DecoderConfig(61, width=12, heads=2, qk_norm=True)
    attention = Attention(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (BATCH * TIME, 12))
    before = attention(x, BATCH, View(None, None))[0]
    attention.key.kernel[...] = 7.0 * attention.key.kernel[...]
    np.testing.assert_allclose(attention(x, BATCH, View(None, None))[0], before, atol=1e-4)


def test_the_implementation_that_is_chosen_is_asked_for():
    config = DecoderConfig(61, width=16, heads=2, attention="cudnn")
    x = jax.ShapeDtypeStruct((BATCH * TIME, 16), jnp.bfloat16)
    attention = Attention(config, rngs=nnx.Rngs(0))
    nnx.update(attention, jax.tree.map(lambda w: w.astype(jnp.bfloat16), nnx.state(attention)))
    with pytest.raises(Exception, match=r"(?i)cudnn"):  # which a CPU has not
        jax.eval_shape(lambda x: attention(x, BATCH, View(None, None)), x)


def test_what_cannot_be_chosen_is_told():
    plain, capped = DecoderConfig(61), DecoderConfig(61, attention_softcap=50.0)
    assert choose(plain, "auto") is plain and choose(capped, "auto") is capped
    assert choose(plain, "xla").attention == "xla" and choose(plain, "cudnn", "cuda").attention == "cudnn"
    for attention in ("xla", "cudnn"):
        with pytest.raises(UserError, match=f"attention={attention} .* soft-caps .* Leave attention at auto"):
            choose(capped, attention, "cuda")
    for platform in ("tpu", "rocm"):
        with pytest.raises(
            UserError, match=f"cudnn takes an NVIDIA GPU, and this is for a {platform.upper()}"
        ):
            choose(plain, "cudnn", platform)
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match="this is for a CPU"):
            choose(plain, "cudnn")


def test_float32_and_single_queries_need_no_cudnn():
    config = DecoderConfig(61, width=16, heads=2, attention="cudnn")
    attention = Attention(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (BATCH * TIME, 16))
    expected = Attention(replace(config, attention="xla"), rngs=nnx.Rngs(0))(x, BATCH, View(None, None))[0]
    np.testing.assert_array_equal(attention(x, BATCH, View(None, None))[0], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [2, 8])
@pytest.mark.parametrize("window", [None, 32])
def test_cudnn_is_xla(kv_heads, window):
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    time, width = 128, 512
    config = DecoderConfig(61, width=width, heads=8, kv_heads=kv_heads, max_length=time)
    x = jax.random.normal(jax.random.key(1), (BATCH * time, width), jnp.bfloat16)

    def made(attention):
        layer = Attention(choose(config, attention), rngs=nnx.Rngs(0))
        graph, state = nnx.split(layer)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)

        def mixed(x):
            return nnx.merge(graph, state)(x, BATCH, View(None, window))[0].astype(jnp.float32)

        return mixed(x), jax.grad(lambda x: jnp.sum(mixed(x) ** 2))(x).astype(jnp.float32)

    for found, expected in zip(made("cudnn"), made("xla"), strict=True):
        size = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(found, expected, atol=0.02 * size)


LONG = {"factor": 8.0, "original_max_position_embeddings": 64}
GOLDEN = {  # of transformers 5.23, ROPE_INIT_FUNCTIONS[kind], heads of 16 features
    "linear": (
        Rope(1e3, "linear", 8.0),
        [0.125, 0.05271206, 0.02222849, 0.009373677, 0.003952847, 0.001666902, 0.0007029267, 0.0002964217],
        1.0,
    ),
    "llama3": (
        Rope(1e3, "llama3", **LONG),
        [1.0, 0.4216965, 0.06430987, 0.009373677, 0.003952847, 0.001666902, 0.0007029267, 0.0002964217],
        1.0,
    ),
    "yarn": (
        Rope(1e3, "yarn", **{**LONG, "factor": 4.0}, beta_fast=8.0),
        [1.0, 0.3162724, 0.08891397, 0.01874735, 0.007905695, 0.003333804, 0.001405853, 0.0005928435],
        1.138629436111989,
    ),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_angles_are_stretched_as_transformers_does(kind):
    rope, expected, scale = GOLDEN[kind]
    turning, given = frequencies(rope, 16)
    np.testing.assert_allclose(turning, expected, rtol=1e-6)
    assert given == pytest.approx(scale)


def test_turned_queries_and_keys_know_their_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(at, other):
        turn = lambda x, t: rotate(x, angles(Rope(), 8, jnp.full((1, 1), t)))  # noqa: E731
        return float(jnp.sum(turn(query, at) * turn(key, other)))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
    assert product(3, 3) == pytest.approx(float(jnp.sum(query * key)), abs=1e-4)


def test_local_layers_have_their_own_angles_and_window_also_in_a_loop():
    config = DecoderConfig(
        61, width=8, heads=2, positions="rotary", rope=Rope(1e6), local_rope=Rope(),
        window=3, pattern=("local", "global"),
    )  # fmt: skip
    views = Views(config, jnp.arange(5))
    for local in (True, False):
        known, looped = views.of(local), views.of(jnp.array(local))
        for one, other in zip(known.angles, looped.angles, strict=True):
            np.testing.assert_array_equal(one, other)
        assert int(looped.window) == (3 if local else jnp.iinfo(jnp.int32).max)
        assert known.window == (3 if local else None)
    assert not np.allclose(views.of(True).angles.cos, views.of(False).angles.cos)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_turning_keeps_the_dtype_and_large_positions_their_precision(dtype):
    x = jnp.ones((1, 1, 1, 4), dtype)
    turned = rotate(x, angles(Rope(), 4, jnp.array([[8191]])))
    assert turned.dtype == dtype
    radians = 8191 * np.array([1.0, 0.01])
    expected = np.concatenate([np.cos(radians) - np.sin(radians), np.cos(radians) + np.sin(radians)])
    np.testing.assert_allclose(
        turned[0, 0, 0].astype(jnp.float32), expected, atol=1e-3 if dtype == jnp.float32 else 1e-2
    )
