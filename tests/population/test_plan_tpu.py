"""Plans of real runs, compiled for TPU slices by `plan` on a machine that has none.

    python -m pytest -m tpu_compile tests/population/test_plan_tpu.py -s

with the extra `tpu` installed. Each compilation takes about a minute of one core.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"),
]

GPT2 = (
    "policy.pretrained=gpt2", "policy.lora.rank=8", "policy.remat=block", "population.dtype=bfloat16",
    "population.chunk=1", "task.prompt_tokens=64", "task.completion_tokens=64",
)  # fmt: skip
GEMMA = (
    "policy.pretrained=google/gemma-7b", "policy.lora.rank=16", "policy.remat=block",
    "population.dtype=bfloat16", "population.chunk=1", "task.prompt_tokens=256", "task.completion_tokens=256",
    "population.mesh={lane: 8, data: 1, model: 8}",
)  # fmt: skip
GIB = 2**30


@pytest.fixture(scope="module")
def plan(repository):
    """`plan(slice, *settings)`: what the command says, as JSON; each only once."""
    done = {}

    def ask(topology, *settings):
        if (topology, settings) not in done:
            words = ["plan", "--topology", topology, "--quick", "--json", *settings]
            process = subprocess.run(
                [sys.executable, "-m", "discojax.launch", *words],
                env=os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
                cwd=repository, capture_output=True, text=True, timeout=1500,
            )  # fmt: skip
            assert process.returncode in (0, 1), process.stderr[-3000:]
            done[topology, settings] = json.loads(process.stdout)
            assert process.returncode == (0 if done[topology, settings]["fits"] else 1)
            print(f"\n{topology} {' '.join(settings)}: {done[topology, settings]['bytes_a_chip']}")
        return done[topology, settings]

    return ask


def test_the_quickstart_with_512_lanes_fits_sixteen_v5e(plan):
    found = plan("v5litepod-16", "population.lanes=512")
    assert found["fits"] and found["chips"] == 16 and found["mesh"] == {"lane": 16, "data": 1, "model": 1}
    weights = 4 * found["parameters"]["trained"] * 512 // 16
    assert found["bytes_a_chip"]["arguments"] >= 3 * weights  # and two moments
    assert found["bytes_a_chip"]["total"] < 2 * GIB
    assert found["measuring"]["prompts"] == 256 and found["measuring"]["bytes"] > 2 * weights
    assert found["collectives"] == []
    assert 1.0 < found["compiler_flops_over_ours"] < 1.25
    assert found["suggestion"]["mesh"] == found["mesh"]


SMALL = (
    "policy.layers=1", "policy.width=128", "policy.heads=2", "policy.vocab_size=256", "population.lanes=8",
    "population.chunk=1", "task.pairs=64", "task.completion_tokens=4", "evaluation.prompts=8",
    "evaluation.search_prompts=8",
)  # fmt: skip


@pytest.mark.parametrize("topology", ["v4-8", "v6e-4"])
def test_a_small_run_is_compiled_for_the_other_generations(plan, topology):
    found = plan(topology, *SMALL)
    assert found["fits"] and found["chips"] == 4 and found["accelerator_type"] == topology
    weights = 4 * found["parameters"]["trained"] * 8 // 4
    assert 3 * weights <= found["bytes_a_chip"]["arguments"] < GIB
    assert found["measuring"]["prompts"] == 8 and found["measuring"]["bytes"] > 3 * weights
    assert found["collectives"] == []


def test_twice_the_chips_with_twice_the_lanes_leave_each_chip_what_it_had(plan):
    """Weak scaling, by the compiled programs."""
    small, large = plan("v5e:2x4", "population.lanes=256"), plan("v5litepod-16", "population.lanes=512")
    assert small["chips"] * 2 == large["chips"]
    for name, size in small["bytes_a_chip"].items():
        assert large["bytes_a_chip"][name] == pytest.approx(size, rel=0.02), name
    counted = [found["compiler_flops_a_chip"] for found in (small, large)]
    assert counted[0] > 0 and counted[1] == pytest.approx(counted[0], rel=0.02)
    assert large["flops_a_step"] / 16 == small["flops_a_step"] / 8
    assert small["collectives"] == large["collectives"] == []


def test_gpt2_with_64_lanes_of_adapters_fits_sixteen_v5e(plan):
    found = plan("v5litepod-16", "population.lanes=64", *GPT2)
    assert found["fits"] and found["parameters"]["frozen"] == 124_439_808
    assert 2 * 124_439_808 < found["bytes_a_chip"]["arguments"] < 2.2 * 124_439_808  # one base, in bfloat16
    assert found["bytes_a_chip"]["total"] < 3 * GIB
    assert found["collectives"] == []


def test_gemma_7b_with_8_lanes_fits_a_v5p_128_divided_over_model(plan):
    found = plan("v5p-128", "population.lanes=8", *GEMMA)
    assert found["fits"] and found["parameters"]["frozen"] == 8_537_680_896
    base = 2 * 8_537_680_896 / 8
    assert base < found["bytes_a_chip"]["arguments"] < 1.1 * base
    assert found["bytes_a_chip"]["total"] < 16 * GIB
    assert {each["axes"] for each in found["collectives"]} == {"model"}
    # The base is gathered at least forwards, once more where activations are computed again, and backwards.
    assert sum(each["bytes"] for each in found["collectives"]) > 2 * 2 * 8_537_680_896
    assert found["suggestion"]["mesh"] == {"lane": 8, "data": 8, "model": 1}
