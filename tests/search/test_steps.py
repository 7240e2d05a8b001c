"""The step of fine-tuning: how the devices share a batch."""

import os
import subprocess
import sys

import jax
import pytest

from discojax.config import Finetune
from discojax.errors import UserError
from discojax.population.mesh import rows_per_device
from discojax.search.steps import finetune_step, micro_batch


@pytest.mark.parametrize(
    ("settings", "devices", "expected"),
    [
        ({}, 1, 4),
        ({}, 16, 4),
        ({"data_devices": 2}, 16, 4),
        ({}, 64, 2),  # of a batch of 128
        ({"batch": 24}, 8, 3),
        ({"batch": 10, "micro_batch": 4}, 2, 1),
    ],
)
def test_every_device_takes_as_many_pairs_at_a_time_as_its_share_allows(settings, devices, expected):
    settings = Finetune(**settings)
    assert micro_batch(settings, devices) == expected
    step = finetune_step(settings, devices)
    model = devices // settings.data_devices
    mesh = jax.sharding.AbstractMesh((1, settings.data_devices, model), ("lane", "data", "model"))
    part = rows_per_device(mesh, step.batch, step.accumulate) // step.accumulate
    assert part == expected * model  # pairs at once of one copy of the policy, which its devices divide


def test_a_batch_without_a_share_for_each_device_names_the_numbers():
    with pytest.raises(UserError, match=r"finetune.batch \(128\) must be a multiple of the 24 .* 2 x 12"):
        finetune_step(Finetune(data_devices=2), 24)
    with pytest.raises(UserError, match=r"batch \(128\) .*\.data_devices \(2\) times model_devices \(12\)"):
        Finetune(data_devices=2, model_devices=12)


SCRIPT = """
import jax
from discojax.config import Finetune
from discojax.policies.decoder import DecoderConfig
from discojax.population.mesh import make_mesh
from discojax.population.memory import compile_step
from discojax.population.work import Work
from discojax.search.steps import finetune_step

policy = DecoderConfig(64, layers=2, width=64, heads=4, max_length=32, scan=True, remat="block")
for devices in (1, 8):
    mesh = make_mesh(1, 1, devices, among=jax.devices()[:devices])
    work = Work(policy, None, finetune_step(Finetune(dtype="float32"), devices), 1, 16, 16, 256)
    compiled, _ = compile_step(work.programs(mesh), work.data)
    print(work.step.accumulate, compiled.cost_analysis()["flops"])
"""


@pytest.mark.slow
def test_activations_are_divided_over_the_devices_of_one_policy():
    """A part of the batch is larger on more devices, and each does as much of it as before."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    (parts, alone), (fewer, each) = (map(float, line.split()) for line in process.stdout.splitlines())
    assert (parts, fewer) == (32, 4)
    assert each < 1.3 * alone  # of one part, whose loop a compiler counts once; undivided it would be 8
