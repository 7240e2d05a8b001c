"""From the text a model answered to candidates: a ladder for untidy replies.

JSON and what is meant as such, JSON within prose, Python in a fence, the first `def`; each rung is tried
only where the one above found nothing. What falls through all of them is a reason, never an exception.
Nothing is executed, and what is read is bounded, so that no reply can hang or fill the memory.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from discojax.proposers import definitions, lenient
from discojax.proposers.client import Finish

__all__ = ["Draft", "Remedy", "Untidy", "identifier", "read", "schema", "without_thoughts"]

Remedy = Literal["repair", "more_tokens", "ask_again"]
"""What to do about an unusable reply: show the model the reason, raise `max_output_tokens` once and
ask the same, or ask something else."""

_LONGEST_TEXT = 200_000  # characters of a reply that are read
_LONGEST_THOUGHT = 2_000
_LONGEST_NAME = 40
_MOST_DRAFTS = 32

_FIELDS = {
    "code": ("code", "source", "function", "python"),
    "name": ("name", "title"),
    "thought": ("thought", "thoughts", "idea", "reasoning", "rationale", "explanation"),
}


@dataclass(frozen=True)
class Draft:
    """One candidate as a model wrote it: not checked by the gate.

    Attributes:
      name: an identifier in lower case, not necessarily a new one.
      code: the text for the gate.
      thought: the idea behind it on one line, "" if the model gave none.
    """

    name: str
    code: str
    thought: str = ""


@dataclass(frozen=True)
class Untidy:
    """Why a reply has no candidate, as a sentence the model can be shown, and what to do."""

    reason: str
    remedy: Remedy


def schema(several: bool = False) -> dict[str, Any]:
    """The JSON schema to put into a `Request`: of one candidate, or of a list of them.

    The thought stands first, because a model writes in this order. Within what OpenAI's strict mode
    and Gemini take: all fields are required, and no others allowed.
    """
    one = _object(
        thought={"type": "string", "description": "The idea behind this loss, in one or two sentences."},
        name={"type": "string", "description": "A short new name in snake_case."},
        code={"type": "string", "description": "One Python function `def loss(...)`, and nothing else."},
    )
    return _object(candidates={"type": "array", "items": one}) if several else one


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read(text: str, finish: Finish = "stop", detail: str = "") -> tuple[Draft, ...] | Untidy:
    """The candidates in one text of a reply, at least one, or why there is none.

    Args:
      text: the answer.
      finish: why it ends; a function that a token limit cut is no candidate.
      detail: what the server said of an answer it withheld.
    """
    text = _clean(text[:_LONGEST_TEXT]).replace("\r\n", "\n").replace("\r", "\n")
    text = without_thoughts(text)
    if finish in ("safety", "recitation"):  # what may be there is a fragment
        why = "unsafe" if finish == "safety" else "a recitation of known text"
        return Untidy(f"The server withheld the answer as {why}{_said(detail)}.", "ask_again")
    if not text.strip():
        if finish == "length":
            why = "The limit of tokens was reached before anything was written"
            return Untidy(f"{why}: thinking may have taken them all.", "more_tokens")
        return Untidy(f"The answer was empty{_said(detail)}.", "ask_again")
    cut = finish == "length"
    flaw = ""
    for rung in (_from_json, _from_fences, _from_prose):
        drafts, problem = rung(text, cut)
        if drafts:
            return tuple(drafts[:_MOST_DRAFTS])
        flaw = flaw or problem
    if cut:
        return Untidy("The limit of tokens cut the answer before a function was complete.", "more_tokens")
    flaw = flaw or "there is neither JSON nor a function in it"
    wanted = 'answer with JSON like {"thought": "...", "name": "...", "code": "def loss(...): ..."}'
    return Untidy(f"The answer could not be read: {flaw}; {wanted}.", "repair")


def identifier(name: str, fallback: str = "loss") -> str:
    """`name` as a Python identifier of at most 40 characters in lower case, or `fallback`."""
    words = re.sub(r"[^a-z0-9]+", "_", name[: 4 * _LONGEST_NAME].lower()).strip("_")
    words = words[:_LONGEST_NAME].rstrip("_")
    if not words:
        return fallback
    if not words[0].isalpha() or keyword.iskeyword(words):
        words = f"{fallback}_{words}"[:_LONGEST_NAME].rstrip("_")
    return words


def without_thoughts(text: str) -> str:
    """`text` without the `<think>...</think>` that a model may write before its answer."""
    head, opening, rest = text.partition("<think>")
    before, closing, answer = (rest if opening else text).partition("</think>")
    if closing and (not opening or not head.strip()):  # some templates write the opening tag themselves
        return answer
    return head if opening and not head.strip() and before else text


def _clean(text: str) -> str:
    """`text` as UTF-8 can hold it: JSON may write half a character."""
    return text.encode("utf-8", "replace").decode()


def _said(detail: str) -> str:
    return f" ({_line(detail, 200)})" if detail.strip() else ""


def _line(text: str, longest: int) -> str:
    """`text` on one line of printable characters."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * longest]).split()
    return " ".join(words)[:longest]


