"""A station is opened only if its lanes can be trained and measured in the memory that there is."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import nnx

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.population import StepConfig, memory
from discojax.population.operations import Begin, Observe, perform
from discojax.search import instruments as of
from discojax.tasks.types import Prompts, SamplingConfig

LANES, PROMPTS = 4, 512


@pytest.fixture(scope="module")
def goods():
    """A policy whose completions take more memory than its training."""
    config = DecoderConfig(vocab_size=256, layers=1, width=16, heads=2, max_length=32)
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 256, (2, 8, 32)).astype(np.int32)
    few = np.full(8, 4, np.int32)
    logps = np.zeros(8, np.float32)
    pairs = Pairs(*ids, few, few, few, logps, logps)
    prompts = Prompts(rng.integers(3, 256, (PROMPTS, 8)).astype(np.int32), np.full(PROMPTS, 8, np.int32))
    return graph, of._Goods(params, None, pairs, pairs, {"search": prompts})


@pytest.fixture(scope="module")
def instruments(goods):
    graph, found = goods
    step = StepConfig(batch=2, chunk=1, block=16, implementation="vmap")
    sampling = SamplingConfig(tokens=24, eos_id=2)
    return of.make_instruments(of.Design(graph, step, sampling, LANES, 24, 8, (1, 1, 1), True), found.params)


def opening(monkeypatch, limit):
    monkeypatch.setattr(memory, "available_memory", lambda mesh: limit)


def test_what_fits_is_measured_by_what_was_compiled_to_know_it(instruments, goods, monkeypatch):
    opening(monkeypatch, 2**40)
    station = of._station(instruments, goods[1], "search", PROMPTS)
    state, _ = perform(station, None, Begin())
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    _, observed = perform(station, state, Observe(np.ones(LANES, bool), np.zeros(LANES, np.int32)))
    assert observed.samples.completion_lengths.shape == (LANES, PROMPTS)
    assert observed.margin.shape == (LANES, 8)
    assert compiled == []


@pytest.mark.slow
def test_what_can_be_trained_but_not_measured_is_refused_before_anything_is_allocated(
    instruments, goods, monkeypatch
):
    trained = memory.needed_memory(instruments.programs, goods[1].pairs)
    opening(monkeypatch, 3 * trained)
    before = {id(array) for array in jax.live_arrays()}
    words = rf"Measuring {LANES} lanes on {PROMPTS} prompts needs .* MiB on each of 1 device"
    with pytest.raises(UserError, match=words) as refused:
        of._station(instruments, goods[1], "search", PROMPTS)
    assert {id(array) for array in jax.live_arrays()} <= before
    fewer = int(re.search(r"(\d+) prompts would fit \(evaluation.prompts=\1\)", str(refused.value))[1])
    assert 1 <= fewer < PROMPTS
    of._station(instruments, goods[1], "search", fewer)  # as it said
