"""Small policies as directories that Transformers loads, and pairs to train them on."""

from __future__ import annotations

import json
from pathlib import Path

import jax
from flax import nnx

from discojax.data import hub_tokenizers, reviews
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.policies import pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.pretrained.architectures import policy_config

__all__ = ["make"]

SMALL = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32,
        "tie_word_embeddings": True,
    },
    "llama": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make(root: Path) -> Path:
    """Puts two small policies there, as directories of Transformers, and pairs of real sentences."""
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:120]
    names = dict(zip(("pad_token", "bos_token", "eos_token"), byte_bpe.SPECIAL_TOKENS, strict=True))
    tokenizer = TextTokenizer("small", byte_bpe.train(texts, 300), 2, 0, 1, names, CHAT)
    for name, config in SMALL.items():
        config = config | {"vocab_size": tokenizer.size}
        policy = Decoder(policy_config(config, name), rngs=nnx.Rngs(0))
        graph, params = nnx.split(policy)
        policy = nnx.merge(graph, jax.tree.map(lambda x: 8 * x if len(x) == tokenizer.size else x, params))
        pretrained.save(pretrained.Pretrained(policy, config, Path("nowhere")), root / name)
        hub_tokenizers.save(tokenizer, root / name)
    rows, chats = [], []
    for text in texts:
        words = text.split()
        if len(words) > 8:
            rows.append({"prompt": " ".join(words[:2]), "chosen": " " + " ".join(words[2:5]),
                         "rejected": " " + " ".join(words[5:8])})  # fmt: skip
            question = {"role": "user", "content": rows[-1]["prompt"]}
            replies = ({"role": "assistant", "content": rows[-1][side]} for side in ("chosen", "rejected"))
            chats.append(
                dict(zip(("chosen", "rejected"), ([question, reply] for reply in replies), strict=True))
            )
    for file, content in (("pairs.jsonl", [{"prompt": "no more"}, *rows]), ("chats.jsonl", chats)):
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in content))
    return root
