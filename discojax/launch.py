"""The command line: `python -m discojax.launch COMMAND [--config FILE] [key=value ...]`.

It only reads what the user asked for. What does the work is imported by the command that needs it,
so that `--help` and a mistake are answered at once, and before JAX reads its flags.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from discojax import __version__
from discojax.command_line import (
    PROGRAM,
    Command,
    config_file,
    objectives_of,
    overview,
    read,
    read_candidate,
    task_config,
)
from discojax.config import Config, load
from discojax.errors import UserError
from discojax.population.stopping import Preempted, heeded
from discojax.resuming import named, resumed, saved

if TYPE_CHECKING:
    from discojax.search.discover import Outcome

__all__ = ["main"]


def discover(config: Config, options: argparse.Namespace) -> int:
    """Proposes losses, trains policies with them and scores them, until the budget is spent."""
    config, resume = resumed(config, options)
    _configure_backend()
    from discojax.report import page
    from discojax.search import discover

    config = config if resume else discover.claim(config)
    with _resumable("discover", config), page.following(config, say=print):
        return _shown(discover.run(config, resume=resume), config)


def train(config: Config, options: argparse.Namespace) -> int:
    """Trains the given objectives over seeds and betas, or with a policy one policy with one of them."""
    if options.policy or options.data or config.finetune.policy:
        config = named(config, "finetune")
    config, resume = resumed(config, options)
    given = objectives_of(options.objectives)
    if options.policy or options.data or config.finetune.policy:
        return _finetune(config, options, given, resume)
    if given:  # saved with the run, which goes on with them
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, library=given))
    _configure_backend()
    from discojax.report import page
    from discojax.search import discover

    config = config if resume else discover.claim(config)
    with _resumable("train", config), page.following(config, say=print):
        return _shown(discover.train(config, config.search.library, resume=resume), config)


def _finetune(config: Config, options: argparse.Namespace, given: Sequence[str], resume: bool) -> int:
    _configure_backend()
    from discojax.report import finetuned
    from discojax.search import finetune

    resume = resume or options.resume_or_start  # its name is to be what it is
    config = finetune.chosen(config, options.policy, options.data, given, resume=resume)
    with _resumable("train", config):
        finetuned.show(finetune.finetune(config), confidence=config.evaluation.confidence)
    return 0


def evaluate(config: Config, options: argparse.Namespace) -> int:
    """Measures objectives on the held-out task: frontiers, win rates, intervals."""
    config, resume = resumed(config, options)
    if given := objectives_of(options.objectives):  # saved with the run, which goes on with them
        config = dataclasses.replace(
            config, evaluation=dataclasses.replace(config.evaluation, objectives=given)
        )
    _configure_backend()
    from discojax.report import evaluation, page
    from discojax.search import discover
    from discojax.search import evaluate as evaluating

    config = config if resume else discover.claim(config)
    with _resumable("evaluate", config), page.following(config, say=print):
        found = evaluating.evaluate(config, config.evaluation.objectives, resume=resume)
        evaluation.show(found, kl_budget=config.evaluation.kl_budget, confidence=config.evaluation.confidence)
    return 0


def transfer(config: Config, options: argparse.Namespace) -> int:
    """Takes a run's finalists to other tasks, seeds, policies and rewards."""
    options.resume = options.arguments[0]
    config = saved(config, options)
    of_tasks = {}
    for task in config.transfer.tasks:
        own = task_config(task)
        alike = own is None and task_config(config.task.name) is None
        of_tasks[task] = config if alike else dataclasses.replace(
            load(own, options.overrides), run=config.run, evaluation=config.evaluation
        )  # fmt: skip
    _configure_backend()
    from discojax.report import transfer as report
    from discojax.search import transfer as transferring

    with _kept(config):
        found = transferring.transfer(config, of_tasks)
    report.show(found, confidence=config.evaluation.confidence)
    return 0


def _shown(outcome: Outcome, config: Config) -> int:
    from discojax.report import summary

    summary.show(outcome, kl_budget=config.evaluation.kl_budget, confidence=config.evaluation.confidence)
    return 0


def report(config: Config, options: argparse.Namespace) -> int:
    """Writes `report.html` for a run, finished or not."""
    options.resume = options.arguments[0]
    config = saved(config, options)
    _configure_backend()
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator is the run's
    from discojax.report import page

    (page.watch if options.watch else page.write)(config, say=print)
    return 0


