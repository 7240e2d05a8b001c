from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from discojax.data.pairs import Pairs
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.divergence import completion_divergence
from discojax.policies.logprobs import completion_logps
from discojax.policies.sampling import Bucket, length_buckets, sample
from discojax.tasks.measure import make_judge, make_margins, make_observe, make_sampler
from discojax.tasks.types import Prompts, SamplingConfig

KINDS = ["map", pytest.param("vmap", marks=pytest.mark.slow)]
SAMPLING = SamplingConfig(tokens=6, eos_id=2)
LIKELIEST = SamplingConfig(tokens=6, eos_id=2, temperature=0.8, top_k=7, top_p=0.9)
SEEDS = np.array([7, 7, 8, 7])
ALL = np.ones(4, bool)


@pytest.fixture(scope="module")
def graph_and_reference():
    config = DecoderConfig(vocab_size=40, layers=1, width=16, heads=2, max_length=12)
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    return graph, jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module")
def prompts():
    ids = np.random.default_rng(0).integers(3, 40, (5, 4)).astype(np.int32)
    return Prompts(ids, np.array([4, 1, 2, 3, 4], np.int32))


@pytest.fixture(scope="module")
def lanes(graph_and_reference):
    """Four lanes: two policies, the first of them again, and the reference."""
    _, params = graph_and_reference
    rng = np.random.default_rng(1)
    one, two = (
        jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)
        for _ in range(2)
    )
    return jax.tree.map(lambda *leaves: np.stack(leaves), one, two, one, params)


@pytest.fixture(scope="module")
def mesh():
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("lane", "data", "model"), axis_types=types, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def samplers(graph_and_reference, mesh):
    graph, _ = graph_and_reference
    return {kind: make_sampler(graph, SAMPLING, mesh=mesh, implementation=kind) for kind in ("map", "vmap")}


def decode(rows):
    return ["".join(f" {int(token)}" for token in row) for row in rows]


def reward(prompts, completions):
    return np.array([len((a + b).split()) for a, b in zip(prompts, completions, strict=True)], np.float64)


@pytest.fixture(scope="module")
def measure(samplers, prompts, graph_and_reference):
    host = {"decode": decode, "reward": reward}

    def build(kind="map", **settings):
        _, reference = graph_and_reference
        of_host = {name: settings.pop(name, given) for name, given in host.items()}
        most = settings.pop("buckets", 1)
        buckets = length_buckets(*prompts, most=most, multiple=1)
        sampler = settings.pop("sampler", samplers[kind])
        observe = make_observe(sampler, buckets, reference, **settings)
        judge = make_judge(prompts, **of_host)
        return lambda params, chosen, seeds: judge(observe(params, chosen, seeds), chosen)

    return build


@pytest.fixture(scope="module")
def measured(measure, lanes):
    return measure()(lanes, ALL, SEEDS)


@pytest.fixture(scope="module")
def alone(graph_and_reference, prompts):
    """One policy's samples and divergence by `policies` themselves."""
    graph, reference = graph_and_reference

    @partial(jax.jit, static_argnames=("config",))
    def alone(params, key, config=SAMPLING):
        policy, other = (nnx.merge(graph, weights) for weights in (params, reference))
        samples = sample(policy, *prompts, key, **asdict(config))
        lengths = samples.completion_lengths
        return samples, completion_divergence(policy, other, samples.ids, prompts.lengths, lengths, tokens=6)

    return alone


