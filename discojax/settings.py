"""Typed settings: a tree of frozen dataclasses, read from YAML and `key.sub=value` overrides.

A value must have exactly the type and the range that its field declares (an int will do for a
float, a list stands for a tuple, a mapping for a dataclass in one), and a mistake is one sentence
that says where it stands and what was meant. `parse` and `dump` are inverse to each other.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

import yaml

from discojax.errors import UserError, nearest

__all__ = ["Range", "defaults", "dump", "find", "parse"]

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The interval a number must lie in."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and number > self.above

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))


def parse(schema: type[T], text: str, overrides: Sequence[str] = (), file: str = "the config") -> T:
    """`text` in YAML and `overrides` as an instance of the dataclass `schema`.

    Every field of `schema` needs a default, which stands where neither sets it.

    Raises:
      UserError: for malformed YAML, an unknown key, or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}
    for name, value, where in _read(schema, text, _Origin(file)):
        if name in lines:
            raise UserError(f"{where}: {name} was set already in {lines[name]}; keep one of the two.")
        lines[name] = where
        values[name] = value
    for override in overrides:
        origin = _Origin(f"override {_shorten(override)}", numbered=False)
        key, equals, value_text = override.partition("=")
        if not equals:
            raise UserError(f"{origin.name} sets nothing: write key=value, such as run.seed=1.")
        changed = _read(schema, value_text, origin, key.strip())
        values.update((name, value) for name, value, _ in changed)
    return _build(schema(), values)


def defaults(schema: type) -> dict[str, Any]:
    """The dotted name of every setting of `schema`, in order, with its default as YAML has it."""
    return {name: _plain(operator.attrgetter(name)(schema())) for name in _names(schema)}


def dump(config: Any) -> str:
    """`config` as YAML text that `parse` reads back as an equal one."""
    text: str = yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    return text


# --- YAML, as its version 1.2 reads scalars: 3e-3 is a number and `no` a word, unlike in 1.1 ---


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?(?:0|[1-9][0-9_]*)",
        "float": r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
    }.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


class _Origin(NamedTuple):
    """A file, or an override, which has no lines to speak of."""

    name: str
    numbered: bool = True

    def at(self, mark: Any) -> str:
        return f"{self.name}, line {mark.line + 1}" if self.numbered and mark else self.name


class _Setting(NamedTuple):
    name: str
    value: Any
    where: str


