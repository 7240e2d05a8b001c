"""What a language model is shown: the gate's language, what was measured, and what is asked for.

The words are templates in `templates/`; what fills them is taken from the gate and from the history.
Nothing that a candidate says reaches a later prompt: its program is printed anew from its graph, so
comments and docstrings are gone, its name is cut down to an identifier, its thought is left out, and of
the reason for its failure only names stay.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Final

from discojax.candidates import MARGINS, Node, to_source
from discojax.candidates.graph import LARGEST_CONSTANT, MAX_CONSTANTS, MAX_DEPTH, MAX_OPERATIONS
from discojax.candidates.printer import CALLS
from discojax.candidates.text import LARGEST_SOURCE
from discojax.candidates.vocabulary import FUNCTIONS, STATIC
from discojax.objectives.types import ARGUMENTS
from discojax.proposers import diversity, selection
from discojax.proposers.replies import identifier
from discojax.proposers.selection import Member
from discojax.proposers.types import Scored

__all__ = ["OPERATORS", "Prompt", "build", "repair", "tokens_of", "unread", "version"]

_BEST, _DIVERSE, _FAILURES, _PENDING, _DUPLICATES = 4, 4, 5, 4, 5  # entries shown at most
_SHOWN_MARGINS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
_CHARACTERS_PER_TOKEN = 3.0  # of code and numbers; prose has more, so this counts on the high side
_LONGEST_REASON = 200
_NAME = re.compile(r"\.?[A-Za-z_][\w.]{0,30}")


@dataclass(frozen=True)
class Prompt:
    """A question to a language model.

    Attributes:
      system: the system instruction; the same for all requests of a run, so that servers can cache it.
      user: the first message.
    """

    system: str
    user: str


@functools.cache
def _text(file: str) -> str:
    return importlib.resources.files("discojax.proposers").joinpath("templates", file).read_text("utf-8")


@functools.cache
def _sections(file: str) -> Mapping[str, Template]:
    """The pieces of a template file by the headings `## name`; what stands before the first is a comment."""
    parts = re.split(r"^## (\w+)\n", _text(file), flags=re.MULTILINE)[1:]
    return {name: Template(text.strip("\n")) for name, text in zip(parts[::2], parts[1::2], strict=True)}


OPERATORS: Final = ("fresh", "refine", "crossover", "simplify", "tune", "fix")
"""What may be asked for; `templates/operators.md` has the words."""


@functools.cache
def version() -> str:
    """64 hexadecimal digits over the templates and the language they describe."""
    files = ("system.md", "request.md", "sections.md", "operators.md")
    whole = "\0".join((*(_text(file) for file in files), _functions()))
    return hashlib.sha256(whole.encode()).hexdigest()


def tokens_of(*texts: str) -> int:
    """About how many tokens the texts have, on the high side."""
    return sum(int(len(text) / _CHARACTERS_PER_TOKEN) + 1 for text in texts)


@functools.cache
def _functions() -> str:
    """The calls that the gate's own printer uses, which are all of the language without its synonyms."""
    calls: dict[str, str] = {}
    for name in CALLS.values():
        function = FUNCTIONS[name]
        taken = ", ".join(p for p in function.parameters if p not in STATIC)
        calls[name] = f"{name}({taken}{'[, ddof=1]' if 'ddof' in function.parameters else ''})"
    lines: dict[str, list[str]] = {}
    for name, call in sorted(calls.items()):
        lines.setdefault(name.rpartition(".")[0], []).append(call)
    return "\n".join(f"  {' '.join(line)}" for line in lines.values())


@functools.cache
def system(confidence: float = 0.95) -> str:
    """The system instruction, with the language as the gate has it."""
    return (
        Template(_text("system.md"))
        .substitute(
            arguments=", ".join(ARGUMENTS[:5]),
            optional=", ".join(f"`{name}`" for name in ARGUMENTS[5:]),
            functions=_functions(),
            largest_constant=f"{LARGEST_CONSTANT:g}",
            bytes=LARGEST_SOURCE,
            operations=MAX_OPERATIONS,
            constants=MAX_CONSTANTS,
            depth=MAX_DEPTH,
            confidence=f"{confidence:.0%}",
        )
        .strip()
    )


def build(
    history: Sequence[Scored],
    operator: str,
    parents: Sequence[Scored],
    count: int,
    *,
    tokens: int,
    confidence: float = 0.95,
) -> Prompt:
    """The prompt for `count` candidates.

    Args:
      history: everything tried so far.
      operator: one of `OPERATORS`.
      parents: the losses it is applied to.
      count: how many are asked for.
      tokens: how many the prompt may have; what is less important is left out first.
      confidence: of the intervals.
    """
    task = _sections("operators.md")[operator].substitute(parents="\n\n".join(map(_entry, parents)))
    fixed = Template(_text("request.md")).substitute(
        best="", diverse="", failures="", pending="", duplicates="", task=task, format=_format(count)
    )
    left = tokens - tokens_of(system(confidence), fixed)
    parts: dict[str, str] = {}
    for name, entries in _evidence(history, parents).items():
        shown = []
        left -= tokens_of(_sections("sections.md")[name].template)
        for entry in entries:
            if tokens_of(entry) <= left:
                shown.append(entry)
                left -= tokens_of(entry)
        gap = "\n\n" if name in ("best", "diverse", "pending") else "\n"
        text = _sections("sections.md")[name].substitute(entries=gap.join(shown)) + "\n\n"
        parts[name] = text if shown else ""
    user = Template(_text("request.md")).substitute(**parts, task=task, format=_format(count))
    return Prompt(system(confidence), user.strip())


