"""Which ids a text can come to: what an embedding must have rows for."""

from __future__ import annotations

from tokenizers import Tokenizer

__all__ = ["of_text"]


def of_text(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens that text is made of, and those that the tokenizer puts around it, by their ids.

    Without special tokens beside the vocabulary: they stand for no text, and a policy may lack them, as
    Gemma 3's of text lack the one for an image, whose id is one more than their embeddings have.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder()
    around = {number: added[number].content for number in tokenizer.encode("").ids if number in added}
    named = {number: token.content for number, token in added.items() if not token.special}
    return vocabulary | {token: number for number, token in (named | around).items()}
