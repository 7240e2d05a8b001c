"""Preference pairs and prompts of one's own, one row at a time: JSONL, Parquet, the hub, or TFDS.

A row is a `prompt`, a `chosen` and a `rejected` completion, as plain strings or as chat messages; the
prompt may also be left out and be what both conversations begin with. Rows are streamed, so a file
may be larger than memory. One that is malformed is left out, counted, and named by its place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

from discojax.data import readers
from discojax.errors import UserError, nearest

__all__ = [
    "Account",
    "Columns",
    "Message",
    "Preference",
    "Prompt",
    "read_answered",
    "read_preferences",
]

T = TypeVar("T")

_NAMED = 5  # how many of the rows left out are described; the rest are counted
_PATIENCE = 100  # rows after which a column that none has had is missing from all
_ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text to go on with, or the turns so far of a chat."""


class Preference(NamedTuple):
    """A prompt and two completions of it, of which the first was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Columns:
    """What the columns are called.

    Where `chosen` holds a number, 0 or 1, it is the place of the chosen one in the list of both that
    `rejected` then holds.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


@dataclass
class Account:
    """How many rows were read and left out, and why; it is written to while rows are read."""

    read: int = 0
    left_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def leave_out(self, where: str, reason: str, detail: str = "") -> None:
        """Counts a row; the first few are described with their place."""
        self.left_out += 1
        self.reasons[reason] += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{where}: {reason}{f' ({detail})' if detail else ''}")

    def __str__(self) -> str:
        if not self.left_out:
            return f"{self.read} rows read, none left out"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.read} rows read, {self.left_out} left out: {reasons}; first {'; '.join(self.named)}"


class _MalformedError(Exception):
    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_preferences(
    source: str, account: Account, *, split: str = "train", columns: Columns | None = None
) -> Iterator[tuple[str, Preference]]:
    """The preference pairs of a source, each with its place, as they are read.

    Args:
      source: see `readers.read_rows`.
      account: is told how many rows there were and which were left out.
      split: of a hub or TFDS data set.
      columns: what the columns are called.

    Raises:
      UserError: there is no such source, a column is missing, or no row at all is well formed.
    """
    names = columns or Columns()
    rows = readers.read_rows(source, split)
    required = (names.chosen, names.rejected)
    return _read(source, rows, required, lambda row: _preference(row, names), account)


def read_answered(
    source: str, account: Account, *, split: str = "train", columns: tuple[str, str] = ("prompt", "")
) -> Iterator[tuple[str, tuple[Prompt, str]]]:
    """The prompts of a source, each with what a person wrote to it: "" where no column is named for that.

    A `.txt` file has a prompt on each line. Where the column of prompts is "" the other one holds whole
    conversations, of which the last turn is what was written.

    Raises:
      UserError: as `read_preferences`.
    """
    asked, answered = columns
    rows = readers.read_rows(source, split, text_column=asked)

    def convert(row: Mapping[str, Any]) -> tuple[Prompt, str]:
        if not answered:
            return _prompt(row.get(asked), asked), ""
        answer = _side(row.get(answered), answered)
        if asked:
            prompt = _prompt(row.get(asked), asked)
        elif isinstance(answer, str):
            raise _MalformedError(f"{answered} is text and no conversation")
        else:
            prompt = answer[:-1]
            if not prompt or prompt[-1].role == "assistant":
                raise _MalformedError(f"{answered} is no prompt with a reply to it")
        text = answer if isinstance(answer, str) else _reply(answer[-1:], answered)
        if not text.strip():
            raise _MalformedError(f"{answered} is empty")
        return prompt, text

    return _read(source, rows, [name for name in columns if name], convert, account)


def _read(
    source: str,
    rows: Iterator[tuple[str, readers.Row]],
    required: Sequence[str],
    convert: Callable[[Mapping[str, Any]], T],
    account: Account,
) -> Iterator[tuple[str, T]]:
    missing, kept = set(required), 0
    there: Mapping[str, Any] = {}
    for where, row in rows:
        account.read += 1
        try:
            if isinstance(row, readers.Broken):
                raise _MalformedError(row.reason, row.detail)
            there = row
            missing -= row.keys()
            if missing and account.read >= _PATIENCE:
                break
            yield where, convert(row)
            kept += 1
        except _MalformedError as error:
            account.leave_out(where, error.reason, error.detail)
    for name in required:
        if name in missing and there:
            columns = ", ".join(map(repr, there))
            raise UserError(f"{source} has no column {name!r}; it has {columns}.{nearest(name, there)}")
    if kept == 0:
        raise UserError(f"{source} has no row that can be used: {account}.")


