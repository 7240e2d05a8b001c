"""The compiled step against a plain loop that shares nothing with it but the order of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from discojax import objectives
from discojax.objectives import LogProbs
from discojax.population import StepMetrics, batch_indices
from discojax.population.lanes import idle_settings, stack_jobs
from discojax.population.margins import MARGIN_EDGES

STEPS = 5


@pytest.fixture(scope="module")
def plain(setting, noisy_pairs):
    """`plain(objective, job)`: the weights and the mean metrics after training, lane by lane by hand."""
    config = setting.config.optimizer
    warm = int(np.ceil(config.warmup * STEPS - 1e-9))
    table = [(k + 1) / warm for k in range(warm)]
    fall = STEPS - warm + 1
    table += [0.5 * (1 + np.cos(np.pi * k / fall)) for k in range(1, fall)]

    def summed(params, ids, prompts, lengths):
        policy = nnx.merge(setting.graph, params)
        logps = jax.nn.log_softmax(policy.hidden(ids) @ policy.head.T)[:, :-1]
        picked = jnp.take_along_axis(logps, ids[:, 1:, None], axis=-1)[..., 0]
        place = np.arange(1, ids.shape[1])
        inside = (place >= prompts[:, None]) & (place < (prompts + lengths)[:, None])
        return jnp.where(inside, picked, 0.0).sum(-1)

    def logprobs(params, batch):
        return LogProbs(
            summed(params, batch.chosen_ids, batch.prompt_length, batch.chosen_length),
            summed(params, batch.rejected_ids, batch.prompt_length, batch.rejected_length),
            batch.reference_chosen,
            batch.reference_rejected,
            batch.chosen_length,
            batch.rejected_length,
        )

    @jax.jit
    def forward(params, batch):
        return jax.vjp(lambda params: logprobs(params, batch), params)

    @jax.jit
    def update(pull, cotangents, moments, params, rate):
        optimizer = make_optimizer(rate)
        (gradient,) = pull(cotangents)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, optax.tree.norm(gradient)

    def make_optimizer(rate):
        adamw = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

    def train(objective, job):
        @jax.jit
        def head(logps, progress):
            def mean(policy_logps):
                return jnp.mean(objective(logps._replace(**policy_logps), job.beta, progress))

            return jax.value_and_grad(mean)(
                {"policy_chosen": logps.policy_chosen, "policy_rejected": logps.policy_rejected}
            )

        params, moments, told = setting.params, make_optimizer(0.0).init(setting.params), []
        for number in range(STEPS):
            index = batch_indices(job.seed, number, pairs=22, batch=setting.config.batch)
            batch = jax.tree.map(lambda x, index=index: x[index], noisy_pairs)
            logps, pull = forward(params, batch)
            loss, gradient = head(logps, number / STEPS)
            none = [np.zeros(4, np.float32)] * 2 + [np.zeros(4, jax.dtypes.float0)] * 2
            cotangents = LogProbs(gradient["policy_chosen"], gradient["policy_rejected"], *none)
            log_ratios = logps.policy_chosen - logps.reference_chosen
            margins = log_ratios - (logps.policy_rejected - logps.reference_rejected)
            rate = np.float32(table[number] * job.learning_rate)
            params, moments, norm = update(pull, cotangents, moments, params, rate)
            reached = (margins >= np.asarray(MARGIN_EDGES)[:, None]).mean(1)
            told.append((loss, job.beta * margins.mean(), (margins > 0).mean(), norm, *reached))
        return params, np.mean(told, axis=0)

    return train


@pytest.mark.parametrize("name", ["dpo", "simpo", "aot", "discopop", "kto_pair", "cell"])
def test_a_lane_is_a_plain_training_loop(name, plain, noisy_pairs, job, run, same):
    here = job(name, seed=3, steps=STEPS)
    params, metrics = plain(objectives.get(name), here)
    done = run([here], pairs=noisy_pairs)[0]
    assert same(done.measurement, params, atol=2e-4)
    assert not same(done.measurement, jax.tree.map(np.zeros_like, params), atol=0.1)
    assert done.metrics.steps == STEPS and not done.diverged
    np.testing.assert_allclose(jax.tree.leaves(done.metrics)[1:], metrics, rtol=2e-3, atol=1e-4)


def test_a_batch_coupled_loss_sees_the_whole_batch(plain, noisy_pairs, job, run, same):
    """`aot` sorts margins over the batch, and above it is the loop's; of half a batch it is another loss."""
    here = job("aot", seed=3, steps=STEPS)

    def by_halves(logps, beta, progress):
        aot = objectives.get("aot")
        halves = [jax.tree.map(lambda x, half=half: x[half], logps) for half in (slice(0, 2), slice(2, 4))]
        return jnp.concatenate([aot(half, beta, progress) for half in halves])

    wrong, _ = plain(by_halves, here)
    assert not same(run([here], pairs=noisy_pairs)[0].measurement, wrong, atol=2e-3)


