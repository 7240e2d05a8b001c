"""What a run is made of: everything a user may set, as frozen dataclasses.

`load` reads them from YAML and from `key.sub=value` overrides (`discojax.settings` says how);
`dump` writes them back. Every setting has a default, and the defaults are the quickstart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from discojax.errors import UserError
from discojax.settings import Range, dump, parse

__all__ = [
    "Config",
    "Evaluation",
    "Mesh",
    "Policy",
    "Population",
    "Run",
    "Search",
    "Sft",
    "Task",
    "dump",
    "find",
    "load",
]

Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(above=0, most=1)]


@dataclass(frozen=True)
class Policy:
    """The small decoder that is trained: `width` is its model dimension, `max_length` in tokens."""

    layers: Count = 3
    width: Count = 128
    heads: Count = 4
    vocab_size: Count = 2048
    max_length: Count = 32

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"policy.width ({self.width}) must be a multiple of policy.heads ({self.heads}): "
                "each head takes an equal share of it."
            )


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning, which makes the policy that every lane starts from."""

    steps: Count = 600
    batch: Count = 64
    learning_rate: Positive = 3e-3


@dataclass(frozen=True)
class Task:
    """What the policies are trained to do, and the preference pairs sampled for it."""

    name: str = "rotten_tomatoes"
    prompt_tokens: Count = 4
    completion_tokens: Count = 20
    pairs: Count = 1024
    temperature: Positive = 1.0


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; `lane: 0` takes all that the others leave."""

    lane: Natural = 0
    data: Count = 1
    model: Count = 1


@dataclass(frozen=True)
class Population:
    """The lanes that train at once; `batch` and `steps` are one lane's, in pairs and updates."""

    lanes: Count = 32
    batch: Count = 16
    steps: Count = 60
    learning_rate: Positive = 5e-4
    implementation: Literal["auto", "vmap", "map"] = "auto"
    mesh: Mesh = Mesh()


@dataclass(frozen=True)
class Search:
    """The outer loop.

    `candidates` are proposed in all, beside the `library` losses; every one of them is trained at
    each of `betas`. A rung is (seeds, steps): what survives one rung is trained on the next.
    """

    proposer: Literal["evolution"] = "evolution"
    candidates: Natural = 16
    seeds: Count = 2
    betas: tuple[Positive, ...] = (0.05, 0.1, 0.5)
    library: tuple[str, ...] = (
        "dpo", "ipo", "slic", "exp", "robust", "kto_pair", "simpo", "orpo",
        "apo_zero", "discopop", "cell", "padll", "dbaql", "aql",
    )  # fmt: skip
    rungs: tuple[tuple[Count, Count], ...] = ((1, 20), (2, 60))


@dataclass(frozen=True)
class Evaluation:
    """The held-out evaluation; `kl_budget` is in nats a completion, intervals are at `confidence`."""

    prompts: Count = 256
    kl_budget: Positive = 20.0
    bootstrap: Count = 2000
    confidence: Share = 0.95


@dataclass(frozen=True)
class Run:
    """Where a run lives, `directory/name`, and the seed that all its randomness comes from."""

    name: str = "quickstart"
    directory: str = "runs"
    seed: Natural = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UserError(
                f"run.name ({self.name!r}) names a folder: use letters, digits, '.', '_' and '-', "
                "and run.directory for where that folder is."
            )

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.directory) / self.name


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. The defaults are those of `configs/quickstart.yaml`."""

    policy: Policy = Policy()
    sft: Sft = Sft()
    task: Task = Task()
    population: Population = Population()
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    def __post_init__(self) -> None:
        tokens = self.task.prompt_tokens + self.task.completion_tokens
        if tokens > self.policy.max_length:
            raise UserError(
                f"task.prompt_tokens + task.completion_tokens ({tokens}) do not fit into "
                f"policy.max_length ({self.policy.max_length}): raise the one or lower the others."
            )


_CLONE = Path(__file__).resolve().parents[1]
_DEFAULT = "quickstart"


def load(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `file`, changed by `overrides`.

    Args:
      file: a path, or the bare name of one in `configs/`; the quickstart if None.
      overrides: `key.sub=value` each, the value in YAML; later ones win.

    Raises:
      UserError: for a missing or malformed file, an unknown key, or a value of the wrong type.
    """
    try:
        path = find(_DEFAULT if file is None else file)
    except UserError:
        if file not in (None, _DEFAULT):
            raise
        return parse(Config, "", overrides)  # installed without the clone: the defaults are that file
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it cannot be a config.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return parse(Config, text, overrides, file=str(path))


def find(name: str | Path) -> Path:
    """The config file called `name`: a path, or a bare name for `configs/NAME.yaml`.

    Raises:
      UserError: if there is none, naming the nearest file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folders = [Path("configs")]
    if (_CLONE / "pyproject.toml").is_file():  # not site-packages, where `configs` is anyone's
        folders.append(_CLONE / "configs")
    bare = path.parent == Path() and path.suffix in ("", ".yaml")
    if bare:
        for folder in folders:
            if (folder / f"{path.stem}.yaml").is_file():
                return folder / f"{path.stem}.yaml"
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a config file.{_nearest_file('', [path])}")
    hint = _nearest_file(path.stem, [path.parent, *folders])
    raise UserError(f"There is no config file {str(name)!r}.{hint}")


def _nearest_file(stem: str, folders: Iterable[Path]) -> str:
    for folder in folders:
        there = {file.stem: file for file in sorted(folder.glob("*.y*ml"))} if folder.is_dir() else {}
        if close := difflib.get_close_matches(stem, there, n=1, cutoff=0.0):
            return f" The nearest is {str(there[close[0]])!r}."
    return ""
