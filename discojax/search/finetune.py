"""What is done with a discovery: one pretrained policy of any size, trained with one loss, and saved.

    rows -> pairs -> reference log-probabilities -> adapters -> steps -> held-out pairs -> a directory

Everything that a population does for many small policies is done here for one: the same pairs, the
same step, the same mesh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from discojax.config import Config, Finetune, dump
from discojax.data import cache, hub_tokenizers, sources
from discojax.data.preferences import Preparation, Prepared, prepare
from discojax.data.reference import pair_logps, with_reference
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.policies import peft, pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.lora import LoraConfig, add_lora, merge_lora
from discojax.policies.partition import partition
from discojax.policies.pretrained.locating import locate
from discojax.policies.pretrained.reading import Pretrained
from discojax.population import hosts
from discojax.population.engine import Engine, make_engine, make_programs
from discojax.population.finetune import Step
from discojax.population.finetune import finetune as train_one
from discojax.population.lanes import Job
from discojax.population.mesh import make_mesh
from discojax.population.placement import shardings
from discojax.population.step import cast
from discojax.search import logs
from discojax.search.display import Display, display
from discojax.search.held_out import HeldOut, measure
from discojax.search.laboratory import Contender
from discojax.search.opening import given
from discojax.search.records import plain
from discojax.search.steps import finetune_step

__all__ = ["CHECKPOINT", "Tuned", "chosen", "finetune"]

CHECKPOINT = "checkpoint.safetensors"
_FULL, _ADAPTERS = 5e-7, 5e-6  # learning rates: of the paper; of TRL's own script for adapters
_PLACES = {"policy", "data", "tokenizer", "checkpoint", "save"}  # what does not change the weights


@dataclass(frozen=True)
class Tuned:
    """What a run made.

    Attributes:
      folder: the run's.
      policy: the directory that Transformers, or PEFT, loads.
      loading: how: a line of Python.
      objective: the loss's name.
      steps, pairs: of the training.
      last: the last step.
      held_out: None where no pairs were held out.
      data: what was read and left out.
    """

    folder: Path
    policy: Path
    loading: str
    objective: str
    steps: int
    pairs: int
    last: Step | None
    held_out: HeldOut | None
    data: str


def chosen(
    config: Config, policy: str | None, data: str | None, objectives: Sequence[str], *, resume: bool = False
) -> Config:
    """The config with what the command line chose; None and an empty list choose nothing.

    Its run's name is one that is free, `finetune` or else `finetune-2`, unless it is to go on.

    Raises:
      UserError: more than one objective is chosen.
    """
    if len(objectives) > 1:
        raise UserError(f"One policy is trained with one objective, not with {', '.join(objectives)}.")
    old, run = config.finetune, config.run
    new = replace(
        old,
        policy=policy or old.policy,
        data=data or old.data,
        objective=next(iter(objectives), old.objective),
    )
    if not resume:
        name = "finetune" if run.name == type(run)().name else run.name
        number, run = 1, replace(run, name=name)
        while run.path.exists() and any(run.path.iterdir()):
            number += 1
            run = replace(run, name=f"{name}-{number}")
    return replace(config, finetune=new, run=run)


def finetune(config: Config) -> Tuned:
    """Trains `config.finetune.policy`, from where it stopped if the run's folder holds a part of it.

    Raises:
      UserError: the policy, its tokenizer, the data or the objective cannot be had or do not fit
        together, the run is finished already, or there are other processes.
      population.finetune.Stopped: the user stopped it; the same call goes on.
    """
    settings, folder = config.finetune, config.run.path
    logs.require(config.run)
    if not hosts.alone():
        raise UserError(
            "One policy is trained by one process, over all devices of its host: start `train --policy` on "
            "one host, without --coordinator, --processes and --process."
        )
    contender = _contender(settings)
    if (folder / "policy").exists():
        raise UserError(
            f"{folder} is finished: its policy is in {folder / 'policy'}. Choose another run.name."
        )
    mesh = _mesh(settings)
    source = locate(settings.policy)
    tokenizer = hub_tokenizers.load(settings.tokenizer or source)
    next(_rows(settings, sources.Account()), None)  # a mistake in the data is told before weights are read
    with display() as screen, jax.set_mesh(mesh), logs.opened(config, retaken=True) as log:
        _start(config, screen)
        loaded = _load(settings, source, mesh, tokenizer)
        account = sources.Account()
        prepared = _prepare(settings, tokenizer, account, loaded.policy.config.max_length)
        training, held_out = prepared.split(settings.held_out)
        screen.say(_said(training, held_out, prepared, account))
        tokens = int(max(prepared.pairs.chosen_length.max(), prepared.pairs.rejected_length.max()))
        training, held_out = (
            _reference(settings, loaded, part, tokens, screen) for part in (training, held_out)
        )
        engine, graph = _engine(config, loaded, training, tokens, mesh)
        job = _job(config, contender, len(training.prompts))
        loaded = replace(loaded, policy=_shell(loaded.policy))  # its weights are the engine's from here on
        identity = _identity(config, contender, training)
        bar = screen.bar(f"training with {contender.name}", job.steps)
        steps: list[Step] = []
        started = time.monotonic()

        def report(step: Step) -> None:
            steps[:] = [step]
            bar.update(
                step.step, f"loss {step.loss:.3f}, margin {step.margin:+.3f}, accuracy {step.accuracy:.2f}"
            )
            log("step", seconds=round(time.monotonic() - started, 3), **step._asdict())

        state = train_one(
            engine, job, file=folder / CHECKPOINT, identity=identity, every=settings.checkpoint, report=report
        )
        trained = jax.tree.map(lambda x: x[0], state.params)
        measured = None
        if len(held_out.prompts):
            logps = _logps(settings, graph, (trained, engine.frozen), held_out, tokens, screen)
            measured = measure(held_out, *logps, beta=settings.beta, confidence=config.evaluation.confidence)
            log("held_out", **asdict(measured))
        _save(config, loaded, graph, trained, engine.frozen, tokenizer, mesh)
    tuned = Tuned(
        folder, folder / "policy", _loading(config, loaded), contender.name, job.steps, len(training.prompts),
        steps[0] if steps else None, measured, str(account),
    )  # fmt: skip
    (folder / CHECKPOINT).unlink(missing_ok=True)  # three times the size of what trained
    cache.write_json(folder / "results.json", plain(asdict(tuned) | {"folder": ".", "policy": "policy"}))
    return tuned


def _contender(settings: Finetune) -> Contender:
    if not settings.policy or not settings.data:
        missing = "data (--data FILE or ID)" if settings.policy else "a policy (--policy DIR or ID)"
        raise UserError(f"Training one policy takes {missing} too.")
    contender = given(settings.objective)
    if contender.program.minimum_batch > settings.batch:
        raise UserError(
            f"{contender.name} needs batches of at least {contender.program.minimum_batch} pairs: "
            "raise finetune.batch."
        )
    return contender


def _mesh(settings: Finetune) -> Mesh:
    devices = jax.device_count()
    model = settings.model_devices or max(devices // settings.data_devices, 1)
    if settings.data_devices * model != devices:
        raise UserError(
            f"finetune.data_devices ({settings.data_devices}) times finetune.model_devices ({model}) is not "
            f"the {devices} devices that there are."
        )
    return make_mesh(1, settings.data_devices, model)


def _start(config: Config, screen: Display) -> None:
    folder = config.run.path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    screen.say(f"Run [bold]{folder}[/bold]: {config.finetune.policy} on {config.finetune.data}.")


def _load(settings: Finetune, source: Path, mesh: Mesh, tokenizer: TextTokenizer) -> Pretrained:
    # Where all weights train they are float32 from the start; where they do not, as they compute.
    dtype = settings.dtype if settings.lora.rank else "float32"
    loaded = pretrained.load(
        source, dtype=dtype, sharding=lambda shapes: shardings(mesh, shapes), scan=True, remat=settings.remat
    )
    if not isinstance(loaded.policy, Decoder):
        raise UserError(f"{settings.policy} is a reward model, not a language model that can be trained.")
    tokenizer.check_vocabulary(loaded.policy.config.vocab_size)
    return loaded


def _rows(settings: Finetune, account: sources.Account):
    rows = sources.read_preferences(
        settings.data, account, split=settings.split, columns=sources.Columns(*settings.columns)
    )
    return islice(rows, settings.pairs or None)


def _prepare(
    settings: Finetune, tokenizer: TextTokenizer, account: sources.Account, longest: int
) -> Prepared:
    preparation = Preparation(min(settings.max_length, longest), settings.completion_tokens, settings.style)
    return prepare(_rows(settings, account), tokenizer, preparation, account)


def _said(training: Prepared, held_out: Prepared, prepared: Prepared, account: sources.Account) -> str:
    counts = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in prepared.counts.items() if count
    )
    return (
        f"{len(training.prompts)} pairs to train on, {len(held_out.prompts)} held out; {account}"
        f"{f'; in tokens: {counts}' if counts else ''}."
    )


def _reference(
    settings: Finetune, loaded: Pretrained, part: Prepared, tokens: int, screen: Display
) -> Prepared:
    if not len(part.prompts):
        return part
    bar = screen.bar("reference log-probabilities", 2 * len(part.prompts))
    graph, params = nnx.split(loaded.policy)
    pairs = with_reference(
        part.pairs, graph, params, tokens=tokens, dtype=settings.dtype, rows=_at_once(settings),
        progress=lambda done, total: bar.update(done),
    )  # fmt: skip
    if bar.done < bar.total:  # read from the cache
        bar.update(bar.total)
    return part._replace(pairs=pairs)


def _at_once(settings: Finetune) -> int:
    return 2 * settings.micro_batch * settings.data_devices


def _engine(
    config: Config, loaded: Pretrained, training: Prepared, tokens: int, mesh: Mesh
) -> tuple[Engine, nnx.GraphDef]:
    settings = config.finetune
    if len(training.prompts) < settings.batch:
        raise UserError(
            f"There are {len(training.prompts)} pairs to train on, fewer than one batch of {settings.batch}: "
            "lower finetune.batch, or give more data."
        )
    graph, params, frozen = partition(_adapted(config, loaded.policy))
    step = finetune_step(settings)
    prompts = int(training.pairs.prompt_length.max())
    programs = make_programs(
        graph, params, step, lanes=1, tokens=tokens, prompts=prompts, mesh=mesh, frozen=frozen
    )
    with _own_words():
        return make_engine(programs, params, training.pairs, frozen), graph


@contextmanager
def _own_words() -> Iterator[None]:
    """The engine advises a population; of one policy other settings are lowered."""
    try:
        yield
    except UserError as error:
        need, fault, _ = str(error).partition(" Not even one a device fits:")
        if not fault:
            raise
        raise UserError(
            f"{need.replace('1 lanes', 'One policy', 1)} Lower finetune.micro_batch or finetune.max_length, "
            "train adapters (finetune.lora.rank) in bfloat16, or divide it over more finetune.model_devices."
        ) from None


def _adapted(config: Config, policy: Any) -> Any:
    lora = config.finetune.lora
    if not lora.rank:
        return policy
    return add_lora(policy, LoraConfig(lora.rank, lora.alpha, lora.targets), nnx.Rngs(config.run.seed))


def _shell(policy: Any) -> Any:
    return nnx.eval_shape(lambda: policy)


def _job(config: Config, contender: Contender, pairs: int) -> Job:
    settings = config.finetune
    rate = settings.learning_rate or (_ADAPTERS if settings.lora.rank else _FULL)
    steps = settings.steps or math.ceil(settings.epochs * (pairs // settings.batch))
    return Job(contender.program.code, settings.beta, config.run.seed, rate, steps)


def _identity(config: Config, contender: Contender, training: Prepared) -> str:
    settings = {name: value for name, value in asdict(config.finetune).items() if name not in _PLACES}
    return cache.content_hash(
        {
            "settings": settings,
            "seed": config.run.seed,
            "program": contender.program.hash,
            "pairs": training.pairs._asdict(),  # with the reference's log-probabilities: so the weights too
        }
    )


def _logps(
    settings: Finetune, graph: nnx.GraphDef, states: Any, part: Prepared, tokens: int, screen: Display
) -> list[np.ndarray]:
    bar = screen.bar("held-out pairs", 2 * len(part.prompts))
    return pair_logps(
        part.pairs, graph, *states, tokens=tokens, dtype=settings.dtype, rows=_at_once(settings),
        progress=lambda done, total: bar.update(done),
    )  # fmt: skip


def _save(
    config: Config,
    loaded: Pretrained,
    graph: nnx.GraphDef,
    trained: Any,
    frozen: Any,
    tokenizer: TextTokenizer,
    mesh: Mesh,
) -> None:
    target = config.run.path / "policy"
    settings = config.finetune
    if settings.save == "adapters":
        peft.save_adapters(replace(loaded, policy=nnx.merge(graph, trained, frozen)), target)
    elif settings.lora.rank:
        # Onto the weights as they were stored, not as they were rounded to compute with.
        base = pretrained.load(loaded.source, sharding=lambda shapes: shardings(mesh, shapes), scan=True)
        graph, _, frozen = partition(_adapted(config, base.policy))
        merged = jax.jit(lambda *parts: nnx.split(merge_lora(nnx.merge(graph, *parts)))[1])(trained, frozen)
        shell = nnx.split(_shell(base.policy))[0]
        pretrained.save(replace(loaded, policy=nnx.merge(shell, merged)), target)
    else:
        stored = loaded.hf_config.get("dtype") or loaded.hf_config.get("torch_dtype") or "float32"
        pretrained.save(replace(loaded, policy=nnx.merge(graph, cast(trained, str(stored)), frozen)), target)
    if not (target / "tokenizer_config.json").exists():
        hub_tokenizers.save(tokenizer, target)


def _loading(config: Config, loaded: Pretrained) -> str:
    target = config.run.path / "policy"
    if config.finetune.save == "adapters":
        base = loaded.hf_config.get("_name_or_path") or str(loaded.source)
        return (
            f'peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained("{base}"), '
            f'"{target}")'
        )
    return f'transformers.AutoModelForCausalLM.from_pretrained("{target}")'
