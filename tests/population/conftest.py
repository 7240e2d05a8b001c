"""A tiny policy, real preference pairs of its own tokens, and programs compiled once for all tests."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from discojax import candidates, objectives
from discojax.data.pairs import Pairs
from discojax.data.reference import with_reference
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.population import Job, OptimizerConfig, Station, StepConfig, make_engine, make_programs, train

TOKENS = 6
OPTIMIZER = OptimizerConfig(weight_decay=0.1, warmup=0.3, clip_norm=0.5)
CONFIG = StepConfig(batch=4, chunk=3, block=16, optimizer=OPTIMIZER)

_NAN_AT_HALF = objectives.encode(  # DPO until half of the budget is spent, then the root of less than nothing
    [
        ("subtract", ("policy_chosen_logps", "policy_rejected_logps")),
        ("multiply", ("beta", 0)),
        ("log_sigmoid", (1,)),
        ("negative", (2,)),
        ("subtract", (0.49, "progress")),
        ("sign", (4,)),
        ("sqrt", (5,)),
        ("multiply", (3, 6)),
    ],
    7,
)
_OVERFLOWING = objectives.encode(
    [("multiply", ("policy_chosen_logps", -100.0)), ("exp", (0,)), ("multiply", (1, 1e30))], 2
)


@pytest.fixture(scope="session")
def setting(tmp_path_factory):
    """`graph`, `params`, `pairs` (22, so that an epoch leaves two out), `tokens` and `config`."""
    config = DecoderConfig(vocab_size=40, layers=1, width=16, heads=2, max_length=12)
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.integers, 3, 40)
    prompts = rng.integers(1, 6, 22).astype(np.int32)
    chosen = draw((22, 12)).astype(np.int32)
    rejected = np.where(np.arange(12) < prompts[:, None], chosen, draw((22, 12))).astype(np.int32)
    lengths = rng.integers(1, TOKENS + 1, (2, 22)).astype(np.int32)
    pairs = Pairs(chosen, rejected, prompts, *lengths)
    pairs = with_reference(pairs, graph, params, tokens=TOKENS, root=tmp_path_factory.mktemp("cache"))
    return SimpleNamespace(graph=graph, params=params, pairs=pairs, tokens=TOKENS, config=CONFIG)


@pytest.fixture(scope="session")
def noisy_pairs(setting):
    """Pairs with another policy as their reference: margins are not zero, where some losses have a corner."""
    noise = np.random.default_rng(1).normal(size=(2, 22)).astype(np.float32) * 2
    chosen, rejected = setting.pairs.reference_chosen + noise[0], setting.pairs.reference_rejected + noise[1]
    return setting.pairs._replace(reference_chosen=chosen, reference_rejected=rejected)


@pytest.fixture(scope="session")
def one_device():
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("lane", "data", "model"), axis_types=types, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def programs_of(setting, one_device):
    """`programs_of(implementation)` for four lanes, each built once."""

    def build(implementation):
        config = replace(CONFIG, implementation=implementation)
        return make_programs(setting.graph, setting.params, config, lanes=4, tokens=TOKENS, mesh=one_device)

    built = {implementation: build(implementation) for implementation in ("map", "vmap")}
    return lambda implementation="map": built[implementation]


@pytest.fixture(scope="session")
def engine(setting, programs_of):
    """The weights and the pairs on the device."""
    return make_engine(programs_of(), setting.params, setting.pairs)


@pytest.fixture(scope="session")
def code_of():
    """The machine's code of a library loss, of `nan_at_half` or of `overflowing`."""
    bad = {"nan_at_half": _NAN_AT_HALF, "overflowing": _OVERFLOWING}

    @functools.cache
    def code(name, **settings):
        if name in bad:
            return bad[name]
        return candidates.from_function(objectives.get(name, **settings)).code

    return code


@pytest.fixture(scope="session")
def job(code_of):
    """A `Job` of a library loss, or of a `Code`, with what matters little filled in."""

    def make(loss="dpo", beta=0.3, seed=0, learning_rate=0.02, steps=5):
        return Job(code_of(loss) if isinstance(loss, str) else loss, beta, seed, learning_rate, steps)

    return make


def weights_of(params, chosen, seeds):
    """The `observe` of a station: the weights themselves."""
    del seeds
    return [jax.tree.map(lambda x, lane=lane: np.array(x[lane]), params) for lane in np.flatnonzero(chosen)]


@pytest.fixture(scope="session")
def run(setting, programs_of):
    """Trains jobs and gives what became of each, by its place in the list."""

    def run(jobs, programs=None, progress=lambda _: None, observe=weights_of, pairs=setting.pairs):
        engine = make_engine(programs or programs_of(), setting.params, pairs)
        finished = list(train(Station(engine, observe), iter(enumerate(jobs)), progress))
        assert sorted(done.key for done in finished) == list(range(len(jobs)))
        return [done for _, done in sorted((done.key, done) for done in finished)]

    return run


@pytest.fixture(scope="session")
def same():
    """Whether two trees are equal, bit for bit or within `atol`."""

    def same(one, other, atol=0.0):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.allclose(a, b, rtol=0, atol=atol, equal_nan=True) for a, b in pairs)

    return same
