"""Preference pairs as arrays: a prompt, a chosen and a rejected completion, in token ids.

What a token is to a loss is decided by lengths alone. An id cannot decide it: `ids != pad` drops
the end of every completion where padding and end-of-sequence are one token, as in GPT-2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from discojax.data import tokenizer as vocabulary
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError

__all__ = [
    "Dropped",
    "Pairs",
    "TokenizedPair",
    "keep_end",
    "make_pairs",
    "tokenize_pair",
]


class Pairs(NamedTuple):
    """Preference pairs, a pytree of NumPy arrays with pairs as the leading axis.

    Row i of `chosen_ids` is a prompt of `prompt_length[i]` tokens, the beginning-of-sequence token
    counted, then a completion of `chosen_length[i]` tokens, the end-of-sequence token counted, then
    padding; `rejected_ids` has the same prompt. Lengths are at least 1.

    Attributes:
      reference_chosen, reference_rejected: log-probabilities of the completions under the
        reference, in nats, summed over completion tokens; None until they are computed.
    """

    chosen_ids: Int32[np.ndarray, "pairs time"]
    rejected_ids: Int32[np.ndarray, "pairs time"]
    prompt_length: Int32[np.ndarray, " pairs"]
    chosen_length: Int32[np.ndarray, " pairs"]
    rejected_length: Int32[np.ndarray, " pairs"]
    reference_chosen: Float32[np.ndarray, " pairs"] | None = None
    reference_rejected: Float32[np.ndarray, " pairs"] | None = None


@dataclass(frozen=True)
class Dropped:
    """Which rows `make_pairs` kept, how many it dropped and why, and how many it shortened.

    Attributes:
      rows: `[pairs]`, the index of the input row that each pair is from.
      empty_prompt: no prompt token to condition the first completion token on.
      empty_completion: a side without a token before its end.
      identical: both sides are the same tokens.
      identical_after_truncation: they differ only past `max_length`.
      shortened_prompts, shortened_completions: kept, but not whole; completions count by side.
    """

    rows: Int[np.ndarray, " pairs"]
    empty_prompt: int = 0
    empty_completion: int = 0
    identical: int = 0
    identical_after_truncation: int = 0
    shortened_prompts: int = 0
    shortened_completions: int = 0

    @property
    def total(self) -> int:
        """How many rows were dropped."""
        return self.empty_prompt + self.empty_completion + self.identical + self.identical_after_truncation


def make_pairs(
    prompt_ids: Sequence[Sequence[int]],
    chosen_ids: Sequence[Sequence[int]],
    rejected_ids: Sequence[Sequence[int]],
    *,
    max_length: int,
    max_completion: int | None = None,
    max_prompt: int | None = None,
    eos_id: int = vocabulary.EOS,
    pad_id: int = vocabulary.PAD,
    bos_id: int | None = vocabulary.BOS,
    append_eos: bool = True,
) -> tuple[Pairs, Dropped]:
    """Pairs of `[pairs, max_length]` ids from rows of tokens, and an account of those dropped.

    A prompt begins with `bos_id` once, and a completion never has it. A completion ends with
    `eos_id`, which is nowhere else in it: what follows the first is cut. Where prompt and longer
    completion exceed `max_length`, the prompt loses its beginning first, down to a quarter of
    `max_length`, then the completions lose their ends but not their `eos_id`; both sides keep the
    same prompt.

    Args:
      prompt_ids, chosen_ids, rejected_ids: a row each, of any length, without padding.
      max_length: tokens of prompt and completion together, at least 4.
      max_completion: tokens of a completion at most, its `eos_id` counted; by default only
        `max_length` limits it.
      max_prompt: tokens of a prompt at most, likewise.
      bos_id: None for a tokenizer without one; it may be the same token as `eos_id`.
      append_eos: False for sampled completions, some of which were stopped by a length limit:
        `eos_id` then ends only those that have it, and truncation may remove it, so that no policy
        learns to stop in the middle of a sentence.

    Raises:
      UserError: `max_length` is below 4 or `max_completion` below 2.
      ValueError: the three do not have the same number of rows.
    """
    if max_length < 4:
        raise UserError(f"max_length is {max_length}: a pair takes at least 4 tokens.")
    if max_completion is not None and max_completion < 2:
        raise UserError(f"max_completion is {max_completion}: a token and its end take at least 2.")
    kept: list[tuple[list[int], list[int], list[int]]] = []
    rows: list[int] = []
    counts: Counter[str] = Counter()
    for row, (given, *sides) in enumerate(zip(prompt_ids, chosen_ids, rejected_ids, strict=True)):
        prompt = _prompt(given, bos_id)
        whole = [_completion(side, bos_id, eos_id, append_eos) for side in sides]
        if not prompt:
            counts["empty_prompt"] += 1
            continue
        if not all(side and side[0] != eos_id for side in whole):
            counts["empty_completion"] += 1
            continue
        if whole[0] == whole[1]:
            counts["identical"] += 1
            continue
        limit = max_length if max_completion is None else max_completion
        longest = min(limit, max(map(len, whole)))
        space = max(max_length // 4, 2, max_length - longest)
        short = keep_end(prompt, space if max_prompt is None else min(space, max_prompt), bos_id)
        room = min(limit, max_length - len(short))
        chosen, rejected = (_keep_start(side, room, eos_id, append_eos) for side in whole)
        if chosen == rejected:
            counts["identical_after_truncation"] += 1
            continue
        counts["shortened_prompts"] += len(short) < len(prompt)
        counts["shortened_completions"] += sum(len(side) > room for side in whole)
        kept.append((short, chosen, rejected))
        rows.append(row)
    pairs = Pairs(
        chosen_ids=_padded([prompt + chosen for prompt, chosen, _ in kept], max_length, pad_id),
        rejected_ids=_padded([prompt + rejected for prompt, _, rejected in kept], max_length, pad_id),
        prompt_length=np.asarray([len(prompt) for prompt, _, _ in kept], np.int32),
        chosen_length=np.asarray([len(chosen) for _, chosen, _ in kept], np.int32),
        rejected_length=np.asarray([len(rejected) for _, _, rejected in kept], np.int32),
    )
    return pairs, Dropped(rows=np.asarray(rows, np.int64), **counts)


def _prompt(ids: Iterable[int], bos_id: int | None) -> list[int]:
    ids = [int(i) for i in ids]
    if bos_id is None:
        return ids
    start = next((at for at, i in enumerate(ids) if i != bos_id), len(ids))
    return [bos_id, *ids[start:]]  # inside a prompt it may separate turns: only those at the start go


def _completion(ids: Iterable[int], bos_id: int | None, eos_id: int, append_eos: bool) -> list[int]:
    ids = [int(i) for i in ids]
    ended = eos_id in ids
    if ended:
        ids = ids[: ids.index(eos_id)]
    ids = [i for i in ids if i != bos_id]
    return [*ids, eos_id] if ended or append_eos else ids


def keep_end(prompt: list[int], room: int, bos_id: int | None) -> list[int]:
    """The prompt without so much of its beginning that `room` tokens are left, `bos_id` among them."""
    if len(prompt) <= room:
        return prompt
    return prompt[-room:] if bos_id is None else [bos_id, *prompt[len(prompt) - room + 1 :]]


def _keep_start(completion: list[int], room: int, eos_id: int, append_eos: bool) -> list[int]:
    if len(completion) <= room:
        return completion
    return [*completion[: room - 1], eos_id] if append_eos else completion[:room]


def _padded(rows: Sequence[Sequence[int]], time: int, pad_id: int) -> Int32[np.ndarray, "rows time"]:
    padded = np.full((len(rows), time), pad_id, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


class TokenizedPair(NamedTuple):
    """A prompt and a completion in tokens; `merged` if BPE would have merged across their border."""

    prompt_ids: list[int]
    completion_ids: list[int]
    merged: bool


def tokenize_pair(
    tokenizer: TextTokenizer, prompt: str, completion: str, *, markup: bool = False
) -> TokenizedPair:
    """Splits prompt and completion in token space, so that the prompt is what a sampler would see.

    Where the tokens of the whole text begin with the prompt's, the completion is the rest. Where
    they do not (`"the film "` + `"was"`: one token spans the border) the two are tokenized apart,
    and `merged` says so, to be counted.

    Args:
      markup: whether a template wrote the texts; see `TextTokenizer.encode`.
    """
    prompt_ids = tokenizer.encode(prompt, markup=markup)
    together = tokenizer.encode(prompt + completion, markup=markup)
    if together[: len(prompt_ids)] == prompt_ids:
        return TokenizedPair(prompt_ids, together[len(prompt_ids) :], merged=False)
    apart = tokenizer.encode(completion, markup=markup)
    # SentencePiece puts a space before every text, which here would stand inside a word: after a line
    # break it does not. Whichever reads as the whole text does is taken.
    line, broken = (tokenizer.encode(text, markup=markup) for text in ("\n", "\n" + completion))
    whole = tokenizer.decode(together, markup=True)
    for ids in (apart, broken[len(line) :] if broken[: len(line)] == line else apart):
        if tokenizer.decode([*prompt_ids, *ids], markup=True) == whole:
            return TokenizedPair(prompt_ids, ids, merged=True)
    return TokenizedPair(prompt_ids, apart, merged=True)
