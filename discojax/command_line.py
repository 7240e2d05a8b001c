"""What was typed: commands, options and `key=value` settings, told apart; and the help."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from discojax.config import Config
from discojax.errors import UserError, nearest
from discojax.settings import defaults

__all__ = ["PROGRAM", "Command", "overview", "read"]

PROGRAM = "python -m discojax.launch"
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
        known = re.findall(r"--\w+", parser.format_usage())
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
