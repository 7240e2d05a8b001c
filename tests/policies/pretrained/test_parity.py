"""The same weights in PyTorch and here: logits, padding, generation, gradients, and the way back."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from discojax import objectives
from discojax.policies import pretrained
from discojax.policies.logprobs import completion_logps
from discojax.policies.pretrained.architectures import ARCHITECTURES
from discojax.policies.pretrained.correspondence import assembled, correspondence, joined
from discojax.policies.sampling import sample

pytestmark = [pytest.mark.parity, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parent / "transformers_models.py"
CONFIGS = json.loads((SCRIPT.parent / "small_models.json").read_text())
ENCODERS = ("roberta", "distilbert")
DECODERS = tuple(name for name in CONFIGS if name not in ENCODERS)
BETA, NEW_TOKENS, COMPLETION = 0.5, 32, 12


def run(what, directory):
    """Runs the script in this Python or in the one that `TRL_PYTHON` names."""
    python = os.environ.get("TRL_PYTHON", sys.executable)
    find = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('torch', 'transformers'))))"
    if subprocess.run([python, "-c", find]).returncode:
        pytest.skip("torch and transformers are not installed; TRL_PYTHON may name a Python that has them")
    done = subprocess.run(
        [python, str(SCRIPT), what, str(directory)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    run("make", directory)
    return directory


# Small models take no time to run; what takes it is to compile them well.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
greedily = quickly(sample, static_argnames=("tokens", "eos_id", "temperature"))


@quickly
def computed(policy, ids, prompts, completions, reference):
    """Logits, completion log-probabilities, DPO's loss and its gradient, in one compilation."""
    graph, params = nnx.split(policy)

    def loss(params):
        policy = nnx.merge(graph, params)
        logps = completion_logps(policy, ids, prompts, completions, tokens=COMPLETION)
        dpo = objectives.get("dpo")
        pairs = objectives.LogProbs(
            logps[:4], logps[4:], reference[:4], reference[4:], completions[:4], completions[4:]
        )
        return dpo(pairs, BETA).mean(), logps

    (value, logps), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    logits = policy.hidden(ids) @ policy.head.T
    cap = policy.config.logit_softcap
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return logits, logps, value, gradient


@pytest.mark.parametrize(
    ("name", "attention"),
    # One with grouped heads, and one whose layers are local too, also as an accelerator computes attention.
    [*((name, "auto") for name in DECODERS), *((name, "xla") for name in ("llama-3", "gemma3_text"))],
)
def test_a_decoder_computes_what_transformers_does(models, name, attention):
    expected = np.load(models / f"{name}.npz")
    loaded = pretrained.load(models / name, attention=attention)
    policy = loaded.policy
    ids, prompts, completions = (
        jnp.asarray(expected[key], jnp.int32) for key in ("ids", "prompts", "completions")
    )
    logits, logps, loss, gradient = computed(policy, ids, prompts, completions, expected["reference"])

    inside = np.arange(ids.shape[1]) < (prompts + completions)[:, None]
    np.testing.assert_allclose(np.asarray(logits)[inside], expected["logits"][inside], atol=1e-4)
    # PyTorch has these from rows padded on the left, with a mask.
    np.testing.assert_allclose(logps, expected["logps"], atol=1e-4)
    np.testing.assert_allclose(loss, expected["loss"], atol=1e-5)

    leaves = correspondence(ARCHITECTURES[loaded.hf_config["model_type"]], gradient)
    values = {leaf.path: np.asarray(g) for leaf, g in zip(leaves, jax.tree.leaves(gradient), strict=True)}
    tensors = {
        tensor: assembled(parts[0][0].row, [values[leaf.path] for leaf, _ in parts])
        for tensor, parts in joined(leaves).items()
    }
    theirs = {key.removeprefix("gradient "): expected[key] for key in expected if key.startswith("gradient ")}
    assert tensors.keys() == theirs.keys()
    for tensor, value in tensors.items():
        difference = np.linalg.norm(value - theirs[tensor])
        assert difference <= 1e-4 * np.linalg.norm(theirs[tensor]) + 1e-7, tensor

    greedy = greedily(
        policy, ids[:4, :8], prompts[:4], jax.random.key(0), tokens=NEW_TOKENS, eos_id=-1, temperature=0
    )
    rows = zip(np.asarray(greedy.ids), np.asarray(prompts[:4]), strict=True)
    assert [row[n : n + NEW_TOKENS].tolist() for row, n in rows] == expected["greedy"].tolist()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_what_transformers_does(models, name):
    expected = np.load(models / f"{name}.npz")
    encoder = pretrained.load(models / name).policy
    logits = quickly(lambda encoder, *texts: encoder(*texts))(encoder, expected["ids"], expected["lengths"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    assert np.ptp(expected["logits"], axis=0).min() > 0.1  # they say something


def bits(file):
    return {name: tensor.view(np.uint8).tobytes() for name, tensor in load_file(file).items()}


def test_bfloat16_weights_are_the_same_bits(models, tmp_path):
    for name in CONFIGS:
        loaded = pretrained.load(models / f"{name}-bf16")
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(loaded.policy))} == {jnp.dtype(jnp.bfloat16)}
        pretrained.save(loaded, tmp_path / name)
        original = bits(models / f"{name}-bf16" / "model.safetensors")
        assert bits(tmp_path / name / "model.safetensors") == original, name


def test_transformers_reads_what_we_save(models, tmp_path):
    """From layers of their own and from stacked ones, in one file and in several, changed and not."""
    for name in CONFIGS:
        loaded = pretrained.load(models / name, scan=name in DECODERS)
        pretrained.save(loaded, tmp_path / name, shard_bytes=30_000 if "llama" in name else 10**9)
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1 or "llama" not in name
    run("read", tmp_path)
    for name in CONFIGS:
        expected, actual = np.load(models / f"{name}.npz"), np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(actual["logits"], expected["logits"], err_msg=name)
