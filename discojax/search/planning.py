"""What `plan` compiles: the step of a config's run, for a slice, with shapes in the place of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from discojax.config import Config
from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig
from discojax.policies.attention import choose
from discojax.policies.lora import LoraConfig
from discojax.policies.published import architecture_of
from discojax.policies.sampling import Bucket
from discojax.population.engine import Programs
from discojax.population.memory import Measuring
from discojax.population.plan import Plan, Sizes, plan
from discojax.population.topology import Topology, find_topology
from discojax.population.work import Work
from discojax.search.instruments import measuring_by
from discojax.search.steps import finetune_step, population_step
from discojax.tasks.measure import Sampler, make_sampler
from discojax.tasks.types import SamplingConfig

__all__ = ["asked", "plan_run", "work_of"]

_MFU = "0.4"


def asked(topology: str | None, mfu: str | None) -> tuple[Topology, float]:
    """The slice and the utilisation that the command line names.

    Raises:
      UserError: there is no such slice, or the number is no fraction.
    """
    if not topology:
        raise UserError("plan needs a TPU slice: add --topology, such as v5e:4x4 or v5litepod-16.")
    found = find_topology(topology)
    try:
        fraction = float(mfu or _MFU)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(
            f"--mfu is the fraction of a chip's peak that is assumed, above 0 and up to 1, not {mfu}."
        )
    return found, fraction


def plan_run(
    config: Config,
    topology: Topology,
    mfu: float = float(_MFU),
    *,
    most: bool = True,
    report: Callable[[str], None] = lambda doing: None,
) -> Plan:
    """The plan of a config's run on a slice; see `population.plan.plan`.

    Raises:
      UserError: libtpu is not there; the policy's architecture cannot be known, or is too short for the
        task; or the mesh, the batch and the slice do not go together.
    """
    work, sizes = work_of(config, topology.chips)
    measuring = None if config.finetune.policy else _measuring(config, work)
    return plan(work, topology, sizes, measuring=measuring, mfu=mfu, most=most, report=report)


def _measuring(config: Config, work: Work) -> tuple[Measuring, int]:
    """How lanes are measured, and on how many prompts: all as long as the longest, in one bucket.

    So it takes no less than what a run's own prompts take.
    """
    task, evaluation = config.task, config.evaluation
    drawn = SamplingConfig(
        task.completion_tokens, 1, 0, temperature=task.temperature, top_k=task.top_k, top_p=task.top_p
    )

    @functools.cache
    def sampler_on(mesh: Mesh) -> Sampler:
        step = work.step
        return make_sampler(
            work.parts[0], drawn, mesh=mesh, implementation=step.implementation, dtype=step.dtype
        )

    def bucket_of(prompts: int) -> tuple[Bucket, ...]:
        row = jax.ShapeDtypeStruct((prompts,), np.int32)
        return (Bucket(jax.ShapeDtypeStruct((prompts, work.prompts), np.int32), row, row),)

    def measuring(programs: Programs, prompts: int) -> Sequence[tuple[Any, tuple[Any, ...]]]:
        return measuring_by(sampler_on(programs.mesh), bucket_of, work.data)(programs, prompts)

    return measuring, max(evaluation.prompts, evaluation.search_prompts)


def work_of(config: Config, devices: int) -> tuple[Work, Sizes]:
    """What a run of that config compiles, and its mesh on so many devices.

    That is the training of one policy where the config names one in `finetune.policy`, else the
    population's. A TPU takes its lanes all at once, where the config leaves that open.
    """
    if config.finetune.policy:
        return _finetune(config, devices)
    population, task = config.population, config.task
    implementation = "vmap" if population.implementation == "auto" else population.implementation
    small, source = config.policy, config.policy.pretrained
    if source is None:
        policy = DecoderConfig(
            small.vocab_size, small.layers, small.width, small.heads, small.max_length, remat=small.remat
        )
    else:
        policy = replace(architecture_of(source, small.revision or None), scan=True, remat=small.remat)
    lora = config.policy.lora
    work = Work(
        _on_tpu(policy, small.attention),
        LoraConfig(lora.rank, lora.alpha, lora.targets) if lora.rank else None,
        population_step(config, implementation),
        population.lanes,
        1 + task.prompt_tokens,
        task.completion_tokens,
        task.pairs,
    )
    _check_length(work, source or "the policy")
    return work, (population.mesh.lane, population.mesh.data, population.mesh.model)


def _finetune(config: Config, devices: int) -> tuple[Work, Sizes]:
    settings = config.finetune
    policy = replace(
        architecture_of(settings.policy, settings.revision or None), scan=True, remat=settings.remat
    )
    lora = settings.lora
    length = min(settings.max_length, policy.max_length)
    tokens = min(settings.completion_tokens, length - 1)
    model = settings.model_devices or max(devices // settings.data_devices, 1)
    work = Work(
        _on_tpu(policy, settings.attention),
        LoraConfig(lora.rank, lora.alpha, lora.targets) if lora.rank else None,
        finetune_step(settings, settings.data_devices * model),
        1,
        length - tokens,
        tokens,
        settings.pairs or _UNKNOWN_PAIRS,
    )
    return work, (1, settings.data_devices, model)


def _on_tpu(policy: DecoderConfig, attention: Literal["auto", "xla", "cudnn"]) -> DecoderConfig:
    # What `auto` is on a TPU is said, since it is compiled on a CPU.
    return replace(choose(policy, attention, "tpu"), attention="xla")


_UNKNOWN_PAIRS = 10_000  # of data that is not read here: a few bytes a token on every chip


def _check_length(work: Work, name: str) -> None:
    tokens = work.prompts + work.tokens
    if tokens > work.policy.max_length:
        raise UserError(
            f"task.prompt_tokens + task.completion_tokens + 1 ({tokens}) do not fit into the "
            f"{work.policy.max_length} positions of {name}: lower one of the two."
        )