def losses(config: Config, options: argparse.Namespace) -> int:
    """Lists the library, or shows one loss at the middle one of `search.betas`."""
    from discojax import objectives
    from discojax.report import terminal

    if not options.arguments:
        terminal.show_library([objectives.get(name) for name in objectives.names()])
        return 0
    objective = objectives.get(options.arguments[0])
    terminal.show_objective(objective, beta=sorted(config.search.betas)[len(config.search.betas) // 2])
    return 0


def check(config: Config, options: argparse.Namespace) -> int:
    """Says whether the gate accepts a candidate: 0 if so, 1 if not."""
    source = read_candidate(options.arguments[0])
    from discojax import candidates
    from discojax.report import terminal

    verdict = candidates.check(source)
    terminal.show_verdict(verdict)
    return 0 if verdict.accepted else 1


def plan(config: Config, options: argparse.Namespace) -> int:
    """Compiles a config's step for a TPU slice that is not there: 0 if it fits, 1 if not."""
    _configure_backend()
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU that is there may be busy, and is not needed
    from discojax.report.plan import answer

    return answer(config, options.topology, options.mfu, quick=options.quick, json=options.json)


def export(config: Config, options: argparse.Namespace) -> int:
    """Writes an objective as PyTorch, for TRL, as JAX or as LaTeX, verified equal."""
    from discojax.report import export as exporting
    from discojax.search.opening import found, given

    name = options.arguments[0]
    if options.run:
        options.resume = options.run
        contender = found(saved(config, options).run.path, name)
    else:
        contender = given(name)
    text = exporting.export(contender.program, options.to or "torch")
    if not options.out:
        print(text, end="")
        return 0
    try:
        Path(options.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{options.out} cannot be written: {error.strerror}.") from None
    print(f"{name} is in {options.out}.")
    return 0


_OBJECTIVES = ("--objectives", {"metavar": "LIST", "help": "names and files, separated by commas"})
_RESUME = (
    ("--resume", {"metavar": "RUN", "nargs": "?", "const": "", "help": "go on with a stopped run"}),
    (
        "--resume-or-start",
        {"action": "store_true", "help": "go on with the run of this name where there is one, else begin it"},
    ),
)
_RESUMES = "[--resume [RUN] | --resume-or-start]"

_COMMANDS = {
    "discover": Command(
        discover,
        _RESUMES,
        "propose losses, gate them, train a population with them, score them, feed back",
        options=_RESUME,
        devices=True,
    ),
    "train": Command(
        train,
        f"[--objectives NAME|FILE,...] [--policy DIR|ID --data FILE|ID] {_RESUMES}",
        "train given objectives over seeds and betas; or one pretrained policy with one of them",
        options=(
            _OBJECTIVES,
            ("--policy", {"metavar": "DIR|ID", "help": "one pretrained policy: see configs/finetune.yaml"}),
            ("--data", {"metavar": "FILE|ID", "help": "preference pairs to train it on"}),
            *_RESUME,
        ),
        devices=True,
    ),
    "evaluate": Command(
        evaluate,
        f"[--objectives NAME|FILE,...] [--task TASK] {_RESUMES}",
        "the held-out evaluation: frontiers, win rates, what each objective does, with intervals",
        options=(
            _OBJECTIVES,
            ("--task", {"metavar": "TASK", "help": "sets task.held_out; its config, if configs/ has one"}),
            *_RESUME,
        ),
        devices=True,
    ),
    "transfer": Command(
        transfer, "RUN", "a run's finalists on other tasks, seeds, policies and rewards", (1, 1), devices=True
    ),
    "report": Command(
        report,
        "RUN [--watch]",
        "one HTML file that shows a run, finished or not; --watch rewrites it while the run goes on",
        (1, 1),
        options=(("--watch", {"action": "store_true", "help": "until the run has ended"}),),
    ),
    "plan": Command(
        plan,
        "--topology SLICE [--mfu FRACTION] [--quick] [--json]",
        "whether a config fits a TPU slice, what a step costs there, and how many lanes would fit",
        options=(
            ("--topology", {"metavar": "SLICE", "help": "such as v5e:4x4 or v5litepod-16"}),
            ("--mfu", {"metavar": "FRACTION", "help": "of a chip's peak that is assumed (0.4)"}),
            ("--quick", {"action": "store_true", "help": "do not look for the most lanes that fit"}),
            ("--json", {"action": "store_true", "help": "as JSON"}),
        ),
    ),
    "check": Command(check, "FILE|-", "the gate alone: accepted, or the stage, line and reason", (1, 1)),
    "losses": Command(losses, "[NAME]", "list the library, or show one loss and its curve", (0, 1)),
    "export": Command(
        export,
        "NAME|FILE [--run RUN] [--to torch|trl|jax|latex] [--out FILE]",
        "an objective as PyTorch, as a trainer for TRL, as JAX or as LaTeX, verified equal",
        (1, 1),
        options=(
            ("--run", {"metavar": "RUN", "help": "whose objective it is; else of the library, or in a file"}),
            ("--to", {"metavar": "FORM", "help": "torch (default), trl, jax or latex"}),
            ("--out", {"metavar": "FILE", "help": "where it is written; else it is printed"}),
        ),
    ),
}


@contextlib.contextmanager
def _kept(config: Config) -> Iterator[None]:
    """Puts the run into its bucket if it lives in one."""
    from discojax.search.storage import mirrored

    with mirrored(config.run.path, config.run.remote, config.checkpoint.interval or 60.0):
        yield


@contextlib.contextmanager
def _resumable(name: str, config: Config) -> Iterator[None]:
    """Says how to go on with a run that is stopped, if it had begun."""
    try:
        with _kept(config):
            yield
    except KeyboardInterrupt as stop:
        kind = Preempted if isinstance(stop, Preempted) else KeyboardInterrupt
        if not (config.run.path / "config.yaml").exists():
            raise kind("Stopped, before there was anything to keep.") from None
        command = f"{PROGRAM} {name} --resume {config.run.remote or config.run.path}"
        raise kind(f"Stopped. `{command}` goes on where it left off.") from None


def _configure_backend() -> None:
    # JAX reads its flags once, when its backend starts: this must come before anything imports it.
    from discojax.population.backend import configure_backend

    configure_backend()


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def _follows(options: argparse.Namespace) -> bool:
    """Whether this is one of several processes and another leads. That one reads the config for all."""
    from discojax.population.joining import join

    return join(options.coordinator, options.processes, options.process) > 0


def _preemption_code(options: argparse.Namespace) -> int:
    code = options.preemption_code or "0"
    if not code.isdigit() or int(code) > 255:
        raise UserError(f"--preemption-code is an exit code, from 0 to 255, not {code}.")
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` asks for; returns the exit code."""
    code = 1
    try:
        code = _main(argv)
    except Exception:
        hosts = sys.modules.get("discojax.population.hosts")
        if hosts is None or hosts.alone():
            raise
        # It may only show that another process is gone, whoever noticed: JAX, Orbax or a thread of theirs.
        # And it is told here, since `finish` may leave before Python would tell it.
        if found := hosts.lost():
            code = found.code
            print(found, file=sys.stderr)
        else:
            traceback.print_exc()
    finally:
        if hosts := sys.modules.get("discojax.population.hosts"):
            hosts.finish(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    preempted = 0
    try:
        if words[:1] in (["-h"], ["--help"]):
            print(overview(_COMMANDS))
        elif words[:1] == ["--version"]:
            print(f"discojax {__version__}")
        else:
            command, options = read(words, _COMMANDS)
            # What trains nothing keeps nothing, and may be in a compiler for minutes, which hears no handler
            # of Python's: SIGTERM ends it, as it ends any program.
            with heeded() if command.devices else contextlib.nullcontext():
                if command.devices:
                    preempted = _preemption_code(options)
                    if _follows(options):
                        from discojax.search.following import follow

                        return follow()
                code = command.handler(load(config_file(options), options.overrides), options)
                sys.stdout.flush()
                return code
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt as stop:
        print(f"\n{stop if str(stop) else 'Stopped.'}", file=sys.stderr)
        return preempted if isinstance(stop, Preempted) else 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f" in {str(error.filename)!r}" if error.filename else ""
        print(
            f"Nothing can be written{place} ({error.strerror}): make room or allow it, "
            "or choose another folder with run.directory=FOLDER.",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
