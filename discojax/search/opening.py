"""Opening a run: its folder and archive, its objectives, and the laboratory that measures them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from discojax import candidates, objectives
from discojax.config import Config, Evaluation, dump
from discojax.data import cache
from discojax.errors import UserError, nearest
from discojax.places import going_on
from discojax.policies.attention import choose
from discojax.policies.decoder import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.policies.sft import SftConfig
from discojax.population.backend import choose_implementation
from discojax.population.checkpoint import Checkpoints
from discojax.population.mesh import make_mesh, own_part, rows_per_device
from discojax.search import archive as archives
from discojax.search import storage
from discojax.search.archive import Archive
from discojax.search.display import Bar, Display
from discojax.search.instruments import Design, make_instruments
from discojax.search.judging import make_judge
from discojax.search.laboratory import Laboratory
from discojax.search.logs import NOWHERE, Log
from discojax.search.steps import population_step
from discojax.search.trials import Contender
from discojax.tasks import catalogue
from discojax.tasks.types import OwnData, PretrainedConfig, Task, TaskConfig, assert_disjoint

__all__ = ["build_laboratory", "build_tasks", "found", "given", "open_run"]


def given(name: str) -> Contender:
    """An objective that the user names: of the library, or in a file of candidate text.

    Raises:
      UserError: it does not exist, or the gate rejects it.
    """
    if not (name.endswith(".py") or os.sep in name):
        objective = objectives.get(name)
        return Contender(objective.name, candidates.from_function(objective), "library")
    try:
        source = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read as text: {error}.") from error
    program = candidates.compile(source, Path(name).stem)
    return Contender(program.name, program, "given")


def found(folder: Path, name: str) -> Contender:
    """An objective that the run in a folder trained or proposed, by its name there.

    The gate has seen its text, which is not checked again.

    Raises:
      UserError: the run has none of that name, or it never became a program.
    """
    with archives.open_archive(folder / "archive.sqlite") as archive:
        attempts = archives.attempts(archive)
    of_name = {attempt.name: attempt for attempt in attempts}
    if (attempt := of_name.get(name)) is None:
        raise UserError(f"The run {folder} has no objective {name!r}.{nearest(name, of_name)}")
    if attempt.operator == "library":
        return given(name)
    if attempt.status != "accepted" or attempt.source is None:
        reason = f": {attempt.reason}" if attempt.reason else ""
        raise UserError(f"{name} of {folder} never became a program; it was {attempt.status}{reason}.")
    return Contender(name, candidates.parse(attempt.source, name), "proposed")


def open_run(config: Config, resume: bool, command: str = "discover") -> Archive:
    """The run's folder, with its resolved config, and its archive, which notes the command that it is of.

    Raises:
      UserError: the folder holds another run, or one of another command, or cannot be made.
    """
    folder = config.run.path
    if not resume and (folder / "archive.sqlite").exists():
        raise UserError(
            f"{folder} already holds a run: go on with it by --resume {folder}, or choose run.name=ANOTHER."
        )
    fresh = not (folder / "archive.sqlite").exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:  # before the archive: wherever it is stopped, what there is of it can go on
            cache.write_bytes(folder / "config.yaml", dump(config).encode())
    except OSError as error:
        raise UserError(
            f"The run's folder {folder} cannot be made ({error.strerror}): "
            "choose another with run.directory=FOLDER."
        ) from error
    # Where a run lies does not matter to what it finds, so a folder may be moved and resumed.
    # Nor does its budget, which may be raised to go on, nor how a proposer is reached and how long it is
    # waited for; a run that gave up may go on with another model, as every attempt says whose it is.
    # Nor which objectives `evaluate` is asked for: each is measured by itself, and more may be later. Nor
    # who judges what was written; and but for a search, whose races they decide, how intervals are made.
    usual, free = Evaluation(), ["objectives", "judge", "judged"]
    if command != "discover":
        free += ["bootstrap", "confidence"]
    evaluation = {**asdict(config.evaluation), **{name: getattr(usual, name) for name in free}}
    asked = {"history": config.proposer.history, "path": config.proposer.path}
    identity = cache.content_hash(
        {
            **{name: value for name, value in asdict(config).items() if name != "checkpoint"},
            "run": config.run.seed, "budget": None, "proposer": asked, "evaluation": evaluation,
        }
    )  # fmt: skip
    if not fresh:  # before the configuration is compared, of which each command leaves out its own part
        with archives.open_archive(folder / "archive.sqlite") as archive:
            began = archives.get_meta(archive, "command", command)
        if began != command:
            raise UserError(f"{folder} is a run of {began}: go on with it by `{going_on(began, folder)}`.")
    archive = archives.open_archive(folder / "archive.sqlite", identity)
    archives.set_meta(archive, "command", command)
    if not fresh:
        cache.write_bytes(folder / "config.yaml", dump(config).encode())
    if resume:
        archives.add_event(archive, "resumed")
    return archive


def build_laboratory(
    config: Config,
    archive: Archive,
    names: Sequence[str],
    screen: Display,
    log: Log = NOWHERE,
    *,
    held_out_pairs: int = 0,
    rescore: Callable[[Task], Task] | None = None,
) -> Laboratory:
    """What measuring takes: the tasks, built or read from the cache, and the compiled programs.

    Args:
      config: of the run.
      archive: where its measurements are kept.
      names: of the tasks. That of `config.task.name` is searched on and that of `config.task.held_out`
        reports; the two must share nothing.
      screen: where progress is shown.
      log: where its lines go.
      held_out_pairs: pairs of each task that nothing trains on, on which margins are measured.
      rescore: puts `evaluation.reward` in place of a task's own.

    Raises:
      UserError: a task cannot be built, a reward is set that it has no use for, what reports had a
        part in the search, or the archive's numbers were measured on other data.
    """
    if "preferences" not in names:
        _check_rewards(config, rescore is not None)
    # First what can be wrong at once, and then what takes minutes.
    sizes = (config.population.mesh.lane, config.population.mesh.data, config.population.mesh.model)
    mesh = make_mesh(*sizes)
    implementation = choose_implementation(config.population.implementation)
    step = population_step(config, implementation)
    rows_per_device(mesh, step.batch, step.accumulate)
    tasks = build_tasks(config, names, screen, held_out_pairs=held_out_pairs, mesh=own_part(mesh))
    if rescore is not None:
        tasks = {name: rescore(task) for name, task in tasks.items()}
    first = next(iter(tasks.values()))
    assert_disjoint(
        [tasks[name] for name in (config.task.name,) if name in tasks],
        [tasks[name] for name in (config.task.held_out,) if name in tasks],
    )
    for name, before in (archives.get_meta(archive, "tasks") or {}).items():
        if name in tasks and before.get("judged"):  # in earlier sessions of this run
            tasks[name].facts["judged"].update(before["judged"])
    _assert_unchanged(config, archive, tasks, held_out_pairs)
    archives.set_meta(archive, "identities", {name: task.identity for name, task in tasks.items()})
    archives.set_meta(
        archive,
        "hardware",
        {"platform": jax.default_backend(), "devices": [d.device_kind for d in jax.devices()]},
    )
    design = Design(
        graph=first.graph,
        step=step,
        sampling=first.sampling,
        lanes=config.population.lanes,
        tokens=config.task.completion_tokens,
        prompts=max(int(task.pairs.prompt_length.max()) for task in tasks.values()),
        mesh=sizes,
        margins=held_out_pairs > 0,
    )
    laboratory = Laboratory(
        make_instruments(design, first.params, first.frozen),
        tasks,
        archive,
        config.population.learning_rate,
        log,
        Checkpoints(
            storage.checkpoints(config.run.path, config.run.remote),
            interval=config.checkpoint.interval, keep=config.checkpoint.keep, say=screen.say,
        ),
        screen.say,
    )  # fmt: skip
    laboratory.keep_facts()
    return laboratory


def _assert_unchanged(
    config: Config, archive: Archive, tasks: Mapping[str, Task], held_out_pairs: int
) -> None:
    """That tasks are what the archive's numbers were measured on: others cannot be compared with them.

    Raises:
      UserError: saying which is not.
    """
    settings = cache.content_hash(asdict(task_config(config, held_out_pairs)))  # stages of a transfer differ
    before = dict(archives.get_meta(archive, "sources") or {})
    for name, task in tasks.items():
        if before.setdefault(f"{name} {settings}", task.source) != task.source:
            raise UserError(
                f"{config.run.path} was measured on other data than {name} has now (prompts, what people "
                "wrote, or pairs and rewards of your own): put back what was changed, perhaps the version of "
                "a library whose docstrings are read, or begin another run by run.name=ANOTHER."
            )
    archives.set_meta(archive, "sources", before)


def _check_rewards(config: Config, rescored: bool) -> None:
    """That no reward is set which tasks with rewards of their own would silently ignore."""
    if config.task.reward:
        raise UserError(
            f"task.reward ({config.task.reward!r}) is for the task preferences alone: leave it out, or set "
            "task.name and task.held_out to preferences."
        )
    if config.evaluation.reward and not rescored:
        raise UserError(
            f"evaluation.reward ({config.evaluation.reward!r}) is for `evaluate`, or for the task "
            "preferences: leave it out, or set task.name and task.held_out to preferences."
        )


def build_tasks(
    config: Config,
    names: Sequence[str],
    screen: Display,
    *,
    held_out_pairs: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, Task]:
    """The tasks of these names, by name."""
    bars: dict[str, Bar] = {}

    def report(what: str, done: int, total: int) -> None:
        stage = what.split(" (loss")[0]
        if stage not in bars:
            bars[stage] = screen.bar(what, total)
        bars[stage].update(done, what)

    settings = task_config(config, held_out_pairs)
    tasks = catalogue.build_all(names, settings, mesh=mesh, judge=partial(make_judge, config), report=report)
    for task in tasks.values():
        for said in task.facts.get("data", ()):
            screen.say(f"{task.name}: {said}.")
    return tasks


def task_config(config: Config, held_out_pairs: int = 0) -> TaskConfig:
    """What the tasks of a run are made of."""
    policy, task = config.policy, config.task
    pretrained = None
    if policy.pretrained is not None:
        pretrained = PretrainedConfig(
            policy.pretrained, policy.tokenizer, policy.remat, policy.attention, policy.revision
        )
    return TaskConfig(
        choose(
            DecoderConfig(
                layers=policy.layers, width=policy.width, heads=policy.heads,
                vocab_size=policy.vocab_size, max_length=policy.max_length, remat=policy.remat,
            ),
            policy.attention,
        ),
        SftConfig(**asdict(config.sft)),
        prompt_tokens=task.prompt_tokens,
        completion_tokens=task.completion_tokens,
        pairs=task.pairs,
        completions=task.completions,
        temperature=task.temperature,
        top_k=task.top_k,
        top_p=task.top_p,
        label_temperature=task.label_temperature,
        seed=task.seed,
        held_out_pairs=held_out_pairs,
        dtype=config.population.dtype,
        pretrained=pretrained,
        lora=LoraConfig(**asdict(policy.lora)) if policy.lora.rank else None,
        own=OwnData(
            task.data, task.split, task.columns, task.prompts, task.prompts_split, task.prompts_columns,
            task.openings, task.held_out_prompts, task.marker, task.style, task.reward,
            config.evaluation.reward,
        ),
    )  # fmt: skip
