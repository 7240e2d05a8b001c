"""The tokenizer inside a GGUF file: byte-level BPE from the file's own vocabulary and merges.

Reading one takes seconds, since a file lists its tokens one by one, so the result is kept in the
cache by the file's content.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from discojax.data import cache
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError

__all__ = ["load"]

VERSION = 1
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of token

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_WORDS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(_LETTERS + r"|\p{N}{1,3}" + _REST),
    "qwen2": lambda: _split(_LETTERS + r"|\p{N}" + _REST),
}
"""How each kind of file splits text into words, by its `tokenizer.ggml.pre`."""


def load(path: Path, *, root: Path | str | None = None) -> TextTokenizer:
    """The tokenizer of a GGUF file, with its chat template.

    Raises:
      UserError: the file is no GGUF file, or its tokenizer is of a kind that is not supported.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is not a GGUF file.")
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    inputs = {"file": digest, "version": VERSION, "tokenizers": tokenizers.__version__}

    def make(directory: Path) -> None:
        made, about = _read(path)
        cache.write_bytes(directory / "tokenizer.json", made.to_str().encode())
        cache.write_json(directory / "about.json", about)

    entry = cache.build("gguf-tokenizer", inputs, make, root)
    about = json.loads((entry / "about.json").read_text(encoding="utf-8"))
    made = Tokenizer.from_file(str(entry / "tokenizer.json"))
    return TextTokenizer(str(path), made, **about)


def _read(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError("Reading a GGUF file takes the package gguf: run `pip install gguf`.") from None
    try:
        fields = GGUFReader(path).fields
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise UserError(f"{path} is not a GGUF file that can be read: {error}.") from error

    def field(name: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.{name}")
        return default if found is None else found.contents()

    kind, words = field("ggml.model"), field("ggml.pre", "gpt-2")
    if kind != "gpt2" or words not in _WORDS:
        raise UserError(
            f"The tokenizer in {path} is of the kind {kind!r}, {words!r}; byte-level BPE with "
            f"one of {', '.join(_WORDS)} is supported. Give a directory with the model's tokenizer.json."
        )
    tokens, types = field("ggml.tokens"), field("ggml.token_type", [])
    merges = [tuple(merge.split(" ", 1)) for merge in field("ggml.merges", [])]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = _WORDS[words]()
    made.decoder = decoders.ByteLevel()
    for number, token in zip(types, tokens, strict=False):
        if number in (_CONTROL, _USER_DEFINED):
            special = number == _CONTROL
            made.add_tokens([AddedToken(token, special=special, normalized=False)])
    numbers = {name: field(f"ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    eos = numbers["eos"]
    if eos is None:
        raise UserError(f"{path} says no eos_token_id, so no completion could end.")
    # Files that do not say so are of policies that begin with one, if they have one.
    begins = numbers["bos"] is not None and field("ggml.add_bos_token", True)
    pad = eos if numbers["padding"] is None else numbers["padding"]
    named = {"bos_token": numbers["bos"], "eos_token": eos, "pad_token": pad}
    about = {
        "eos_id": int(eos),
        "pad_id": int(pad),
        "bos_id": int(numbers["bos"]) if begins else None,
        "special_tokens": {name: tokens[i] for name, i in named.items() if i is not None},
        "chat_template": field("chat_template"),
    }
    return made, about
