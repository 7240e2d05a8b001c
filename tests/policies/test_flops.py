import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.flops import forward_flops, gradient_flops

SHAPES = {
    "small": DecoderConfig(vocab_size=1024, layers=2, width=64, heads=4, max_length=32),
    "grouped": DecoderConfig(
        vocab_size=1024, layers=2, width=64, heads=4, kv_heads=1, head_dim=32, gated=True, max_length=32
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_count_is_the_compilers_where_nothing_loops(shape):
    config, sequences, time = SHAPES[shape], 8, 32
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))

    def logits(params, ids):
        policy = nnx.merge(graph, params)
        return policy.hidden(ids) @ policy.head.T

    def total(params, ids):
        return jnp.sum(logits(params, ids) ** 2)

    ids = jnp.zeros((sequences, time), jnp.int32)
    asked = {"sequences": sequences, "time": time, "predicted": time, "causal": False}
    for function, ours in ((logits, 1), (jax.grad(total), 3)):
        theirs = jax.jit(function).lower(params, ids).compile().cost_analysis()["flops"]
        # What the compiler counts beyond matrix products: norms, activations, softmax.
        assert 1.0 <= theirs / (ours * forward_flops(config, **asked)) < 1.15


def test_causal_attention_needs_half_and_a_window_less():
    whole = DecoderConfig(vocab_size=2, layers=1, width=8, heads=1, max_length=100)
    local = DecoderConfig(
        vocab_size=2, layers=1, width=8, heads=1, max_length=100, window=10, pattern=("local",)
    )

    def attention(config, causal):
        asked = {"sequences": 1, "time": 100, "predicted": 0}
        dense = 2 * 100 * (4 * 64 + 2 * 8 * 32)
        return forward_flops(config, **asked, causal=causal) - dense

    assert attention(whole, False) == 4 * 8 * 100 * 100
    assert attention(whole, True) == 4 * 8 * sum(range(1, 101))
    assert attention(local, True) == 4 * 8 * sum(min(t, 10) for t in range(1, 101))


def test_a_gradient_takes_twice_a_forward_pass_more():
    asked = {"sequences": 3, "time": 20, "predicted": 7}
    config = SHAPES["grouped"]
    assert gradient_flops(config, **asked) == 3 * forward_flops(config, **asked)
