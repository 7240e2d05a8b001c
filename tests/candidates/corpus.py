"""Reads the corpus: texts with the verdict each must get."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")
HOSTILE = ("escapes", "bombs", "malformed", "meaning", "numbers")

HEAD = """\
def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    x = beta * rho
"""


@dataclass(frozen=True)
class Entry:
    """One text of the corpus: the category it is in, and the stage that must reject it, or "legal"."""

    category: str
    name: str
    verdict: str
    source: str
    same_as: str = ""


def body(text: str) -> str:
    """A whole candidate of a function's body, to which `rho` and `x` are given."""
    return HEAD + "".join(f"    {line}\n" for line in text.rstrip("\n").split("\n"))


def _repeated(match: re.Match[str]) -> str:
    text = re.sub(r"\\x(..)|\\u(....)", lambda m: chr(int(m[1] or m[2], 16)), match[1])
    return text * int(match[2])


def _entries(category: str) -> list[Entry]:
    text = (FOLDER / f"{category}.txt").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"^(?=%%)", text, flags=re.MULTILINE)[1:]:
        title, source = part.split("\n", 1)
        whole = title.startswith("%%%")
        title = title.lstrip("% ")
        verdict, _, name = title.partition(" | ") if " | " in title else ("legal", "", title)
        source = re.sub(r"\{\{(.*?)\*(\d+)\}\}", _repeated, source, flags=re.DOTALL)
        source, _, same = source.partition("\n==\n")
        wrap = (lambda s: s) if whole else body
        found.append(Entry(category, name, verdict, wrap(source), body(same) if same else ""))
    return found


def _functions(category: str) -> list[Entry]:
    text = (FOLDER / f"{category}.py").read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return [Entry(category, f.name, "legal", ast.get_source_segment(text, f) or "") for f in functions]


def library() -> list[Entry]:
    """Every loss of the library as the text a proposer would be shown."""
    from discojax import objectives

    return [Entry("library", name, "legal", objectives.get(name).source) for name in objectives.names()]


def hostile() -> list[Entry]:
    """Every text that must be rejected, in order."""
    return [entry for category in HOSTILE for entry in _entries(category)]


def legal() -> list[Entry]:
    """Every text that must be accepted, in order."""
    return library() + _functions("legal_jax") + _functions("legal_torch") + _entries("legal_habits")
