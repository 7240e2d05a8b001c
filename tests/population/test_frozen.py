"""Adapters over one frozen base, bfloat16, batches in parts: the forms of the step that save memory."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax import candidates, objectives
from discojax.data.reference import with_reference
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.population import StepConfig, make_engine, make_programs
from discojax.population.lanes import stack_jobs
from discojax.population.memory import abstract_arguments

LANES = 5
BATCH = 8


@pytest.fixture(scope="module")
def adapted(setting):
    """`graph, params, frozen` of the policy with adapters on every dense layer."""
    policy = add_lora(
        nnx.merge(setting.graph, setting.params), LoraConfig(rank=2, targets=(".*",)), nnx.Rngs(1)
    )
    return partition(policy)


@pytest.fixture(scope="module")
def adapters(adapted, setting, one_device):
    """Programs of five lanes of adapters, all at once, in bfloat16, each batch in two parts."""
    graph, params, frozen = adapted
    # Blocks of 24 tokens: no other array then has the shape of a copy of a matrix for each lane.
    config = replace(setting.config, implementation="vmap", dtype="bfloat16", accumulate=2, block=24)
    return make_programs(
        graph, params, config, lanes=LANES, tokens=setting.tokens, mesh=one_device, frozen=frozen
    )


@pytest.fixture(scope="module")
def engine(adapters, adapted, setting):
    _, params, frozen = adapted
    return make_engine(adapters, params, setting.pairs, frozen)


@pytest.fixture(scope="module")
def trained(adapters, engine, job):
    losses = ["dpo", "aot", "aqfl", "ipo", "nan_at_half"]
    settings = stack_jobs([job(loss, seed=k, steps=6) for k, loss in enumerate(losses)])
    state, metrics = adapters.advance(adapters.fresh(engine.params), settings, engine.frozen, engine.data)
    metrics = jax.tree.map(np.asarray, metrics)
    state, _ = adapters.advance(state, settings, engine.frozen, engine.data)
    return state, metrics


def test_only_adapters_are_held_once_a_lane(adapters, engine, adapted):
    _, params, frozen = adapted
    state = adapters.fresh(engine.params)
    assert [x.shape[1:] for x in jax.tree.leaves(state.params)] == [x.shape for x in jax.tree.leaves(params)]
    assert [x.shape for x in jax.tree.leaves(engine.frozen)] == [x.shape for x in jax.tree.leaves(frozen)]
    assert sum(x.size for x in jax.tree.leaves(params)) < 0.5 * sum(x.size for x in jax.tree.leaves(frozen))


def test_masters_moments_and_metrics_are_float32_and_the_base_is_not(trained, engine):
    state, metrics = trained
    assert {x.dtype for x in jax.tree.leaves(engine.frozen)} == {jnp.dtype("bfloat16")}
    kept = jax.tree.leaves((state.params, state.moments, metrics))
    assert {x.dtype for x in kept} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    # An update far below bfloat16's precision is not lost.
    change = jax.tree.leaves(state.params)[0] * jnp.float32(1 + 2**-20)
    assert (np.asarray(change) != np.asarray(jax.tree.leaves(state.params)[0])).any()


def test_lanes_learn_apart_and_a_nan_among_them_stays_where_it_is(trained):
    state, metrics = trained
    assert np.asarray(state.diverged).tolist() == [False] * 4 + [True]
    leaves = [np.asarray(x) for x in jax.tree.leaves(state.params)]
    assert all(np.isfinite(x).all() for x in leaves)
    for lane in range(1, LANES):
        assert any((x[lane] != x[0]).any() for x in leaves)
    np.testing.assert_allclose(metrics.loss[0] / 3, np.log(2), atol=0.1)


def test_a_frozen_matrix_meets_all_lanes_in_one_product(adapters, setting, adapted):
    """Rows of all lanes against the one matrix, forwards and backwards, and no copy of it for each lane."""
    lowered = adapters.advance.lower(*abstract_arguments(adapters, setting.pairs))
    _, _, frozen = adapted
    assert (16, 64) in frozen_matrices(frozen)
    operands = rf"tensor<{LANES}x\d+x(?:16|64)xbf16>, tensor<16x64xbf16>"
    product = rf"dot_general.*contracting_dims = \[2\] x \[[01]\].*{operands}"
    found = re.findall(product, lowered.as_text())
    assert len(found) >= 2, "one forwards and one backwards"
    compiled = lowered.compile().as_text()
    for matrix in frozen_matrices(frozen):
        copy = ",".join(map(str, (LANES, *matrix)))
        assert not re.search(rf"\[(?:{copy}|{LANES},{matrix[1]},{matrix[0]})\]", compiled), (
            f"the frozen {matrix} is held once a lane"
        )


def frozen_matrices(frozen):
    return {x.shape for x in jax.tree.leaves(frozen) if x.ndim == 2}


def test_more_lanes_of_adapters_cost_no_more_of_the_base(adapters, setting, adapted):
    """The step's arguments grow by adapters and their two moments (and a lane's few settings)."""
    _, params, _ = adapted

    def arguments(programs):
        lowered = programs.advance.lower(*abstract_arguments(programs, setting.pairs))
        leaves = jax.tree.leaves(lowered.in_avals)
        return sum(x.size * x.dtype.itemsize for x in leaves)

    more = arguments(adapters.of_lanes(LANES + 1)) - arguments(adapters)
    assert 0 <= more - 3 * sum(x.nbytes for x in jax.tree.leaves(params)) < 3000


def test_new_objectives_compile_nothing_in_this_form_either(adapters, engine, job, trained):
    names = [*objectives.names()] * 2
    compiled = []
    counting = True

    def listen(event, duration, **kwargs):
        if counting and "backend_compile" in event:
            compiled.append(str(kwargs))

    jobs = [
        job(candidates.from_function(objectives.get(name)).code, seed=k // len(names), steps=1)
        for k, name in enumerate(names)
    ][:50]
    assert len(jobs) == 50
    state = adapters.fresh(engine.params)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for start in range(0, 50, LANES):
            state = adapters.reset(state, engine.params, np.ones(LANES, bool))
            settings = stack_jobs(jobs[start : start + LANES])
            state, _ = adapters.advance(state, settings, engine.frozen, engine.data)
    finally:
        counting = False
    assert [each for each in compiled if "reset" not in each] == []
    assert adapters.advance._cache_size() == adapters.reset._cache_size() == 1


@pytest.fixture(scope="module")
def in_parts(setting, one_device, noisy_pairs, job):
    """`in_parts(accumulate, dtype)`: weights, moments and metrics of full lanes after three steps."""

    def train(accumulate, dtype="float32"):
        config = replace(setting.config, batch=BATCH, accumulate=accumulate, dtype=dtype)
        programs = make_programs(
            setting.graph, setting.params, config, lanes=3, tokens=setting.tokens, mesh=one_device
        )
        engine = make_engine(programs, setting.params, noisy_pairs)
        settings = stack_jobs([job(loss, seed=4, steps=3) for loss in ("dpo", "aot", "aqfl")])
        state, metrics = programs.advance(programs.fresh(engine.params), settings, engine.frozen, engine.data)
        return jax.tree.map(np.asarray, (state, metrics))

    return {
        "whole": train(1),
        "one at a time": train(BATCH),
        "bfloat16": train(1, "bfloat16"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("lane", range(3), ids=["dpo", "aot", "aqfl"])
def test_eight_parts_of_one_pair_are_one_part_of_eight(in_parts, lane):
    """For a loss of each pair, one that sorts the batch (aot), and one of its mean (aqfl)."""
    whole, parts = (jax.tree.map(lambda x: x[lane], in_parts[name]) for name in ("whole", "one at a time"))
    for a, b in zip(parts[1], whole[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(parts[0].moments), jax.tree.leaves(whole[0].moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(jax.tree.leaves(parts[0].params), jax.tree.leaves(whole[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_is_near_float32(in_parts):
    (state, metrics), (_, exact) = in_parts["bfloat16"], in_parts["whole"]
    assert not state.diverged.any()
    np.testing.assert_allclose(metrics.loss / 3, exact.loss / 3, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(metrics.grad_norm, exact.grad_norm, rtol=0.1)
    assert (metrics.loss != exact.loss).any(), "it computed in something else"


def test_log_probabilities_are_summed_in_float32(setting):
    """A bfloat16 near -850 is a multiple of 4."""
    from discojax.population.step import _make_logps

    config = StepConfig(dtype="bfloat16", block=16)
    logps = _make_logps(setting.graph, config, setting.tokens, prompts=None)
    pairs = jax.tree.map(lambda x: jnp.asarray(x[:4]), setting.pairs)
    found = jax.jit(logps)(setting.params, nnx.State({}), pairs)
    assert found.shape == (2, 4) and found.dtype == jnp.float32
    assert (found.astype(jnp.bfloat16).astype(jnp.float32) != found).any()
    np.testing.assert_allclose(found[0], setting.pairs.reference_chosen[:4], rtol=0.02)


@pytest.mark.slow
def test_a_batch_in_parts_takes_less_memory(setting, one_device):
    """Compiled for a wider policy and longer texts, where activations are what takes memory."""
    from discojax.policies.decoder import Decoder, DecoderConfig

    config = DecoderConfig(vocab_size=64, layers=2, width=32, heads=2, max_length=64)
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    long = jax.tree.map(lambda x: jax.ShapeDtypeStruct((32, *(64,) * (x.ndim - 1)), x.dtype), setting.pairs)

    def temporaries(accumulate):
        step = StepConfig(batch=32, chunk=1, accumulate=accumulate, block=64)
        programs = make_programs(graph, params, step, lanes=1, tokens=32, mesh=one_device)
        compiled = programs.advance.lower(*abstract_arguments(programs, long)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.4 * temporaries(1)


def test_one_lanes_huge_gradient_is_clipped_and_touches_no_other(adapters, engine, job, setting):
    """Every lane's gradient is clipped by its own norm: Adam's first moment is a tenth of what is left."""
    huge = objectives.encode(
        [("subtract", ("policy_chosen_logps", "policy_rejected_logps")), ("multiply", (0, -1e6))], 1
    )

    def first(loss):
        jobs = [job("dpo", seed=k, beta=0.05, steps=1) for k in range(LANES)]
        jobs[2] = job(loss, seed=2, beta=0.05, steps=1)
        state, metrics = adapters.advance(
            adapters.fresh(engine.params), stack_jobs(jobs), engine.frozen, engine.data
        )
        return jax.tree.map(np.asarray, (state, metrics))

    (state, metrics), (quiet, quiet_metrics) = first(huge), first("dpo")
    others = np.arange(LANES) != 2
    for a, b in zip(jax.tree.leaves((state, metrics)), jax.tree.leaves((quiet, quiet_metrics)), strict=True):
        np.testing.assert_array_equal(a[others], b[others])
    clip = setting.config.optimizer.clip_norm
    adam = next(part for part in state.moments if hasattr(part, "mu"))
    norms = np.sqrt(sum((x**2).reshape(LANES, -1).sum(1) for x in jax.tree.leaves(adam.mu)))
    assert metrics.grad_norm[2] > 100 * clip
    np.testing.assert_allclose(norms, 0.1 * np.minimum(metrics.grad_norm, clip), rtol=1e-3)
    assert (metrics.grad_norm[others] < clip).any(), "and one that is not clipped at all"


def test_weights_that_overflow_at_the_last_step_are_found(adapters, engine, job):
    """No loss is computed after it."""
    jobs = [job("dpo", learning_rate=0.02, steps=1)] * (LANES - 1) + [
        job("dpo", learning_rate=float("inf"), steps=1)
    ]
    state, metrics = adapters.advance(
        adapters.fresh(engine.params), stack_jobs(jobs), engine.frozen, engine.data
    )
    assert np.asarray(state.diverged).tolist() == [False] * (LANES - 1) + [True]
    assert np.asarray(metrics.steps).tolist() == [1] * LANES


def test_the_reference_of_adapted_lanes_is_the_base(setting, adapted, tmp_path):
    """Adapters begin as nothing, so what was computed of the base holds for them."""
    graph, params, frozen = adapted
    whole = nnx.merge(graph, params, frozen)
    graph, weights = nnx.split(whole)
    again = with_reference(setting.pairs, graph, weights, tokens=setting.tokens, root=tmp_path)
    np.testing.assert_allclose(again.reference_chosen, setting.pairs.reference_chosen, atol=1e-5)
