"""What is done with a discovery: one pretrained policy of any size, trained with one loss, and saved.

    rows -> pairs -> reference log-probabilities -> adapters -> steps -> held-out pairs -> a directory

Everything that a population does for many small policies is done here for one: the same pairs, the
same step, the same mesh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from discojax.config import Config, Finetune, dump
from discojax.data import cache, hub_tokenizers, sources
from discojax.data.preferences import Preparation, Prepared, prepare
from discojax.data.reference import with_reference
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.policies.pretrained.locating import locate
from discojax.policies.pretrained.reading import Pretrained
from discojax.population.checkpoint import Checkpoints
from discojax.population.finetune import Step
from discojax.population.finetune import finetune as train_one
from discojax.population.lanes import Job
from discojax.search import logs, storage, workbench
from discojax.search.display import Display, display
from discojax.search.held_out import HeldOut, measure
from discojax.search.opening import given
from discojax.search.records import plain
from discojax.search.trials import Contender
from discojax.search.workbench import Bench

__all__ = ["Tuned", "chosen", "finetune"]

_FULL, _ADAPTERS = 5e-7, 5e-6  # learning rates: of the paper; of TRL's own script for adapters
_PLACES = {"policy", "revision", "data", "tokenizer", "checkpoint", "save"}  # not what it learns


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

    In a job of many processes the one that leads calls this, and the others `search.following.follow`.

    Raises:
      UserError: the policy, its tokenizer, the data or the objective cannot be had or do not fit
        together, or the run is finished already.
      errors.HostError: another process is gone.
      population.finetune.Stopped: the user stopped it; the same call goes on.
    """
    settings, folder = config.finetune, config.run.path
    logs.require(config.run)
    contender = _contender(settings)
    if (folder / "policy").exists():
        raise UserError(
            f"{folder} is finished: its policy is in {folder / 'policy'}. Choose another run.name."
        )
    mesh = workbench.make_one_mesh(settings)
    source = locate(settings.policy, revision=settings.revision or None)
    tokenizer = hub_tokenizers.load(settings.tokenizer or source)
    next(_rows(settings, sources.Account()), None)  # a mistake in the data is told before weights are read
    with display() as screen, jax.set_mesh(mesh), logs.opened(config, retaken=True) as log:
        _start(config, screen)
        bench = workbench.load(settings, config.run.seed)
        loaded = bench.loaded.policy.config
        tokenizer = tokenizer.for_embedding(loaded.vocab_size)
        account = sources.Account()
        prepared = _prepare(settings, tokenizer, account, loaded.max_length)
        training, held_out = prepared.split(settings.held_out)
        screen.say(_said(training, held_out, prepared, account))
        if len(training.prompts) < settings.batch:
            raise UserError(
                f"There are {len(training.prompts)} pairs to train on, fewer than one batch of "
                f"{settings.batch}: lower finetune.batch, or give more data."
            )
        tokens = int(max(prepared.pairs.chosen_length.max(), prepared.pairs.rejected_length.max()))
        weights = workbench.digests(bench)
        training, held_out = (
            _reference(bench, part, tokens, weights, screen) for part in (training, held_out)
        )
        checkpoints = Checkpoints(
            storage.checkpoints(folder, config.run.remote),
            interval=0, keep=config.checkpoint.keep, say=screen.say,
        )  # fmt: skip
        identity = _identity(config, contender, training)
        bench = workbench.prepare(bench, training.pairs, tokens, checkpoints, identity)
        assert bench.station is not None
        job = _job(config, contender, len(training.prompts))
        bar = screen.bar(f"training with {contender.name}", job.steps)
        steps: list[Step] = []
        started = time.monotonic()

        def report(step: Step) -> None:
            steps[:] = [step]
            bar.update(
                step.step, f"loss {step.loss:.3f}, margin {step.margin:+.3f}, accuracy {step.accuracy:.2f}"
            )
            log("step", seconds=round(time.monotonic() - started, 3), **step._asdict())

        state = train_one(bench.station, job, every=settings.checkpoint, report=report)
        measured = None
        if len(held_out.prompts):
            bar = screen.bar("held-out pairs", 2 * len(held_out.prompts))
            logps = workbench.logps(bench, state, held_out.pairs, tokens, lambda done, _: bar.update(done))
            measured = measure(
                held_out, *logps, beta=settings.beta, confidence=config.evaluation.confidence,
                rng=np.random.default_rng(config.run.seed), replicates=config.evaluation.bootstrap,
            )  # fmt: skip
            log("held_out", **asdict(measured))
        checkpoints.close()  # nothing is written beside the policy
        workbench.write(bench, state, folder / "policy")
        if settings.tokenizer or not (folder / "policy" / "tokenizer_config.json").exists():
            hub_tokenizers.save(tokenizer, folder / "policy")
    tuned = Tuned(
        folder, folder / "policy", _loading(config, bench.loaded), contender.name, job.steps,
        len(training.prompts), steps[0] if steps else None, measured, str(account),
    )  # fmt: skip
    cache.write_json(folder / "results.json", plain(asdict(tuned) | {"folder": ".", "policy": "policy"}))
    checkpoints.clear()  # three times the size of what trained
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


def _start(config: Config, screen: Display) -> None:
    folder = config.run.path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    screen.say(f"Run [bold]{folder}[/bold]: {config.finetune.policy} on {config.finetune.data}.")


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
    bench: Bench, part: Prepared, tokens: int, weights: Sequence[str], screen: Display
) -> Prepared:
    if not len(part.prompts):
        return part
    bar = screen.bar("reference log-probabilities", 2 * len(part.prompts))
    graph, params = nnx.split(bench.loaded.policy)
    pairs = with_reference(
        part.pairs, graph, params, tokens=tokens, dtype=bench.settings.dtype, weights=weights,
        measure=lambda: workbench.logps(bench, None, part.pairs, tokens, lambda done, _: bar.update(done)),
    )  # fmt: skip
    if bar.done < bar.total:  # read from the cache
        bar.update(bar.total)
    return part._replace(pairs=pairs)


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


def _loading(config: Config, loaded: Pretrained) -> str:
    target = config.run.path / "policy"
    if config.finetune.save == "adapters":
        base = loaded.hf_config.get("_name_or_path") or str(loaded.source)
        return (
            f'peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained("{base}"), '
            f'"{target}")'
        )
    return f'transformers.AutoModelForCausalLM.from_pretrained("{target}")'
