"""One policy to its last step, and many of adapters over one base."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.data.reference import pair_logps, with_reference
from discojax.errors import UserError
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.population import StepConfig, make_engine, make_programs
from discojax.population.checkpoint import Checkpoints
from discojax.population.finetune import finetune
from discojax.population.lanes import stack_jobs
from discojax.population.operations import Station
from discojax.population.stopping import Preempted, Stopped


@pytest.fixture(scope="module")
def adapted(setting):
    policy = nnx.merge(setting.graph, setting.params)
    return partition(add_lora(policy, LoraConfig(3, 6.0, ("query", "value", "mlp.up")), nnx.Rngs(1)))


@pytest.fixture(scope="module")
def programs(setting, adapted, one_device):
    """Of adapters: of one lane, and of four."""
    graph, params, frozen = adapted
    config = StepConfig(batch=8, chunk=1)
    return {
        lanes: make_programs(
            graph, params, config, lanes=lanes, tokens=setting.tokens, mesh=one_device, frozen=frozen
        )
        for lanes in (1, 4)
    }


@pytest.fixture
def engine(setting, adapted, programs):
    """Of one lane; fresh for each test, which uses it up."""
    _, params, frozen = adapted
    return make_engine(programs[1], jax.tree.map(jnp.copy, params), setting.pairs, frozen)


@pytest.fixture(scope="module")
def said():
    """What was told of checkpoints."""
    return []


@pytest.fixture(scope="module")
def run_of(said, tmp_path_factory):
    def run(engine, job, folder=None, identity="a" * 64, every=100, report=lambda step: None):
        folder = folder or tmp_path_factory.mktemp("run") / "checkpoints"
        checkpoints = Checkpoints(str(folder), interval=0, say=said.append)
        station = Station(engine, checkpoints=checkpoints, identity=identity, once=True)
        try:
            state = finetune(station, job, every=every, report=report)
        finally:
            checkpoints.close()
        return jax.tree.map(np.asarray, state), folder

    return run


def test_lanes_of_adapters_share_a_base_and_each_trains_as_it_would_alone(
    setting, adapted, programs, engine, job, run_of
):
    _, params, frozen = adapted
    before = jax.tree.map(np.array, frozen)
    losses = ["dpo", "ipo", "slic", "discopop"]
    four = make_engine(programs[4], params, setting.pairs, frozen)
    state = programs[4].fresh(four.params)
    settings = stack_jobs([job(loss, seed=3, steps=4, learning_rate=0.01) for loss in losses])
    for _ in range(4):
        state, _ = programs[4].advance(state, settings, four.frozen, four.data)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, four.frozen)), "the base is nobody's"
    lanes = [jax.tree.map(lambda x, k=k: np.asarray(x[k]), state.params) for k in range(4)]
    for other in lanes[1:]:
        assert not all(
            np.allclose(x, y) for x, y in zip(*map(jax.tree.leaves, (lanes[0], other)), strict=True)
        )
    alone, _ = run_of(engine, job("discopop", seed=3, steps=4, learning_rate=0.01))
    for x, y in zip(jax.tree.leaves(lanes[3]), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(x, y[0], atol=1e-6)


def test_it_starts_at_log_two_falls_and_raises_the_margin(setting, adapted, engine, job, run_of):
    graph, _, frozen = adapted
    steps = []
    state, folder = run_of(engine, job("dpo", steps=12, learning_rate=0.02), report=steps.append)
    assert steps[0].loss == pytest.approx(np.log(2), abs=1e-6)
    assert steps[0].margin == pytest.approx(0, abs=1e-5)
    assert [step.step for step in steps] == list(range(1, 13))
    assert steps[-1].loss < 0.68 and steps[-1].accuracy > 0.8 and steps[-1].grad_norm > 0
    trained = jax.tree.map(lambda x: x[0], state.params)
    chosen, rejected = pair_logps(setting.pairs, graph, trained, frozen, tokens=setting.tokens)
    margins = (chosen - setting.pairs.reference_chosen) - (rejected - setting.pairs.reference_rejected)
    assert (margins > 0).mean() > 0.6
    assert [kept.name for kept in folder.iterdir()] == ["0"], "kept at its end"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(engine.params)), "what it began with makes room"


def test_the_log_probabilities_before_training_are_the_references(setting, adapted, tmp_path):
    graph, params, frozen = adapted
    chosen, rejected = pair_logps(setting.pairs, graph, params, frozen, tokens=setting.tokens, rows=7)
    np.testing.assert_allclose(chosen, setting.pairs.reference_chosen, atol=1e-4)
    half = with_reference(
        setting.pairs, setting.graph, setting.params, tokens=setting.tokens, dtype="bfloat16", root=tmp_path
    )
    np.testing.assert_allclose(half.reference_rejected, rejected, atol=1.0)
    assert np.abs(half.reference_rejected - rejected).max() > 1e-3, "computed in another precision"


@pytest.fixture
def again(setting, adapted, programs):
    """An engine, once more."""

    def again():
        _, params, frozen = adapted
        return make_engine(programs[1], jax.tree.map(jnp.copy, params), setting.pairs, frozen)

    return again


@pytest.mark.parametrize("how", ["by Ctrl-C", "by SIGTERM", "killed"])
def test_a_stop_changes_no_bit(how, again, engine, job, run_of, tmp_path):
    wanted = job("discopop", seed=1, steps=6, learning_rate=0.02)
    whole, _ = run_of(engine, wanted)
    folder = tmp_path / "checkpoints"

    def stop(step):
        if step.step == 3 and how == "by Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if step.step == 3 and how == "by SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if step.step == 3 and how == "killed":
            raise RuntimeError("nothing can be kept now")

    handler = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs the tests in the background
    expected = {"killed": RuntimeError, "by SIGTERM": Preempted}.get(how, Stopped)
    with pytest.raises(expected):
        run_of(again(), wanted, folder, every=2, report=stop)
    told = []
    resumed, _ = run_of(again(), wanted, folder, report=told.append)
    assert told[0].step == (3 if how == "killed" else 4)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(x, y)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_kept_of_another_run_is_refused_and_what_is_damaged_is_not_taken(
    again, job, run_of, said, tmp_path
):
    folder = tmp_path / "checkpoints"
    run_of(again(), job("dpo", steps=2), folder, every=1)
    with pytest.raises(UserError, match="other settings"):
        run_of(again(), job("dpo", steps=2), folder, identity="b" * 64)
    (folder / "1" / "lanes" / "manifest.ocdbt").unlink()
    steps = []
    run_of(again(), job("dpo", steps=3), folder, report=steps.append)
    assert [step.step for step in steps] == [2, 3] and "the one before it is taken" in said[-1]


def test_divergence_is_a_sentence_with_its_step(engine, job, run_of):
    with pytest.raises(UserError, match="diverged at step 3"):
        run_of(engine, job("nan_at_half", steps=6))