def _read(schema: type, text: str, origin: _Origin, prefix: str = "") -> Iterator[_Setting]:
    """The settings that YAML `text` makes below `prefix`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            yield from _walk(schema, loader, node, origin, prefix)
        elif prefix:
            yield from _walk(schema, loader, yaml.ScalarNode("tag:yaml.org,2002:null", ""), origin, prefix)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable text"
        place = origin.at(getattr(error, "problem_mark", None))
        raise UserError(f"{place}: this is not valid YAML ({problem}).") from error
    except (RecursionError, ValueError) as error:  # nesting or digits without end
        raise UserError(
            f"{origin.name}: this is not a config; its values are too deep or too long."
        ) from error


def _walk(schema: type, loader: _Loader, node: Any, origin: _Origin, name: str) -> Iterator[_Setting]:
    place = origin.at(node.start_mark)
    annotation = _annotation(schema, name, place) if name else schema
    if not is_dataclass(annotation):
        value = _convert(annotation, loader.construct_object(node, deep=True), name, place)
        yield _Setting(name, value, place)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{origin.at(key.start_mark)}: a setting's name must be a word.")
            # The key's own line: a wrong name is where it is written, not where its value starts.
            dotted = f"{name}.{key.value}" if name else key.value
            _annotation(schema, dotted, origin.at(key.start_mark))
            yield from _walk(schema, loader, child, origin, dotted)
    elif loader.construct_object(node, deep=True) is not None:  # a section left empty changes nothing
        inside = ", ".join(_fields(annotation))
        what = f"{name} is a section" if name else "a config is made of sections"
        raise UserError(f"{place}: {what}, not a single value; it holds {inside}.")


# --- types ---


def _fields(schema: Any) -> Mapping[str, Any]:
    """The annotation of each field."""
    return _annotations(schema)


@functools.cache
def _annotations(schema: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in fields(schema)}


def _required(schema: Any) -> set[str]:
    missing = dataclasses.MISSING
    return {f.name for f in fields(schema) if f.default is missing and f.default_factory is missing}


def _names(schema: Any, prefix: str = "", sections: bool = False) -> Iterator[str]:
    for name, annotation in _fields(schema).items():
        if not is_dataclass(annotation):
            yield prefix + name
            continue
        if sections:
            yield prefix + name
        yield from _names(annotation, f"{prefix}{name}.", sections)


def _annotation(schema: Any, dotted: str, where: str) -> Any:
    annotation = schema
    for part in dotted.split("."):
        inside = _fields(annotation) if is_dataclass(annotation) else {}
        if part not in inside:
            # By last part too: `lanes` means population.lanes, though few of its letters match.
            all_names = list(_names(schema, sections=True))
            pool = {name.rpartition(".")[2]: name for name in reversed(all_names)}
            pool |= {name: name for name in all_names}
            close = difflib.get_close_matches(dotted, pool, n=1, cutoff=0.0)[0]
            raise UserError(f"{where}: there is no setting {dotted!r}; the nearest is {pool[close]!r}.")
        annotation = inside[part]
    return annotation


class _MismatchError(Exception):
    """A value that its annotation does not allow."""


def _convert(annotation: Any, value: Any, name: str, where: str) -> Any:
    try:
        return _typed(annotation, value)
    except _MismatchError:
        words = {"None": "nothing", "True": "true", "False": "false"}
        shown = words.get(repr(value)) or _shorten(value)
        hint = nearest(value, _choices(annotation)) if isinstance(value, str) else ""
        if hint == "" and annotation is str and isinstance(value, int | float):
            hint = " Put it in quotes."
        raise UserError(f"{where}: {name} must be {_describe(annotation)}, got {shown}.{hint}") from None


def _shorten(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 4] + "..." + text[-1]


def _typed(annotation: Any, value: Any, interval: Range | None = None) -> Any:
    """`value` as `annotation` demands it, or `_MismatchError`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _typed(arguments[0], value, next((a for a in arguments[1:] if isinstance(a, Range)), None))
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _typed(option, value, interval)
            except _MismatchError:
                continue
    elif origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:
                return choice
    elif origin is tuple and isinstance(value, list):
        if arguments[1:] == (...,):
            return tuple(_typed(arguments[0], item) for item in value)
        if len(arguments) == len(value):
            return tuple(_typed(each, item) for each, item in zip(arguments, value, strict=True))
    elif is_dataclass(annotation) and isinstance(value, dict):  # as an item of a list
        inside = _fields(annotation)
        if value.keys() <= inside.keys() and value.keys() >= _required(annotation):
            return annotation(**{name: _typed(inside[name], item) for name, item in value.items()})  # type: ignore[operator]
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        if isinstance(value, str) and value in annotation.__members__:
            return annotation[value]
    elif annotation in (int, float) and type(value) in (int, annotation):
        if abs(value) <= 1e300 and (interval is None or value in interval):  # finite, and fits a float
            return annotation(value)
    elif annotation in (str, bool, type(None)) and type(value) is annotation:
        return value
    raise _MismatchError


def _describe(annotation: Any, interval: Range | None = None) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], next((a for a in arguments[1:] if isinstance(a, Range)), None))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if choices := _choices(annotation):
        return "one of " + ", ".join(map(repr, choices))
    if origin is tuple and arguments[1:] == (...,):
        return f"a list with each item {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({'; '.join(map(_describe, arguments))})"
    if is_dataclass(annotation):
        inside = _fields(annotation).items()
        return "{" + "; ".join(f"{name}: {_describe(each)}" for name, each in inside) + "}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return words[annotation] + (f", {interval}" if interval else "")


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(annotation.__members__)
    return ()


# --- trees ---


def _build(default: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """`default` with the settings of `values` in place of its own."""
    given = {}
    for name in _fields(type(default)):
        current, dotted = getattr(default, name), prefix + name
        if is_dataclass(current):
            given[name] = _build(current, values, f"{dotted}.")
        elif dotted in values:
            given[name] = values[dotted]
    return replace(default, **given)  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, enum.Enum):
        return value.name
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


_CLONE = Path(__file__).resolve().parents[1]


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