@pytest.mark.parametrize(
    ("kind", "config"),
    [("map", SAMPLING), pytest.param("vmap", SAMPLING, marks=pytest.mark.slow), ("map", LIKELIEST)],
)
def test_every_lane_is_what_its_policy_samples_alone(
    kind, config, measure, graph_and_reference, mesh, lanes, prompts, alone
):
    sampler = make_sampler(graph_and_reference[0], config, mesh=mesh, implementation=kind)
    results = measure(kind, sampler=sampler)(lanes, ALL, SEEDS)
    for lane, result in enumerate(results):
        params = jax.tree.map(lambda x: x[lane], lanes)  # noqa: B023
        key = jax.random.fold_in(jax.random.key(0x5A3), int(SEEDS[lane]))
        samples, divergence = jax.tree.map(np.asarray, alone(params, key, config=config))
        ends = prompts.lengths + samples.completion_lengths
        rows = [row[a:b] for row, a, b in zip(samples.ids, prompts.lengths, ends, strict=True)]
        assert result.completions == decode(rows)
        np.testing.assert_array_equal(result.length, samples.completion_lengths)
        np.testing.assert_allclose(result.kl, divergence.sequence, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(result.reverse_kl, divergence.reverse_per_token, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_change_no_measurement(kind, measure, measured, lanes, prompts):
    assert len(length_buckets(*prompts, most=2, multiple=1)) == 2
    for ours, theirs in zip(measure(kind, buckets=2)(lanes, ALL, SEEDS), measured, strict=True):
        assert ours.completions == theirs.completions
        np.testing.assert_array_equal(ours.length, theirs.length)
        np.testing.assert_allclose(ours.kl, theirs.kl, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours.reverse_kl, theirs.reverse_kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_how_many_are_measured_at_a_time_changes_no_measurement(
    kind, measure, measured, graph_and_reference, mesh, lanes
):
    """Here two of a bucket of three, so that one is there twice."""
    graph, _ = graph_and_reference
    room = (4 if kind == "vmap" else 1) * 2 * (2 * 16 * 10 * 4 + 4 * 40)
    sampler = make_sampler(graph, SAMPLING, mesh=mesh, implementation=kind, most=room)
    for ours, theirs in zip(
        measure(kind, buckets=2, sampler=sampler)(lanes, ALL, SEEDS), measured, strict=True
    ):
        assert ours.completions == theirs.completions
        np.testing.assert_array_equal(ours.length, theirs.length)
        np.testing.assert_allclose(ours.kl, theirs.kl, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours.reverse_kl, theirs.reverse_kl, rtol=1e-3, atol=1e-5)


def test_what_measuring_holds_at_a_time_is_bounded(graph_and_reference, mesh, lanes):
    graph, reference = graph_and_reference
    ids = np.full((4096, 4), 3, np.int32)

    def temporaries(most):
        sampler = make_sampler(graph, SAMPLING, mesh=mesh, implementation="vmap", most=most)
        buckets = (Bucket(ids, np.full(4096, 4, np.int32), np.arange(4096, dtype=np.int32)),)
        lowered = sampler.lower(lanes, nnx.State({}), ALL, SEEDS, buckets, reference)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    row = 2 * 16 * 10 * 4 + 4 * 40  # keys, values and logits
    # What it returns and draws from are small beside them, and the same for both.
    assert temporaries(4 * 128 * row) < temporaries(2**31) / 4


def following(*steps):
    """A graph and weights of a policy that says `then` behind `token`, for each `(token, then)`."""
    config = DecoderConfig(vocab_size=40, layers=1, width=16, heads=2, max_length=12, tied=False)
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    policy = nnx.merge(graph, jax.tree.map(jnp.zeros_like, params))
    policy.norm.scale[...] = jnp.ones(16)
    for token, then in steps:
        policy.embedding.embedding[...] = policy.embedding.embedding[...].at[token, token].set(1.0)
        policy.lm_head.embedding[...] = policy.lm_head.embedding[...].at[then, token].set(1.0)
    return nnx.split(policy)


@pytest.fixture
def decoded(monkeypatch):
    """How long the cache is, of every token that a row of a lane is decoded to from here on."""
    calls = []
    decode_one = Decoder.decode

    def counted(self, ids, cache, positions):
        jax.debug.callback(lambda _, room=cache.keys[0].shape[-3]: calls.append(room), ids[0])
        return decode_one(self, ids, cache, positions)

    monkeypatch.setattr(Decoder, "decode", counted)
    return calls


GREEDY = SamplingConfig(tokens=6, eos_id=2, temperature=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_stops_when_its_own_completions_have_ended(kind, decoded, mesh):
    """Behind 5 comes the end, behind 6 another 6: two buckets, one of each."""
    graph, params = following((5, 2), (6, 6))
    buckets = tuple(
        Bucket(np.full((2, width), token, np.int32), np.full(2, width, np.int32), np.array(rows, np.int32))
        for width, token, rows in ((2, 5, [0, 2]), (4, 6, [1, 3]))
    )
    sampler = make_sampler(graph, GREEDY, mesh=mesh, implementation=kind)
    one = jax.tree.map(lambda x: x[None], params)
    samples, _ = sampler(one, nnx.State({}), np.ones(1, bool), SEEDS[:1], buckets, params)
    jax.effects_barrier()
    assert samples.completion_lengths.tolist() == [[1, 6, 1, 6]]
    assert decoded.count(2 + 6) == 1 and decoded.count(4 + 6) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_no_lane_waits_for_one_that_nobody_chose(kind, decoded, mesh):
    """The first lane's completions end at once, the second's never."""
    graph, ending = following((5, 2))
    _, endless = following((5, 5))
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), ending, endless)
    ids, lengths = np.full((2, 2), 5, np.int32), np.full(2, 2, np.int32)
    buckets = (Bucket(ids, lengths, np.arange(2, dtype=np.int32)),)
    sampler = make_sampler(graph, GREEDY, mesh=mesh, implementation=kind)
    found = {}
    for chosen in ([True, False], [True, True]):
        samples, _ = sampler(lanes, nnx.State({}), np.array(chosen), SEEDS[:2], buckets, ending)
        jax.effects_barrier()
        assert samples.completion_lengths[0].tolist() == [1, 1]
        found[sum(chosen)] = len(decoded)
        decoded.clear()
    # Under `vmap` a token is decoded for both lanes, whoever wants it, and counted for both.
    assert found == ({1: 1, 2: 1 + 6} if kind == "map" else {1: 2, 2: 2 * 6})


def test_a_seed_decides_the_draws_and_the_lane_does_not(measured):
    one, two, again, reference = measured
    assert one.completions != two.completions  # two policies
    assert one.completions != again.completions  # one policy, another seed
    np.testing.assert_array_equal(reference.kl, 0)  # the policy it is measured from
    np.testing.assert_array_equal(reference.reverse_kl, 0)
    assert (one.kl > 0).all() and (one.reverse_kl > 0).all()


def test_the_same_policy_with_the_same_seed_is_measured_alike_in_any_lane(measure, lanes, measured):
    turned = jax.tree.map(lambda x: np.roll(x, 1, axis=0), lanes)
    results = measure()(turned, ALL, np.roll(SEEDS, 1))
    for ours, theirs in zip([*results[1:], results[0]], measured, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["map", "vmap"])
def test_only_chosen_lanes_are_given_in_their_order(kind, measure, lanes, measured):
    chosen = np.array([True, False, False, True])
    ruined = jax.tree.map(lambda x: np.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, np.nan), lanes)
    results = measure(kind)(ruined, chosen, SEEDS)
    assert len(results) == 2
    for ours, theirs in zip(results, (measured[0], measured[3]), strict=True):
        assert ours.completions == theirs.completions
        np.testing.assert_allclose(ours.kl, theirs.kl, rtol=1e-3, atol=1e-5)
    assert measure(kind)(lanes, np.zeros(4, bool), SEEDS) == []


def test_the_reward_reads_prompt_and_completion(measured, prompts):
    for result in measured:
        np.testing.assert_array_equal(result.reward, prompts.lengths + result.length)
        assert result.reward.dtype == np.float32


def test_or_the_completion_alone(measure, lanes, measured):
    results = measure(reward=lambda prompts, texts: reward([""] * len(prompts), texts))(lanes, ALL, SEEDS)
    for ours, theirs in zip(results, measured, strict=True):
        np.testing.assert_array_equal(ours.reward, theirs.length)
        assert ours.completions == theirs.completions


def test_texts_begin_with_the_prompt_and_padding_is_no_part_of_them(measure, lanes, prompts):
    seen: list[str] = []

    def listen(prompts, completions):
        seen.extend(map(str.__add__, prompts, completions))
        return reward(prompts, completions)

    (result,) = measure(reward=listen)(lanes, np.array([False, True, False, False]), SEEDS)
    for text, row, length, completion in zip(seen, *prompts, result.completions, strict=True):
        assert text == decode([row[:length]])[0] + completion


@pytest.fixture(scope="module")
def held_out():
    """Pairs of prompts of other lengths than their completions; the reference is set below."""
    rng = np.random.default_rng(3)
    prompt, chosen, rejected = rng.integers(1, 5, 37), rng.integers(1, 7, 37), rng.integers(1, 7, 37)
    ids = rng.integers(3, 40, (2, 37, 10)).astype(np.int32)
    return Pairs(*ids, *(x.astype(np.int32) for x in (prompt, chosen, rejected)))


def test_margins_of_held_out_pairs_are_those_of_training(graph_and_reference, lanes, held_out, measure, mesh):
    graph, params = graph_and_reference

    def logps(weights, side):
        ids, lengths = getattr(held_out, f"{side}_ids"), getattr(held_out, f"{side}_length")
        return completion_logps(nnx.merge(graph, weights), ids, held_out.prompt_length, lengths, tokens=6)

    reference = {f"reference_{side}": np.asarray(logps(params, side)) for side in ("chosen", "rejected")}
    pairs = held_out._replace(**reference)
    chosen = np.array([True, False, True, True])
    five = 5 * 12 * graph_vocabulary(graph, params) * 6 * len(chosen)  # of the 37 pairs at a time
    for kind, most in (("map", 2**30), ("vmap", 2**30), ("vmap", five), ("vmap", 1)):
        margins = make_margins(graph, tokens=6, mesh=mesh, implementation=kind, most=most)
        results = measure(margins=margins, held_out=pairs)(lanes, chosen, SEEDS)
        for result, lane in zip(results, np.flatnonzero(chosen), strict=True):
            weights = jax.tree.map(lambda x: x[lane], lanes)  # noqa: B023
            ours = {side: logps(weights, side) - reference[f"reference_{side}"] for side in
                    ("chosen", "rejected")}  # fmt: skip
            np.testing.assert_allclose(result.margin, ours["chosen"] - ours["rejected"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(results[2].margin, 0, atol=1e-5)  # the policy it is measured from
        assert np.abs(results[0].margin).min() > 1e-3


def graph_vocabulary(graph, params):
    return nnx.merge(graph, params).config.vocab_size


def test_what_is_archived_is_arrays_of_every_prompt(measured):
    arrays = measured[0].arrays()
    assert set(arrays) == {"reward", "kl", "reverse_kl", "length", "completion"}
    assert arrays["completion"].tolist() == measured[0].completions and arrays["completion"].dtype.kind == "U"


def test_kl_excludes_prompt_tokens(measured, lanes, prompts, graph_and_reference):
    """The DiscoPOP paper's released evaluation counted the prompt's tokens, which no policy chose."""
    graph, reference = graph_and_reference
    weights = jax.tree.map(lambda x: x[0], lanes)
    result = measured[0]
    decoded = [[int(token) for token in text.split()] for text in result.completions]
    for row, (ids, length) in enumerate(zip(*prompts, strict=True)):
        tokens = np.asarray([[*ids[:length].tolist(), *decoded[row]]], np.int32)

        def logits(params, tokens=tokens):
            policy = nnx.merge(graph, params)
            return jax.nn.log_softmax(policy.hidden(tokens)[0] @ policy.head.T)

        p, q = np.asarray(logits(weights), np.float64), np.asarray(logits(reference), np.float64)
        by_position = (np.exp(p) * (p - q)).sum(-1)  # of the token after each position
        of_completion = by_position[length - 1 : length - 1 + len(decoded[row])].sum()
        np.testing.assert_allclose(result.kl[row], of_completion, rtol=2e-3)
        if length > 1:
            assert abs(by_position[:-1].sum() - of_completion) > 0.01 * of_completion