def repair(refused: Sequence[tuple[str, str]]) -> str:
    """The second message, about refused functions.

    Args:
      refused: name and the gate's reason of each. They go back to the one who wrote them, and only there.
    """
    failed = _sections("sections.md")["failed"]
    entries = [failed.substitute(name=name, status="refused", reason=reason) for name, reason in refused]
    text = _sections("sections.md")["repair"]
    return text.substitute(entries="\n".join(entries), format=_format(len(refused)))


def unread(reason: str, count: int) -> str:
    """The second message, about an answer with no candidate in it."""
    return _sections("sections.md")["unread"].substitute(reason=reason, format=_format(count))


def _format(count: int) -> str:
    return _sections("sections.md")["one" if count == 1 else "several"].safe_substitute(count=count)


def _evidence(history: Sequence[Scored], parents: Sequence[Scored]) -> dict[str, list[str]]:
    """The entries of each section, the most important first."""
    scored = _latest(past for past in history if past.status == "ok")
    shown = {past.name for past in parents}
    ranked = sorted(scored, key=lambda pair: (-pair[0].rung, -_cautious(pair[0])))
    best = [pair for pair in ranked if pair[0].name not in shown][:_BEST]
    by_name = {past.name: past for past, _ in scored}
    besides = [Member(past.name, graph) for past, graph in (*best, *_latest(parents))]
    others = diversity.diverse(
        [Member(p.name, graph, p.score, p.rung) for p, graph in scored if p.name not in shown],
        _DIVERSE,
        besides,
    )
    return {
        "best": [_entry(past) for past, _ in best],
        "diverse": [_entry(by_name[member.name]) for member in others],
        "failures": _failures(history),
        "pending": [_entry(past) for past in reversed(history) if past.status == "pending"][:_PENDING],
        "duplicates": _duplicates(history),
    }


def _latest(history: Iterable[Scored]) -> list[tuple[Scored, Node]]:
    """Each program once, as it was seen last."""
    found: dict[Node, Scored] = {}
    for past in history:
        graph = selection.read(past.source)
        if graph is not None:
            found[graph] = past
    return [(past, graph) for graph, past in found.items()]


def _cautious(past: Scored) -> float:
    """Half way from its score to its interval's lower end: a lucky loss with a wide one does not lead."""
    if past.score is None:
        return float("-inf")
    return past.score if past.interval is None else (past.score + past.interval[0]) / 2


def _entry(past: Scored) -> str:
    graph = selection.read(past.source)
    reason = "" if graph is not None else past.reason or "its text is not in the language"
    if graph is None or past.status in ("rejected", "failed"):
        text = _sections("sections.md")["failed"].substitute(
            name=_name(past), status=past.status, reason=_plain(reason or past.reason)
        )
        return text if graph is None else f"{text}\n{to_source(graph).strip()}"
    if past.score is None:
        return _sections("sections.md")["unmeasured"].substitute(
            name=_name(past), code=to_source(graph).strip()
        )
    curve = diversity.curve(graph)
    at = [int(abs(MARGINS - margin).argmin()) for margin in _SHOWN_MARGINS]
    interval = "" if past.interval is None else f" [{past.interval[0]:+.4f}, {past.interval[1]:+.4f}]"
    return _sections("sections.md")["measured"].substitute(
        name=_name(past),
        score=f"{past.score:+.4f}{interval}{_effort(past)}",
        code=to_source(graph).strip(),
        margins=" ".join(f"{margin:g}" for margin in _SHOWN_MARGINS),
        losses=" ".join(f"{curve.values[i] + 0.0:.3g}" for i in at),  # + 0.0 makes 0 of -0
        slopes=" ".join(f"{curve.slopes[i] + 0.0:.3g}" for i in at),
    )


def _effort(past: Scored) -> str:
    seeds = f"{past.seeds} seed{'s' if past.seeds > 1 else ''}"
    return f" at rung {past.rung} ({seeds} x {past.steps} steps)" if past.steps else ""


def _failures(history: Sequence[Scored]) -> list[str]:
    """Each reason once, with the newest loss that failed for it."""
    seen: dict[str, str] = {}
    for past in reversed(history):
        if past.status in ("rejected", "failed"):
            reason = _plain(past.reason)
            text = _sections("sections.md")["failed"]
            seen.setdefault(reason, text.substitute(name=_name(past), status=past.status, reason=reason))
    return list(seen.values())[:_FAILURES]


def _duplicates(history: Sequence[Scored]) -> list[str]:
    recent = [_plain(past.reason) for past in history if past.status == "duplicate"][-4 * _DUPLICATES :]
    return [
        f"{count} time{'s' if count > 1 else ''}: {reason}"
        for reason, count in Counter(recent).most_common(_DUPLICATES)
    ]


def _name(past: Scored) -> str:
    return identifier(past.name)


def _plain(reason: str) -> str:
    """A reason without anything but names of what its candidate's author wrote."""
    words = "".join(c if " " <= c <= "~" else " " for c in reason)
    words = re.sub(r"`([^`]*)`?", lambda m: m[0] if _NAME.fullmatch(m[1]) else "`...`", words)
    return " ".join(words.split())[:_LONGEST_REASON]
