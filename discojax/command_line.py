"""What was typed: commands, options and `key=value` settings, told apart; and the help."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from discojax.config import Config, find
from discojax.errors import UserError, nearest
from discojax.settings import defaults

__all__ = [
    "PROGRAM",
    "Command",
    "config_file",
    "objectives_of",
    "overview",
    "read",
    "read_candidate",
    "task_config",
]

PROGRAM = "python -m discojax.launch"
_LONGEST_CANDIDATE = 1 << 16  # bytes read of a candidate, far above what the gate lets pass
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*\s*=")


class Command(NamedTuple):
    """A command: what it does with a config and options, and how it is written."""

    handler: Callable[[Config, argparse.Namespace], int]
    usage: str
    summary: str
    arguments: tuple[int, int] = (0, 0)  # how few and how many
    options: tuple[tuple[str, dict[str, str]], ...] = ()
    devices: bool = False  # whether it trains, and so may be started on every host of a job


_HOSTS = (
    ("--coordinator", "HOST:PORT", "of process 0, where a job's hosts are not found by themselves"),
    ("--processes", "N", "how many processes the job has, each started with the same command"),
    ("--process", "I", "which of them this is, from 0"),
    ("--preemption-code", "CODE", "exit code where SIGTERM stops it, for what goes by it (0)"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; `{self.prog} --help` shows what it takes.")


def _parser(name: str, command: Command) -> _Parser:
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} {command.usage} [--config FILE] [key=value ...]",
        description=f"{name}: {command.summary}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option, details in command.options:
        parser.add_argument(option, **details)  # type: ignore[arg-type]
    for option, value, told in _HOSTS if command.devices else ():
        parser.add_argument(option, metavar=value, help=told)
    parser.add_argument("--config", metavar="FILE", help="a path, or the name of a file in configs/")
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def overview(commands: Mapping[str, Command]) -> str:
    """What `--help` prints without a command."""
    lines = [f"usage: {PROGRAM} [COMMAND] [--config FILE] [key=value ...]", ""]
    lines += ["Discover preference-optimisation losses. Without a command it does `discover`.", ""]
    width = max(len(f"{name} {command.usage}") for name, command in commands.items())
    for name, command in commands.items():
        lines.append(f"  {f'{name} {command.usage}':{width}}  {command.summary}")
    lines += [
        "",
        f"`{PROGRAM} COMMAND --help` says more; `--version` prints the version.",
        "",
        _settings_help(),
    ]
    return "\n".join(lines)


def _settings_help() -> str:
    lines = ["settings, with the defaults that key=value changes:"]
    for name, default in defaults(Config).items():
        value = default if isinstance(default, str) else json.dumps(default)
        lines.append(f"  {name}={value}")
    return "\n".join(lines)


def read(argv: Sequence[str], commands: Mapping[str, Command]) -> tuple[Command, argparse.Namespace]:
    """The command and its options, with `overrides` told from `arguments`.

    Raises:
      UserError: for a command, an option or an argument that there is not.
      SystemExit: after the help of a command was printed.
    """
    name, rest = "discover", list(argv)
    if rest and not rest[0].startswith("-") and not _OVERRIDE.match(rest[0]):
        name, *rest = rest
        if name not in commands:
            raise UserError(
                f"There is no command {name!r}.{nearest(name, commands)} `{PROGRAM} --help` lists them."
            )
    command = commands[name]
    parser = _parser(name, command)
    if {"-h", "--help"} & set(rest):
        parser.epilog = _settings_help()
        parser.print_help()
        raise SystemExit(0)
    options, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        known = re.findall(r"--[\w-]+", parser.format_usage())
        hint = nearest(unknown[0], known) or f" `{parser.prog} --help` shows what there is."
        raise UserError(f"`{name}` has no option {unknown[0]!r}.{hint}")
    words = list(options.arguments)
    if _OVERRIDE.match(getattr(options, "resume", None) or ""):  # --resume key=value: no RUN was meant
        words.append(options.resume)
        options.resume = ""
    options.overrides = [word for word in words if _OVERRIDE.match(word)]
    options.arguments = [word for word in words if not _OVERRIDE.match(word)]
    few, many = command.arguments
    if not few <= len(options.arguments) <= many:
        surplus = options.arguments[many:]
        problem = f"cannot use {surplus[0]!r}" if surplus else "needs more"
        raise UserError(
            f"`{name}` {problem}: write `{name} {command.usage} [key=value ...]`.".replace("  ", " ")
        )
    return command, options


def config_file(options: argparse.Namespace) -> str | None:
    """The config file that the command line means: `--config`, or else that of `--task`."""
    task = getattr(options, "task", None)
    if task is None:
        return str(options.config) if options.config else None
    options.overrides = [*options.overrides, f"task.held_out={task}"]
    return str(options.config) if options.config else task_config(task)


def task_config(task: str) -> str | None:
    """The config file of a task, None where it is the default one, as most tasks' is."""
    try:
        return str(find(task))
    except UserError:
        return None


def objectives_of(text: str | None) -> tuple[str, ...]:
    """The names and files of a list, each known to exist: `dpo,discopop(tau=0.1),my/loss.py`."""
    from discojax import objectives

    if text is None:
        return ()
    entries = [entry.strip() for entry in re.split(r",(?![^()]*\))", text) if entry.strip()]
    if not entries:
        raise UserError(
            "--objectives names none: write names and files separated by commas, such as dpo,ipo."
        )
    for entry in entries:
        if not (entry.endswith(".py") or os.sep in entry):
            objectives.get(entry)
        elif not Path(entry).is_file():
            raise _missing(Path(entry))
    return tuple(entries)


def read_candidate(name: str) -> str:
    """The text of a candidate: a file's, or of the standard input for `-`."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(_LONGEST_CANDIDATE).decode(errors="replace")
        with open(name, "rb") as file:
            return file.read(_LONGEST_CANDIDATE).decode(errors="replace")
    except FileNotFoundError:
        raise _missing(Path(name)) from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from None


def _missing(path: Path) -> UserError:
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"There is no file {str(path)!r}.{nearest(path.name, there)}")
