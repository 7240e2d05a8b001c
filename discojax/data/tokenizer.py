"""A byte-level BPE tokenizer trained on the reviews, so that a small policy has a small vocabulary.

Text is lower-cased before it is encoded: Rotten Tomatoes sentences are lower-case to begin with,
IMDb reviews are not, and a vocabulary of 2,048 is too small to hold each word twice. So decoding
gives the text in lower case. Spacing is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from discojax.data import cache
from discojax.data.reviews import Reviews, fold
from discojax.errors import UserError

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "build",
    "decode",
    "encode",
    "encode_batch",
    "load",
    "train",
]

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
SMALLEST = len(SPECIAL_TOKENS) + 256  # every byte has a token, so nothing is unknown
VERSION = 1  # of this file's result: raise it when training changes


def train(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens; the same texts give the same one.

    Ids 0, 1 and 2 are `<pad>`, `<bos>` and `<eos>`. They stand for themselves in ids only: text
    that spells one out is encoded as text. If the texts are too few for that many merges the
    tokenizer has fewer tokens.

    Raises:
      UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"A vocabulary of {vocab_size} tokens is too small: it takes at least {SMALLEST}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _plain_text(tokenizer)


def load(path: Path | str) -> Tokenizer:
    """A saved tokenizer. Raises UserError if the file is none of ours."""
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the tokenizer {path}: {error.strerror}.") from error
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{path} is not a tokenizer.json: {error}.") from error
    if [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != [PAD, BOS, EOS]:
        raise UserError(f"{path} does not have {', '.join(SPECIAL_TOKENS)} as its tokens 0, 1 and 2.")
    return _plain_text(tokenizer)


def _plain_text(tokenizer: Tokenizer) -> Tokenizer:
    # Otherwise a review that says "<eos>" would end there. Not saved in tokenizer.json.
    tokenizer.encode_special_tokens = True
    return tokenizer


def build(reviews: Reviews, vocab_size: int = 2048, root: Path | str | None = None) -> Path:
    """The path of the cached `tokenizer.json` trained on the policy's fold of both sources.

    IMDb counts with the first 64 words of each review, since openings are what policies write, and
    the whole reviews would outnumber Rotten Tomatoes forty to one.
    """
    imdb, tomatoes = (fold(reviews, source, "policy") for source in ("imdb", "rotten_tomatoes"))
    texts = [*(" ".join(text.split()[:64]) for text in imdb.texts), *tomatoes.texts]
    inputs = {
        "texts": cache.content_hash(texts),
        "vocab_size": vocab_size,
        "version": VERSION,
        "tokenizers": tokenizers.__version__,
    }

    def make(directory: Path) -> None:
        text = train(texts, vocab_size).to_str(pretty=True)
        cache.write_bytes(directory / "tokenizer.json", text.encode())

    return cache.build("tokenizer", inputs, make, root) / "tokenizer.json"


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of some ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
