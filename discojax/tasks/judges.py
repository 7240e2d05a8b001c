"""Judges of two completions of one prompt: a language model that is asked, or a reward model as a proxy.

A judge sees each pair once in each order, because language models prefer one place to the other; the
two verdicts are averaged. A reply that says neither, and one that never came, are counted as such:
neither is a win, a loss or a tie.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from discojax.data import cache
from discojax.errors import UserError
from discojax.tasks.types import Reward

__all__ = ["Ask", "Judge", "Kind", "LanguageModelJudge", "RewardJudge", "Verdicts", "parse", "question"]

Ask = Callable[[str], str]
"""Puts a question to a language model and gives its answer. Raises UserError if none came."""

VERSION = 1  # of the question: raise it when its wording changes

_AT_ONCE = 8  # questions asked of a server at a time
_HOPELESS = 10  # questions, of which not one was answered: then the rest is not asked


class Verdicts(NamedTuple):
    """What a judge said of every pair.

    Attributes:
      win: in [0, 1], `[pairs]`: how often the first completion was preferred, a tie counting a half,
        averaged over both orders; NaN unless both orders have a verdict.
      ties: orders judged equal, `[pairs]`, 0 to 2.
      unparseable: orders whose reply was no verdict, `[pairs]`.
      unanswered: orders to which no reply came, `[pairs]`.
    """

    win: Float[np.ndarray, " pairs"]
    ties: Float[np.ndarray, " pairs"]
    unparseable: Float[np.ndarray, " pairs"]
    unanswered: Float[np.ndarray, " pairs"]


class Judge(Protocol):
    """Compares completions.

    Attributes:
      name: what reports call it.
      proxy: whether it is no judge of what people want but a model that stands in for one.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def proxy(self) -> bool: ...  # noqa: D102

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Which of `first` and `second` is the better completion of each prompt."""
        ...


@dataclass(frozen=True)
class RewardJudge:
    """Prefers the completion of the higher reward: a proxy. Order cannot matter to it."""

    reward: Reward
    name: str = "proxy: reward model"
    proxy: bool = True

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """See `Judge.compare`; a completion that the reward cannot score has no verdict."""
        ours, theirs = (np.asarray(self.reward(prompts, texts), np.float64) for texts in (first, second))
        known = np.isfinite(ours + theirs)
        win = np.where(known, 0.5 * (1 + np.sign(ours - theirs)), np.nan)
        return Verdicts(win, 2.0 * (known & (ours == theirs)), 2.0 * ~known, np.zeros(len(win)))


Kind = Literal["summaries", "replies"]
"""What a judge compares."""

_ASKED: dict[Kind, tuple[str, str, str]] = {
    "summaries": (
        "Here are a text and two summaries of it. Decide which summary does the better job of giving the "
        "text's most important points, leaving out details that do not matter. A good summary is precise "
        "and short.",
        "Text",
        "Summary",
    ),
    "replies": (
        "Here are what somebody wrote and two replies to it. Decide which reply is the better one: more "
        "helpful, more accurate and more to the point. Its length does not matter.",
        "Written",
        "Reply",
    ),
}


def question(post: str, a: str, b: str, kind: Kind = "summaries") -> str:
    """What a language model is asked; of summaries, after the concise form of Rafailov et al. (2023).

    In our own words.
    """
    asked, given, item = _ASKED[kind]
    return (
        f"{asked}\n\n"
        f"{given}:\n{post}\n\n{item} A:\n{a or '(empty)'}\n\n{item} B:\n{b or '(empty)'}\n\n"
        "Answer with two lines and nothing else. The first compares the two in one sentence and says which "
        "you prefer and why. The second holds one word: A, B, or TIE if neither is better.\n"
        "Comparison: <one sentence>\nPreferred: <A, B or TIE>"
    )


_PREFERRED = re.compile(
    r"""^\W*preferred\W*(?:(?:summary|reply)\W*)?(a|b|tie)\b
    (?![^\w\n]*(?:or\b|(?:and\W+)?(?:(?:summary|reply)\s+)?(?-i:A|B|TIE)\b))  # "A or B", "A, B or TIE"
    (?:[^\w\n]*$|[^\w\n]*[(,;:.\u2013\u2014-].*$|\s+(?:because|since|as)\b.*$)  # a reason may follow""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_ALONE = re.compile(r"\W*(a|b|tie)\W*", re.IGNORECASE)


def parse(reply: str) -> float | None:
    r"""1 for A, 0 for B, a half for a tie, None for what is no verdict, or more than one.

    >>> parse("Comparison: B rambles.\nPreferred: A"), parse("**Preferred:** TIE"), parse("Hm.")
    (1.0, 0.5, None)
    """
    said = {word.lower() for word in _PREFERRED.findall(reply)}
    lines = reply.strip().splitlines()
    if not said and lines and (alone := _ALONE.fullmatch(lines[-1])):
        said = {alone.group(1).lower()}
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[said.pop()] if len(said) == 1 else None


@dataclass(frozen=True)
class LanguageModelJudge:
    """Asks a language model, in both orders; verdicts are kept by the content of the question.

    A reply that is no verdict is not kept: one that was cut short or withheld may come whole another time.

    Attributes:
      ask: puts a question to the model.
      model: its name, and
      settings: whatever else decides its answers: part of what a reply is kept by.
      post: the text that is summarised, of a prompt.
      root: the cache's directory; by default `data.cache.default_root()`.
      kind: what it compares.
    """

    ask: Ask
    model: str
    post: Callable[[Sequence[str]], list[str]] = list
    root: Path | str | None = None
    proxy: bool = False
    kind: Kind = "summaries"
    settings: str = ""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """See `Judge.compare`. An identical pair is a tie, and not asked about.

        Raises:
          UserError: none of the first questions was answered, with the last one's reason.
        """
        posts = self.post(prompts)
        orders = [
            [question(post, a, b, self.kind) for post, a, b in zip(posts, one, other, strict=True)]
            for one, other in ((first, second), (second, first))
        ]
        same = [a.strip() == b.strip() for a, b in zip(first, second, strict=True)]
        wanted = {text for order in orders for text, skip in zip(order, same, strict=True) if not skip}
        replies = self._replies(sorted(wanted))
        win = np.full((2, len(posts)), np.nan)
        ties, unparseable, unanswered = np.zeros((3, len(posts)))
        for order, texts in enumerate(orders):
            for i, text in enumerate(texts):
                reply = None if same[i] else replies.get(text)
                verdict = 0.5 if same[i] else None if reply is None else parse(reply)
                if verdict is not None:
                    win[order, i] = verdict if order == 0 else 1 - verdict
                    ties[i] += verdict == 0.5
                elif reply is None:
                    unanswered[i] += 1
                else:
                    unparseable[i] += 1
        return Verdicts(win.mean(0), ties, unparseable, unanswered)

    def _replies(self, questions: Sequence[str]) -> dict[str, str]:
        root = cache.default_root() if self.root is None else Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        kept = _Kept(root / "verdicts.sqlite", f"{self.model}\n{self.settings}\n{VERSION}")
        replies = {text: reply for text in questions if (reply := kept.get(text)) is not None}
        missing = [text for text in questions if text not in replies]
        failed: list[UserError] = []

        def answer(text: str) -> str | None:
            if len(failed) >= _HOPELESS and not answered:
                return None  # no server, no key, no money left: asking 5,000 times more changes nothing
            try:
                reply = self.ask(text)
            except UserError as error:
                failed.append(error)
                return None
            answered.append(text)
            if parse(reply) is not None:
                kept.put(text, reply)
            return reply

        answered: list[str] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for text, reply in zip(missing, pool.map(answer, missing), strict=True):
                if reply is not None:
                    replies[text] = reply
        kept.close()
        if failed and not replies:
            raise UserError(f"The judge {self.model} answered none of {len(missing)} questions: {failed[-1]}")
        return replies


class _Kept:
    """Verdicts on disk by the hash of model and question: none is paid for twice."""

    def __init__(self, path: Path, model: str):
        self._model, self._lock = model, threading.Lock()
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")
        except sqlite3.Error as error:
            raise UserError(
                f"Verdicts cannot be kept in {path} ({error}): set DISCOJAX_CACHE to another directory."
            ) from error

    def _key(self, text: str) -> str:
        return hashlib.sha256(f"{self._model}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, text: str) -> str | None:
        with self._lock:
            row = self._database.execute(
                "SELECT reply FROM replies WHERE key = ?", (self._key(text),)
            ).fetchone()
        return None if row is None else str(row[0])

    def put(self, text: str, reply: str) -> None:
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (self._key(text), reply))

    def close(self) -> None:
        self._database.close()
