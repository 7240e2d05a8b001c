"""From a config to what is planned: the step, the policy and the mesh that a run of it would have."""

from dataclasses import replace

import pytest

from discojax.config import load
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.search.opening import task_config
from discojax.search.planning import asked, work_of
from discojax.search.steps import population_step


def test_the_quickstart_is_planned_as_it_runs():
    config = load(None, ["population.lanes=512"])
    work, sizes = work_of(config, 16)
    assert work.step == population_step(config, "vmap") and work.step.chunk == 5
    assert work.policy == DecoderConfig(4096, 3, 128, 4, 32, attention="xla") and work.lora is None
    assert (work.lanes, work.prompts, work.tokens, work.pairs, sizes) == (512, 7, 16, 2000, (0, 1, 1))


def test_a_small_policy_keeps_as_little_as_the_config_says():
    config = load(None, ["policy.remat=block"])
    assert work_of(config, 16)[0].policy.remat == task_config(config).policy.remat == "block"


def test_adapters_over_a_pretrained_base_are_planned_without_its_weights():
    words = ["policy.pretrained=gpt2", "policy.lora.rank=8", "policy.remat=block", "task.prompt_tokens=64",
             "population.mesh={lane: 4, data: 2, model: 2}", "population.dtype=bfloat16"]  # fmt: skip
    work, sizes = work_of(load(None, words), 16)
    assert work.policy.width == 768 and work.policy.scan and work.policy.remat == "block"
    assert work.lora == LoraConfig(rank=8) and work.step.dtype == "bfloat16" and sizes == (4, 2, 2)
    assert work.frozen == 124_439_808


def test_a_policy_that_is_fine_tuned_is_planned_as_one_lane_over_all_chips():
    config = load(None, ["finetune.policy=google/gemma-7b", "finetune.data_devices=2"])
    work, sizes = work_of(config, 16)
    assert sizes == (1, 2, 8) and work.lanes == 1 and work.step.accumulate == 128 // (4 * 16)
    assert (work.prompts, work.tokens) == (512, 512)


def test_attention_that_a_tpu_has_not_is_refused(tmp_path):
    for words in (
        ["finetune.policy=gpt2", "finetune.attention=cudnn"],
        ["policy.pretrained=gpt2", "policy.attention=cudnn", "population.dtype=bfloat16"],
    ):
        with pytest.raises(UserError, match="cudnn takes an NVIDIA GPU, and this is for a TPU"):
            work_of(load(None, words), 16)
    with pytest.raises(UserError, match="is no id on the hub, so it has no revision 'v1'"):
        work_of(load(None, [f"finetune.policy={tmp_path}", "finetune.revision=v1"]), 16)


def test_a_task_that_is_too_long_for_the_policy_is_refused_before_anything_is_compiled():
    words = ["policy.pretrained=gpt2", "task.prompt_tokens=1000", "task.completion_tokens=100"]
    with pytest.raises(UserError, match=r"\(1101\) do not fit into the 1024 positions of gpt2"):
        work_of(load(None, words), 16)


@pytest.mark.parametrize("mfu", ["0", "1.5", "half"])
def test_a_utilisation_that_is_no_fraction_is_refused(mfu):
    with pytest.raises(UserError, match=f"fraction of a chip's peak .* not {mfu}"):
        asked("v5e:4x4", mfu)


def test_what_is_asked_for_has_defaults_but_a_slice():
    topology, mfu = asked("v5p-128", None)
    assert (topology.name, mfu) == ("v5p:4x4x4", 0.4)
    with pytest.raises(UserError, match="needs a TPU slice: add --topology"):
        asked(None, None)


def test_a_finer_mesh_is_the_configs_own():
    config = load(None, [])
    config = replace(config, population=replace(config.population, implementation="map"))
    assert work_of(config, 4)[0].step.implementation == "map"
