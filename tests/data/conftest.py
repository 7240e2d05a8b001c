"""Every kind of tokenizer that a policy may have: two come with packages, three are trained here."""

from __future__ import annotations

import functools
import importlib.util

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Lowercase

from discojax.data import hub_tokenizers, reviews
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer

KINDS = ("ours", "gpt2", "smollm2", "unigram", "wordpiece")

LLAMA_2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('No system turn.') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2 and Mistral write a chat: the beginning is the template's own, a reply is trimmed."""


@functools.cache
def texts() -> tuple[str, ...]:
    return reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts


def _unigram() -> TextTokenizer:
    """As SentencePiece makes them for Llama: a space before every text, and `<s>` before every sequence."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    names = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        texts()[:1500],
        trainers.UnigramTrainer(
            vocab_size=700, special_tokens=names, unk_token="<unk>", initial_alphabet=list("[]\n"),
            show_progress=False,
        ),
    )  # fmt: skip
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return TextTokenizer("unigram", made, 2, 2, 1, tokens, LLAMA_2)


def _wordpiece() -> TextTokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = [AddedToken(name, special=True) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    made.train_from_iterator(
        texts()[:1500], trainers.WordPieceTrainer(vocab_size=700, special_tokens=names, show_progress=False)
    )
    return TextTokenizer("wordpiece", made, 3, 0, 2)


@functools.cache
def _tokenizer_of(kind: str) -> TextTokenizer:
    """A tokenizer of each of `KINDS`; skips where its package is not installed."""
    if kind == "ours":
        names = dict(zip(("pad_token", "bos_token", "eos_token"), byte_bpe.SPECIAL_TOKENS, strict=True))
        made = byte_bpe.train(texts(), 600)
        return TextTokenizer(kind, made, byte_bpe.EOS, byte_bpe.PAD, byte_bpe.BOS, names)
    if kind in hub_tokenizers.PACKAGED:
        package, _ = hub_tokenizers.PACKAGED[kind]
        if importlib.util.find_spec(package) is None or (
            kind == "smollm2" and importlib.util.find_spec("gguf") is None
        ):
            pytest.skip(f"{package} is not installed")
        return hub_tokenizers.load(kind)
    return _unigram() if kind == "unigram" else _wordpiece()


@pytest.fixture(scope="session")
def tokenizer_of():
    """`tokenizer_of(kind)`: see `_tokenizer_of`."""
    return _tokenizer_of


@pytest.fixture(params=KINDS)
def tokenizer(request) -> TextTokenizer:
    return _tokenizer_of(request.param)
