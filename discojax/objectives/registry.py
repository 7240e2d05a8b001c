"""The library of known losses, by name.

A library loss is a Python function in the candidate language: its arguments are those of
`ARGUMENTS`, its body is assignments and one return. Its settings (such as `tau`) are keyword-only
with defaults. `@objective` records it; `get` turns it into an `Objective`, whose `source` is the
same text with the settings as leading assignments, which is a legal candidate.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from discojax.errors import UserError, nearest
from discojax.objectives.types import ARGUMENTS, Objective
from discojax.parsing import PARSING

__all__ = ["NOTATION", "canonical", "get", "names", "objective", "register"]

NOTATION = (
    "pc, pr, rc, rr: log-probability of the chosen / rejected completion under the policy / the "
    "reference; lc, lr: their token counts; a = pc − rc, b = pr − rr, ρ = a − b, x = βρ, z = x/τ; "
    "σ the logistic function, ℓ(u) = log(1 + e^−u), h(u) = max(0, 1 − u); var, std unbiased and "
    "mean, sort over the batch of pairs"
)
"""The letters that formulas use."""

_STORIES = ("baselines", "alignment", "reference_free", "discovered")


@dataclass(frozen=True)
class _Entry:
    """What the decorator recorded of one library loss."""

    function: Callable[..., Any]
    formula: str
    reference: str
    aliases: tuple[str, ...]
    ranges: Mapping[str, str]
    minimum_batch: int

    @property
    def defaults(self) -> dict[str, float]:
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_library: dict[str, _Entry] = {}
_aliases: dict[str, str] = {}
_registered: dict[str, Objective] = {}


def objective(
    *,
    formula: str,
    reference: str,
    aliases: tuple[str, ...] = (),
    ranges: Mapping[str, str] | None = None,
    minimum_batch: int = 1,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that puts a function into the library under its own name, and returns it as it is.

    Args:
      formula: the loss of one pair in the letters of `NOTATION`.
      reference: paper, year, equation.
      aliases: other names for it.
      ranges: for each setting (keyword-only argument), the interval it must lie in: `"[0, 0.5)"`.
      minimum_batch: how few pairs its batch statistics are defined for.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = _Entry(function, formula, reference, aliases, dict(ranges or {}), minimum_batch)
        if set(entry.ranges) != set(entry.defaults):
            raise TypeError(f"{function.__name__}: every setting needs a range")
        _library[function.__name__] = entry
        _aliases.update(dict.fromkeys(aliases, function.__name__))
        return function

    return add


def _load() -> None:
    for story in _STORIES:
        importlib.import_module(f"discojax.objectives.{story}")


def names() -> list[str]:
    """The names of all losses, aliases left out: the library's, then those `register` added."""
    _load()
    return [*_library, *_registered]


def canonical(name: str) -> str:
    """The name that `name` is an alias of, or `name` itself.

    Raises:
      UserError: if there is no such loss.
    """
    _load()
    name = _aliases.get(name, name)
    if name not in _library and name not in _registered:
        known = [*_library, *_aliases, *_registered]
        raise UserError(
            f"There is no loss {name!r}.{nearest(name, known)} `losses` lists the {len(names())} known ones."
        )
    return name


def get(name: str, **settings: float) -> Objective:
    """The loss called `name`, with its settings changed if given.

    A variant's name carries its settings, and is itself a valid `name`:

    >>> get("sigmoid").name, get("discopop", tau=0.1).name
    ('dpo', 'discopop(tau=0.1)')
    >>> get("discopop(tau=0.1)") is get("discopop", tau=0.1)
    True

    Raises:
      UserError: for an unknown loss or setting (naming the nearest), or a value outside its range.
    """
    base, written = _split(name)
    base = canonical(base)
    settings = {**written, **settings}
    if base in _registered:
        if settings:
            raise UserError(f"Loss {base!r} has no settings, so {', '.join(settings)} cannot be set.")
        return _registered[base]
    entry = _library[base]
    for setting, value in settings.items():
        _check(base, entry, setting, value)
    values = {setting: float(settings.get(setting, default)) for setting, default in entry.defaults.items()}
    return _build(base, tuple(values.items()))


def register(objective: Objective) -> Objective:
    """Adds `objective` to the known losses under its name and aliases, and returns it.

    Registering a name again replaces it, as a notebook cell run twice expects; the library's own
    names cannot be taken.

    Raises:
      UserError: if a name or alias is not an identifier, or belongs to the library.
    """
    _load()
    for name in (objective.name, *objective.aliases):
        if not name.isidentifier():
            raise UserError(f"A loss cannot be called {name!r}: use letters, digits and underscores.")
        if name in _library or _aliases.get(name, objective.name) != objective.name:
            raise UserError(f"The name {name!r} already means a known loss: choose another.")
    _registered[objective.name] = objective
    _aliases.update(dict.fromkeys(objective.aliases, objective.name))
    return objective


def _split(name: str) -> tuple[str, dict[str, float]]:
    """`"discopop(tau=0.1)"` -> `("discopop", {"tau": 0.1})`."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", name)
    if match is None:
        return name, {}
    settings: dict[str, float] = {}
    for item in filter(None, map(str.strip, match[2].split(","))):
        setting, _, value = (part.strip() for part in item.partition("="))
        try:
            settings[setting] = float(value)
        except ValueError:
            raise UserError(
                f"{item!r} in loss {name!r} is not a setting: write NAME(setting=number)."
            ) from None
    return match[1], settings


def _check(name: str, entry: _Entry, setting: str, value: float) -> None:
    if setting not in entry.ranges:
        takes = f"it takes {', '.join(entry.ranges)}" if entry.ranges else "it has none"
        raise UserError(f"Loss {name!r} has no setting {setting!r}; {takes}.{nearest(setting, entry.ranges)}")
    interval = entry.ranges[setting]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _within(float(value), interval):
        raise UserError(f"{setting} of loss {name!r} must be a number in {interval}, not {value!r}.")


def _within(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return math.isfinite(value) and above and below


@functools.cache
def _build(name: str, values: tuple[tuple[str, float], ...]) -> Objective:
    # Cached, so that the same variant is the same object and a jitted caller compiles once.
    entry, settings = _library[name], dict(values)
    changed = {setting: v for setting, v in settings.items() if v != entry.defaults[setting]}
    function = functools.partial(entry.function, **settings) if settings else entry.function
    parameters = inspect.signature(entry.function).parameters
    return Objective(
        name=f"{name}({', '.join(f'{k}={v!r}' for k, v in changed.items())})" if changed else name,
        function=function,
        arguments=tuple(argument for argument in ARGUMENTS if argument in parameters),
        source=_source(entry.function, settings),
        settings=settings,
        formula=entry.formula,
        reference=entry.reference,
        aliases=() if changed else entry.aliases,
        minimum_batch=entry.minimum_batch,
    )


def _source(function: Callable[..., Any], settings: Mapping[str, float]) -> str:
    """The function's text as a candidate: no decorator, settings as assignments, docstring's first line."""
    text = textwrap.dedent(inspect.getsource(function))
    with PARSING:
        (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef) and function.__doc__ is not None
    arguments = ", ".join(argument.arg for argument in definition.args.args)
    docstring_end = definition.body[0].end_lineno
    return "\n".join(
        [
            f"def {definition.name}({arguments}):",
            f'    """{inspect.cleandoc(function.__doc__).splitlines()[0]}"""',
            *(f"    {setting} = {value!r}" for setting, value in settings.items()),
            *text.splitlines()[docstring_end:],
            "",
        ]
    )
