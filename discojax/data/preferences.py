"""From rows of text to preference pairs in tokens, for a policy and its tokenizer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from discojax.data import chat
from discojax.data.pairs import Dropped, Pairs, make_pairs
from discojax.data.sources import Account, Preference, Prompt
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError

__all__ = ["Preparation", "Prepared", "prepare", "prompt_hash"]

_ROWS = 512  # tokenized at a time: arrays of ids take an eighth of what lists of them do


@dataclass(frozen=True)
class Preparation:
    """How rows become pairs.

    Attributes:
      max_length: tokens of prompt and completion together.
      max_completion: tokens of a completion, its end counted.
      style: how a prompt is written; `auto` writes messages as a chat and text plainly.
      max_prompt: tokens of a prompt; None limits it by the other two alone.
    """

    max_length: int = 1024
    max_completion: int = 512
    style: Literal["auto", "plain", "chat"] = "auto"
    max_prompt: int | None = None


class Prepared(NamedTuple):
    """Pairs, and what became of the rows that they are from.

    Attributes:
      pairs: of as many tokens as the longest takes.
      prompts: a hash of each pair's prompt, `[pairs]` uint64: pairs of one prompt are not independent.
      counts: what `Dropped` counts, and `merged`: sides whose border BPE would have merged across.
      style: how the prompts were written.
    """

    pairs: Pairs
    prompts: np.ndarray
    counts: dict[str, int]
    style: chat.Style

    def split(self, share: float) -> tuple[Prepared, Prepared]:
        """What is trained on, and the share of the prompts that is held out.

        By the prompts' hashes: on every machine alike, and no prompt is in both.
        """
        held_out = self.prompts.astype(np.float64) < share * 2.0**64

        def take(rows: np.ndarray) -> Prepared:
            pairs = Pairs(*(None if array is None else array[rows] for array in self.pairs))  # type: ignore[arg-type]
            return self._replace(pairs=pairs, prompts=self.prompts[rows])

        return take(~held_out), take(held_out)


def prompt_hash(prompt: Prompt) -> int:
    """A number below 2^64 that depends on the prompt alone."""
    text = prompt if isinstance(prompt, str) else "\x00".join(f"{role}\x01{said}" for role, said in prompt)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def prepare(
    rows: Iterable[tuple[str, Preference]],
    tokenizer: TextTokenizer,
    preparation: Preparation,
    account: Account,
) -> Prepared:
    """Tokenizes rows into pairs, dropping and counting those that cannot be trained on.

    Args:
      rows: places and preferences, as `sources.read_preferences` gives them.
      tokenizer: the policy's.
      preparation: see `Preparation`.
      account: is told of rows that the chat template refuses.

    Raises:
      UserError: no pair is left, or the data are chats and the tokenizer has no template.
    """
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        raise UserError(f"There is no preference pair to train on: {account}.")
    style = chat.choose_style(preparation.style, tokenizer, first[1].prompt)
    bos, eos = chat.begins_with(tokenizer, style), chat.end_of_completion(tokenizer, style)
    parts, prompts = [], []
    counts: Counter[str] = Counter()
    tokenized = _tokenized(_again(first, stream), tokenizer, style, account, counts)
    while chunk := list(islice(tokenized, _ROWS)):
        pairs, dropped = make_pairs(
            *([getattr(tokens, name) for _, tokens in chunk] for name in chat.Tokens._fields[:3]),
            max_length=preparation.max_length,
            max_completion=min(preparation.max_completion, preparation.max_length),
            max_prompt=preparation.max_prompt,
            eos_id=eos,
            pad_id=tokenizer.pad_id,
            bos_id=bos,
        )
        parts.append(pairs)
        prompts.append(np.asarray([chunk[row][0] for row in dropped.rows], np.uint64))
        for name in (field.name for field in fields(Dropped) if field.name != "rows"):
            counts[name] += getattr(dropped, name)
    joined = _joined(parts)
    if joined is None:
        lost = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none dropped"
        raise UserError(f"No preference pair is left to train on: {account}; of the rest {lost}.")
    return Prepared(joined, np.concatenate(prompts), dict(counts), style)


def _again(first, stream) -> Iterator[tuple[str, Preference]]:
    yield first
    yield from stream


def _tokenized(
    rows: Iterator[tuple[str, Preference]],
    tokenizer: TextTokenizer,
    style: chat.Style,
    account: Account,
    counts: Counter[str],
) -> Iterator[tuple[int, chat.Tokens]]:
    for where, preference in rows:
        if style == "plain" and not isinstance(preference.prompt, str):
            account.leave_out(where, "chat messages among plain text")
            continue
        try:
            tokens = chat.encode_preference(tokenizer, preference, style)
        except chat.TemplateError as error:
            account.leave_out(where, str(error))
            continue
        counts["merged"] += tokens.merged
        yield prompt_hash(preference.prompt), tokens


def _joined(parts: list[Pairs]) -> Pairs | None:
    """All parts as one, without the columns that are padding in every row; None if there is no row."""
    parts = [part for part in parts if len(part.prompt_length)]
    if not parts:
        return None
    whole = Pairs(*(np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:5]))
    longest = int((whole.prompt_length + np.maximum(whole.chosen_length, whole.rejected_length)).max())
    return whole._replace(
        chosen_ids=whole.chosen_ids[:, :longest], rejected_ids=whole.rejected_ids[:, :longest]
    )
