"""Summaries people wrote: the first line of a docstring, for the text below it.

Real text and its real one-line summary, from the libraries that discojax stands on: a stand-in for
Reddit's TL;DR where that cannot be had, and called so. Which documents there are depends on the
versions installed; what is built from them is kept by their content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["LIBRARIES", "Document", "extract", "versions"]

LIBRARIES = ("stdlib", "jax", "flax", "optax", "numpy", "scipy", "sklearn", "matplotlib")
VERSION = 1  # of this file's result: raise it when what is extracted changes

_SKIPPED = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "_vendor"}
# Where prose ends: sections of Google's, NumPy's and Sphinx's layouts, examples, directives, underlines.
_SECTION = re.compile(
    r"^\s*(?:(?:Args?|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Attributes|Notes?|References"
    r"|See Also|Warnings?|Usage)\b:?\s*$|>>>|\.\. |:\w+|[-=~*]{4,}|[*-] )",
    re.MULTILINE | re.IGNORECASE,
)
_MARKUP = re.compile(r":(?:\w+:)+(?=`)|``|[`*|]")


class Document(NamedTuple):
    """A text and the line that its author put above it.

    Attributes:
      name: library and qualified name, such as `stdlib:json.dumps`.
      body: the text, on one line.
      summary: the line.
    """

    name: str
    body: str
    summary: str


def versions() -> dict[str, str]:
    """The version of each of `LIBRARIES` that is installed: with these documents are the same ones."""
    found = {"stdlib": sys.version.split()[0]}
    for name in LIBRARIES[1:]:
        try:
            found[name] = importlib.metadata.version({"sklearn": "scikit-learn"}.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def extract(roots: Mapping[str, Path] | None = None) -> list[Document]:
    """The documents of all libraries, in the order of a hash of their bodies, so any part is a fair one.

    No two have the same body or the same summary, whatever their case: those of overloads, wrappers
    and copies would count twice and be known by heart.

    Args:
      roots: folders of Python files by library; by default those of `LIBRARIES`, which are read and
        never imported.
    """
    kept: dict[str, Document] = {}
    summaries: set[str] = set()
    for library, root in (_roots() if roots is None else roots).items():
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if _SKIPPED & set(parts):
                continue
            for name, text in _docstrings(file):
                document = _document(f"{library}:{'.'.join((*parts, name))}", text)
                if document is None:
                    continue
                body, summary = document.body.lower(), document.summary.lower()
                if body not in kept and summary not in summaries:
                    kept[body] = document
                    summaries.add(summary)
    return sorted(kept.values(), key=lambda d: hashlib.sha256(d.body.encode()).digest())


def _roots() -> dict[str, Path]:
    roots = {"stdlib": Path(sysconfig.get_paths()["stdlib"])}
    for name in LIBRARIES[1:]:
        spec = importlib.util.find_spec(name)  # of a top-level package: runs none of its code
        if spec and spec.origin:
            roots[name] = Path(spec.origin).parent
    return roots


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's invalid escapes
            tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return  # a template, or of another Python: not a document
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            found = ast.get_docstring(node)
            if found:
                yield getattr(node, "name", "__doc__"), found


def _document(name: str, text: str) -> Document | None:
    """The document of a docstring, None if it has no one-line summary with prose below it."""
    head, _, rest = text.partition("\n\n")
    section = _SECTION.search(rest)
    body = _plain(rest[: section.start()] if section else rest)
    summary = _plain(head)
    words = len(summary.split())
    if not (3 <= words <= 18 and summary.endswith(".") and len(body.split()) >= 12):
        return None
    if summary.lower().rstrip(".") in body.lower():
        return None
    return Document(name, body, summary)


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub("", text).split())
