"""One small interface to any policy's tokenizer: text to ids and back, and the ids with a meaning.

A policy of ours, GPT-2, Llama or SmolLM2 differ in whether a sequence begins with a token of its
own, in what ends it, in what pads it and in how a chat is written. `TextTokenizer` says each of
these, and everything that makes pairs, prompts or samples asks it and no other place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from discojax.data import cache
from discojax.errors import UserError
from discojax.policies.pretrained.vocabulary import of_text

__all__ = ["TextTokenizer"]


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer with what its policy was trained to expect around a text.

    Attributes:
      name: where it is from, for messages.
      tokenizer: the ids of plain text: a special token spelt out in it is text.
      eos_id: ends a sequence.
      pad_id: fills a row; often the same id as `eos_id`, so nothing may tell padding by it.
      bos_id: begins a plain sequence; None where the policy expects no such token, even if the
        vocabulary has one.
      special_tokens: the texts that a chat template knows by name, such as `bos_token`.
      chat_template: in Jinja, None for a policy that knows no chat.
      rows: of the embedding that its ids are looked up in, None where that is not known. A special token
        may have none, and what it is in is not for that policy; see `for_embedding`.
    """

    name: str
    tokenizer: Tokenizer
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True  # or a review that says "</s>" would end there

    @functools.cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that stand for no text."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        return frozenset(i for i, token in added if token.special)

    @functools.cached_property
    def sha256(self) -> str:
        """The content hash of all that decides the ids: part of the key of what is made of them."""
        return cache.content_hash(
            {
                "tokenizer": self.tokenizer.to_str(),
                "ids": (self.bos_id, self.eos_id, self.pad_id),
                "special_tokens": dict(self.special_tokens),
                "chat_template": self.chat_template,
            }
        )

    @functools.cached_property
    def _markup(self) -> Tokenizer:
        copy = Tokenizer.from_str(self.tokenizer.to_str())  # the property below is the object's, not a call's
        copy.encode_special_tokens = False
        return copy

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """The ids of a text, without any that begins or ends it.

        Args:
          text: plain text, or with `markup` one that a template wrote, in which special tokens are meant.
          markup: whether special tokens in the text stand for themselves.
        """
        chosen = self._markup if markup else self.tokenizer
        return chosen.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, markup: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        chosen = self._markup if markup else self.tokenizer
        return [encoding.ids for encoding in chosen.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, markup: bool = False) -> str:
        """The text of some ids, special tokens left out unless `markup`; bytes not UTF-8 become U+FFFD."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not markup)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        """`decode` of each row."""
        return self.tokenizer.decode_batch([[int(i) for i in row] for row in rows], skip_special_tokens=True)

    def spelt_out(self, text: str) -> str | None:
        """The first special token that a text spells out, which markup would take for the token itself."""
        return next((token for token in self._special_texts if token in text), None)

    @functools.cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def without_row(self, ids: Iterable[int]) -> str | None:
        """The first token of these that the policy's embedding has no row for."""
        if self.rows is None:
            return None
        return next((self.tokenizer.id_to_token(i) for i in ids if i >= self.rows), None)

    def for_embedding(self, rows: int) -> TextTokenizer:
        """The tokenizer for a policy whose embedding has so many rows.

        An embedding may have spare rows, up to a tenth: they are often rounded up. It may lack those of
        special tokens that text is not made of.

        Args:
          rows: of the policy's embedding, `config.vocab_size`.

        Raises:
          UserError: the embedding is not this tokenizer's: an id has no row, or the rows are far too many.
        """
        ids = {*of_text(self.tokenizer).values(), self.bos_id or 0, self.eos_id, self.pad_id}
        if max(ids) >= rows:
            problem = f"its ids go up to {max(ids)}"
        elif rows > 1.1 * self.size + 512:
            problem = f"it has no more than {self.size} ids"
        else:
            return replace(self, rows=rows)
        raise UserError(
            f"The tokenizer {self.name} does not belong to this policy: {problem}, and the policy's "
            f"embedding has {rows} rows. Give the tokenizer that the policy was trained with."
        )