# --- JSON -------------------------------------------------------------------------------------------


def _from_json(text: str, cut: bool) -> tuple[list[Draft], str]:
    """Drafts in the JSON that is the text, or stands somewhere in it, even if its end is missing."""
    drafts: list[Draft] = []
    flaw = ""
    for value in lenient.values(text):
        found, problem = _drafts(value)
        drafts += found
        flaw = flaw or problem
        if len(drafts) >= _MOST_DRAFTS:
            break
    return drafts, flaw


def _drafts(value: Any) -> tuple[list[Draft], str]:
    """Drafts of one JSON value: an object with code, a list of such, or an object that holds a list."""
    if isinstance(value, dict) and not any(key in value for key in _FIELDS["code"]):
        lists = [v for v in value.values() if isinstance(v, list)]
        if not lists:
            return [], 'the JSON has no "code"' if value else ""
        value = lists[0]
    drafts, flaw = [], ""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            continue
        given = {name: _pick(item, keys) for name, keys in _FIELDS.items()}
        code = _text(given["code"])
        if "def " not in code:
            flaw = flaw or '"code" in the JSON is not the text of a function'
            continue
        drafts.append(_draft(code, given["name"], given["thought"]))
    return drafts, flaw


def _text(code: Any) -> str:
    """Text, or a list of its lines, as text; "" if it is something else."""
    if isinstance(code, list) and all(isinstance(line, str) for line in code):
        return "\n".join(line.removesuffix("\n") for line in code)
    return code if isinstance(code, str) else ""


def _pick(item: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _draft(code: str, name: Any = None, thought: Any = None) -> Draft:
    fenced = next((inside for _, inside, _ in _fences(code) if "def " in inside), None)
    code = _clean(code if fenced is None else fenced)[: definitions.LONGEST_CODE]
    code = textwrap.dedent(code).strip("\n") + "\n"
    if not isinstance(name, str) or not name.strip():
        written = re.search(r"def +(\w{1,80})", code)
        name = written[1] if written else ""
    thought = _line(thought, _LONGEST_THOUGHT) if isinstance(thought, str) else ""
    return Draft(identifier(name), code, thought)


# --- Python -----------------------------------------------------------------------------------------


def _fences(text: str) -> Iterator[tuple[str, str, bool]]:
    """Language, inside and whether it is closed, of each fenced block."""
    parts = text.split("```")
    for number in range(1, len(parts), 2):
        language, _, inside = parts[number].partition("\n")
        yield language.strip().lower(), inside, number + 1 < len(parts)


def _from_fences(text: str, cut: bool) -> tuple[list[Draft], str]:
    """A draft for each fence with a function; the gate judges what is in it."""
    drafts, flaw = [], ""
    for _, inside, closed in _fences(text):
        if re.search(r"^\s*def ", inside, re.MULTILINE) and (closed or not cut):
            code = definitions.whole(inside)
            if not code:
                code, problem = definitions.first(inside)
                flaw = flaw or problem
            drafts.append(_draft(code or inside))  # what cannot be read is the gate's to explain
    return drafts, flaw


def _from_prose(text: str, cut: bool) -> tuple[list[Draft], str]:
    """The first function that stands in the text by itself."""
    code, problem = definitions.first(text, cut)
    return ([_draft(code)] if code else []), problem
