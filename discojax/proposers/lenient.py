"""JSON as models slip in writing it: trailing commas, Python's quotes. Values only; nothing is executed."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from discojax.parsing import PARSING

__all__ = ["values"]

_MOST_OPENINGS = 64  # places where a value is looked for
_LONGEST_SLIP = 100_000  # characters of a value that is not JSON
_DEEPEST = 16  # nesting of one; Python's own parser recurses on it

# Each reads on to the end of the text if its quote is never closed, so that a search is linear.
_STRING = (
    r'"""(?:[^"\\]|\\.?|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^'\\]|\\.?|'(?!''))*+(?:'''|\Z)"
    r'|"(?:[^"\\]|\\.?)*+(?:"|\Z)'
    r"|'(?:[^'\\]|\\.?)*+(?:'|\Z)"
)
_TOKEN = re.compile(rf"(?:{_STRING})|[\[\]{{}}]", re.DOTALL)
_TRAILING = re.compile(rf"({_STRING})|,(?=\s*[\]}}])", re.DOTALL)


def values(text: str) -> Iterator[Any]:
    """Every outermost object or list in the text, up to a number of openings.

    One that is not JSON is read as JSON with trailing commas, then as a literal of Python.
    """
    decoder = json.JSONDecoder(strict=False)  # a raw line break in a string is a common slip
    at = 0
    for _ in range(_MOST_OPENINGS):
        opening = re.compile(r"[\[{]").search(text, at)
        if opening is None:
            return
        try:
            value, at = decoder.raw_decode(text, opening.start())
            yield value
            continue
        except (ValueError, RecursionError):
            at = opening.end()
        whole = _balanced(text, opening.start())
        value = _slipped(whole)
        if value is not None:
            at = opening.start() + len(whole)
            yield value


def _balanced(text: str, start: int) -> str:
    """From the bracket at `start` to the one that closes it; "" if none does, or it is out of bounds."""
    depth = 0
    for token in _TOKEN.finditer(text, start, start + _LONGEST_SLIP):
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        if depth > _DEEPEST:
            break
        if not depth:
            return text[start : token.end()]
    return ""


def _slipped(text: str) -> dict[Any, Any] | list[Any] | None:
    if not text:
        return None
    try:
        value = json.loads(_TRAILING.sub(lambda match: match[1] or "", text), strict=False)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in strings
                with PARSING:
                    value = ast.literal_eval(text)
        # TypeError: a list as a key of a dictionary.
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return None
    return value if isinstance(value, (dict, list)) else None
