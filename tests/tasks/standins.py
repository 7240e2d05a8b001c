"""What the hub would have, small: policies and a classifier of random weights, data sets by TFDS."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import tensorflow_datasets as tfds
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from discojax.data import hub_tokenizers, reviews
from discojax.data.text_tokenizer import TextTokenizer
from discojax.policies import pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.encoder import Encoder
from discojax.policies.pretrained.architectures import policy_config

GPT2 = {
    "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 160,
    "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = {
    "model_type": "gemma", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 160,
    "tie_word_embeddings": True,
}  # fmt: skip
ROBERTA = {
    "model_type": "roberta", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
}  # fmt: skip
CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As zephyr-7b-gemma writes a chat."""


def texts(count: int = 400) -> tuple[str, ...]:
    """Real sentences."""
    return reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:count]


def _bpe(special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return made


def policy(folder: Path, config: dict[str, Any], *, chat: bool = False) -> Path:
    """A decoder's directory, as Transformers saves it."""
    if chat:
        names = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
        tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<|im_end|>"}
        tokenizer = TextTokenizer("chat", _bpe(names), 4, 0, 1, tokens, CHATML)
    else:
        tokenizer = TextTokenizer(
            "plain", _bpe(["<|endoftext|>"]), 0, 0, None, {"eos_token": "<|endoftext|>"}
        )
    config = config | {"vocab_size": tokenizer.size}
    made = Decoder(policy_config(config, folder.name), rngs=nnx.Rngs(0))
    graph, params = nnx.split(made)
    made = nnx.merge(graph, jax.tree.map(lambda x: 8 * x if x.shape[0] == tokenizer.size else x, params))
    pretrained.save(pretrained.Pretrained(made, config, Path("nowhere")), folder)
    hub_tokenizers.save(tokenizer, folder)
    return folder


def classifier(folder: Path) -> Path:
    """A RoBERTa's directory with its vocabulary and merges as the hub has them, and no tokenizer.json."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _bpe(special)
    config = ROBERTA | {"vocab_size": tokenizer.get_vocab_size()}
    made = Encoder(policy_config(config, folder.name), rngs=nnx.Rngs(1))
    pretrained.save(pretrained.Pretrained(made, config, Path("nowhere")), folder)
    tokenizer.model.save(str(folder))
    named = dict(
        zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True)
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", **named})
    )
    return folder


def tfds_folder(folder: Path, name: str, features: Any, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A data set as TFDS writes it, in array_record files."""

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def split_generators(self: Any, _: Any) -> Any:
        return {split: iter(enumerate(rows)) for split, rows in splits.items()}

    body = {
        "VERSION": tfds.core.Version("1.0.0"), "code_path": None, "_info": info,
        "_split_generators": split_generators, "_generate_examples": lambda self: iter(()),
    }  # fmt: skip
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)
    made = builder(data_dir=str(folder), file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        made.download_and_prepare()
    return Path(made.data_dir)
