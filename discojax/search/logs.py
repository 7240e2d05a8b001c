"""Where a run's lines go: `metrics.jsonl` always, TensorBoard and Weights & Biases where they are asked for.

    log(kind="lane", objective="dpo", reward=0.7, ...)
        -> a line of JSON, and in the others the point `search/reward/dpo/beta_0.1` at so many lane-steps

A sink is a function that takes a line. With several processes only the first has sinks, so all of them
run the same code.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from discojax.config import Config, Run
from discojax.data import cache
from discojax.errors import UserError
from discojax.proposers import json_lines, keys
from discojax.search.records import plain

__all__ = ["FILE", "NOWHERE", "Line", "Log", "Sink", "jsonl", "opened", "points", "require"]

FILE = "metrics.jsonl"

Line = Mapping[str, Any]
"""What happened: its `kind`, the `time` in seconds since 1970, and numbers and names."""

Sink = Callable[[Line], None]

Write = Callable[[int, Mapping[str, float]], None]
"""Takes a position, in steps of all lanes, and numbers by what they are called."""

_EXTRAS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by setting of `run`: the package
_PLACES = {
    "time", "seconds", "kind", "task", "split", "arm", "generation", "rung", "beta", "seed",
    "steps", "train_steps", "step",
}  # fmt: skip


@dataclass(frozen=True)
class Log:
    """Tells every sink of each line."""

    sinks: tuple[Sink, ...] = ()

    def __call__(self, kind: str, **fields: Any) -> None:
        """Adds a line; a number that is not finite becomes null."""
        line = plain({"time": time.time(), "kind": kind, **fields})
        for sink in self.sinks:
            sink(line)


NOWHERE = Log()
"""Nobody is told."""


def require(run: Run) -> None:
    """Looks whether what a run logs to is installed, before it does any work.

    Raises:
      UserError: if not, naming the extra that has it.
    """
    for setting, package in _EXTRAS.items():
        if not getattr(run, setting):
            continue
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # a folder of that name, such as W&B leaves, is no package
            raise UserError(f"run.{setting} needs the package {package}: pip install 'discojax[{setting}]'.")


@contextmanager
def opened(config: Config, *, retaken: bool = False) -> Iterator[Log]:
    """The log of a run, its folder being there; closed at the end.

    Args:
      config: of the run; `run.tensorboard` and `run.wandb` ask for more than `metrics.jsonl`.
      retaken: whether a run that goes on may take steps again; what was said of these is then dropped.

    Raises:
      UserError: a package is missing, or W&B is not logged in.
    """
    require(config.run)
    if jax.process_index():
        yield Log()
        return
    file = config.run.path / FILE
    begun = sum(line["useful"] for line in json_lines.read(file) if line.get("kind") == "progress")
    with ExitStack() as stack:
        sinks = [jsonl(file, retaken)]
        if config.run.tensorboard:
            sinks.append(_plotted(_tensorboard(config.run.path, retaken, stack), begun))
        if config.run.wandb:
            sinks.append(_plotted(_wandb(config, stack), begun))
        yield Log(tuple(sinks))


def points(line: Line) -> dict[str, float]:
    """The numbers of a line by what a plot calls them: those of a lane by split, objective and beta.

    >>> points({"kind": "lane", "split": "search", "objective": "dpo", "beta": 0.1, "train_loss": 0.5})
    {'search/loss/dpo/beta_0.1': 0.5}
    >>> points({"kind": "spent", "dollars": 0.25, "requests": 3, "cost": "unknown"})
    {'spent/dollars': 0.25, 'spent/requests': 3.0}
    """
    before, after = [line["kind"]], list[str]()
    if line["kind"] == "lane":
        before, after = [line["split"]], [line["objective"], f"beta_{line['beta']:g}"]
    elif line["kind"] == "scored":
        before, after = [line["arm"]], [f"rung_{line['rung']}"]
    return {
        "/".join([*before, name.removeprefix("train_"), *after]): float(value)
        for name, value in line.items()
        if name not in _PLACES and isinstance(value, int | float) and not isinstance(value, bool)
        if math.isfinite(value)
    }


def jsonl(file: Path, retaken: bool = False) -> Sink:
    """A sink that appends to a file, at once, so that it can be read while the run goes on.

    Of a run that takes steps again (`retaken`) the file first loses what it had of these.
    """
    begun = False

    def sink(line: Line) -> None:
        nonlocal begun
        if retaken and not begun and "step" in line and file.exists():
            kept = [old for old in json_lines.read(file) if old.get("step", math.inf) < line["step"]]
            cache.write_bytes(file, "".join(f"{json.dumps(old)}\n" for old in kept).encode())
        begun = True
        json_lines.append(file, [line])

    return sink


def _plotted(write: Write, begun: int) -> Sink:
    """A sink of the numbers alone, at the steps taken: of one policy, or of all lanes of all sessions."""
    position = begun

    def sink(line: Line) -> None:
        nonlocal position
        position = line["step"] if "step" in line else position + line.get("useful", 0)
        if found := points(line):
            write(position, found)

    return sink


def _tensorboard(folder: Path, retaken: bool, stack: ExitStack) -> Write:
    tensorboard = importlib.import_module("tensorboardX")
    writer: Any = None

    def write(position: int, found: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:
            place = folder / "tensorboard"
            writer = tensorboard.SummaryWriter(
                str(place),
                purge_step=position if retaken else None,  # from there on older points are no more
                flush_secs=10,
                filename_suffix=f".{len(list(place.glob('*')))}",  # a second may see more than one file begun
            )
            stack.callback(writer.close)
        for name, value in found.items():
            writer.add_scalar(name, value, position)

    return write


def _wandb(config: Config, stack: ExitStack) -> Write:
    wandb = importlib.import_module("wandb")
    folder = config.run.path
    settings = asdict(config)
    del settings["proposer"]["base_url"]  # which may be private
    name = folder / "wandb" / "id"  # of the run at W&B, so that what goes on there is the same one
    if not name.exists():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        # It starts a process of its own, which has no use for a proposer's key.
        with keys.hidden(config.proposer.key_variable):
            run = wandb.init(
                project=config.run.wandb,
                name=config.run.name,
                dir=folder,
                id=name.read_text(encoding="utf-8"),
                resume="allow",
                config=settings,
                # Numbers and settings, and nothing else of this machine: no code, no output, no git remote.
                settings=wandb.Settings(save_code=False, disable_git=True, console="off", silent=True),
            )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"run.wandb={config.run.wandb} cannot be logged to ({reason}): run `wandb login`, "
            "or set WANDB_MODE=offline."
        ) from None
    stack.enter_context(run)
    run.define_metric("*", step_metric="steps")
    return lambda position, found: run.log({"steps": position, **found})