def _preference(row: Mapping[str, Any], names: Columns) -> Preference:
    found = _both(row.get(names.chosen), row.get(names.rejected), names)
    sides = [_side(value, name) for value, name in zip(found, (names.chosen, names.rejected), strict=True)]
    given = row.get(names.prompt)
    chats = [isinstance(side, tuple) for side in sides]
    if chats[0] != chats[1]:
        raise _MalformedError("one side is a chat and the other is text")
    prompt: Prompt
    if not chats[0]:
        if given is None:
            prompt, *texts = _shared_text(*sides)  # type: ignore[arg-type]
        else:
            prompt, texts = _prompt(given, names.prompt), [str(side) for side in sides]
    else:
        conversations = [side for side in sides if isinstance(side, tuple)]
        if given is None:
            both = takewhile(lambda pair: pair[0] == pair[1], zip(*conversations, strict=False))
            prompt = tuple(mine for mine, _ in both)
            if prompt and len(prompt) == min(map(len, conversations)):  # the same reply twice, or one goes on
                prompt = prompt[:-1]
            turns = [side[len(prompt) :] for side in conversations]
        else:
            prompt = _prompt(given, names.prompt)
            if isinstance(prompt, str):
                prompt = (Message("user", prompt),)
            # A column of its own and again in each conversation, as UltraFeedback has it, or only once.
            turns = [side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in conversations]
        texts = [_reply(turn, name) for turn, name in zip(turns, (names.chosen, names.rejected), strict=True)]
    if not prompt:
        raise _MalformedError(f"no {names.prompt}", "and both sides begin differently")
    for text, name in zip(texts, (names.chosen, names.rejected), strict=True):
        if not text:
            raise _MalformedError(f"{name} is empty")
    if texts[0] == texts[1]:
        raise _MalformedError(f"{names.chosen} and {names.rejected} are the same")
    return Preference(prompt, texts[0], texts[1])


def _both(chosen: Any, rejected: Any, names: Columns) -> tuple[Any, Any]:
    """The two completions, of which a number may say which of a list was chosen."""
    listed = hasattr(rejected, "__len__") and not isinstance(rejected, str | bytes | Mapping)
    if not listed or not isinstance(chosen, Integral) or isinstance(chosen, bool):
        return chosen, rejected
    if len(rejected) != 2 or chosen not in (0, 1):
        raise _MalformedError(f"{names.chosen} is a number, and {names.rejected} no list of two")
    both = list(rejected)
    return both[int(chosen)], both[1 - int(chosen)]


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What two texts begin with alike, up to a space, and what follows in each."""
    end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if end == min(len(chosen), len(rejected)):
        end = max(end - 1, 0)  # each side keeps a word of its own
    while end and not chosen[end - 1].isspace():  # not in the middle of a word
        end -= 1
    if end and chosen[end - 1] == " ":
        end -= 1  # the space belongs to the word after it, as byte-level BPE has it
    return chosen[:end], chosen[end:], rejected[end:]


def _reply(turns: tuple[Message, ...], name: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        raise _MalformedError(f"{name} is not one reply of the assistant", f"after the prompt: {roles}")
    return turns[0].content


def _side(value: Any, name: str) -> Prompt:
    if value is None:
        raise _MalformedError(f"no {name}")
    return _text_or_messages(value, name)


def _prompt(value: Any, name: str) -> Prompt:
    if value is None or value == "" or (not isinstance(value, str) and _length(value) == 0):
        raise _MalformedError(f"no {name}")
    prompt = _text_or_messages(value, name)
    if isinstance(prompt, tuple) and prompt[-1].role == "assistant":
        raise _MalformedError(f"{name} ends with the assistant's turn", "so there is nothing to complete")
    return prompt


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _text_or_messages(value: Any, name: str) -> Prompt:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and {"role", "content"} <= set(value):  # TFDS has a sequence of
        fields = [list(value[key]) for key in ("role", "content")]  # dicts as a dict of sequences
        value = [{"role": role, "content": content} for role, content in zip(*fields, strict=False)]
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise _MalformedError(f"{name} is neither text nor messages", json.dumps(value, default=str)[:60])
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
            raise _MalformedError(f"{name} holds something that is no message", str(item)[:60])
        role, content = (
            part.decode("utf-8", errors="replace") if isinstance(part, bytes) else part
            for part in (item["role"], item["content"])
        )
        if role not in _ROLES or not isinstance(content, str):
            raise _MalformedError(f"{name} holds something that is no message", str(item)[:60])
        messages.append(Message(role, content))
    return tuple(messages)