@pytest.mark.parametrize("implementation", ["map", "vmap"])
def test_at_step_zero_policy_and_reference_agree(implementation, setting, programs_of, engine, job):
    programs = programs_of(implementation)
    jobs = [job("dpo", seed=seed, beta=0.5, learning_rate=0.0, steps=2) for seed in range(4)]
    state, metrics = programs.advance(
        programs.fresh(setting.params), stack_jobs(jobs), engine.frozen, engine.data
    )
    np.testing.assert_array_equal(metrics.steps, 2)
    np.testing.assert_allclose(metrics.loss / 2, np.log(2), atol=1e-5)
    np.testing.assert_allclose(metrics.margin, 0.0, atol=1e-5)
    edges = np.asarray(MARGIN_EDGES)
    np.testing.assert_array_equal(metrics.reached, np.tile(2.0 * (edges < 0), (4, 1)))
    assert (np.asarray(metrics.grad_norm) > 1e-3).all()
    assert not np.asarray(state.diverged).any()


@pytest.mark.parametrize("implementation", ["map", "vmap"])
def test_idle_lanes_do_not_change(implementation, setting, programs_of, engine, same):
    programs = programs_of(implementation)
    fresh = jax.tree.map(np.array, programs.fresh(setting.params))
    state, metrics = programs.advance(
        programs.fresh(setting.params), idle_settings(4), engine.frozen, engine.data
    )
    assert same(state, fresh)
    assert same(metrics, jax.tree.map(lambda x: np.zeros((4, *x.shape)), StepMetrics.nothing()))


def test_reset_frees_the_lanes_it_is_told_and_no_other(setting, programs_of, engine, job, same):
    programs = programs_of()
    settings = stack_jobs([job(seed=seed, steps=9) for seed in range(4)])
    state, _ = programs.advance(programs.fresh(setting.params), settings, engine.frozen, engine.data)
    before = jax.tree.map(np.array, state)
    after = programs.reset(state, setting.params, np.array([False, True, False, True]))
    fresh = programs.fresh(setting.params)
    for lanes, expected in (([0, 2], before), ([1, 3], fresh)):
        ours, theirs = (jax.tree.map(lambda x: np.asarray(x)[lanes], tree) for tree in (after, expected))  # noqa: B023
        assert same(ours, theirs)
    assert not same(before.params, fresh.params)


def test_the_same_seed_sees_the_same_pairs_whatever_the_objective(job, run):
    """A loss whose value is a pair's reference log-probability and whose gradient is another's."""

    def seen(push):
        return objectives.encode(
            [
                ("stop_gradient", ("policy_chosen_logps",)),
                ("subtract", ("policy_chosen_logps", 0)),
                ("multiply", (1, push)),
                ("add", ("reference_chosen_logps", 2)),
            ],
            3,
        )

    losses = [(1.0, 5, 0.1), (-3.0, 5, 0.02), (1.0, 6, 0.1)]
    jobs = [job(seen(push), seed=seed, learning_rate=rate, beta=rate) for push, seed, rate in losses]
    one, other, another_seed = run(jobs)
    assert one.metrics.loss == other.metrics.loss != another_seed.metrics.loss
    assert one.metrics.grad_norm != other.metrics.grad_norm
