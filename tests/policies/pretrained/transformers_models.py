"""Small random models of Transformers in PyTorch, and what they compute.

Run by `test_parity.py` in a Python that has torch, which need not be that of discojax:

    python transformers_models.py make DIRECTORY    writes a directory for each model, and numbers
    python transformers_models.py read DIRECTORY    reads the models in DIRECTORY, writes their logits
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

BETA = 0.5
NEW_TOKENS = 32

COMMON = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
DECODERS = {
    "gpt2": (
        "GPT2",
        {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2},
    ),
    "llama-2": ("Llama", {**COMMON, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama-3": ("Llama", {**COMMON, "rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "llama-biased": (
        "Llama",
        {
            **COMMON,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "qwen2": (
        "Qwen2",
        {
            **COMMON,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3", {**COMMON, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {**COMMON, "head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            **COMMON,
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        {
            **COMMON,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
            },
        },
    ),
}
ENCODERS = {
    "roberta": (
        "Roberta",
        {**COMMON, "pad_token_id": 1, "type_vocab_size": 1, "num_labels": 2, "layer_norm_eps": 1e-5},
    ),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": 67,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "num_labels": 3,
        },
    ),
}
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def random_model(kind: str, settings: dict, head: str, seed: int):
    """A model whose every parameter is drawn, norms and biases too, so large that its choices differ."""
    config = getattr(transformers, f"{kind}Config")(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, CLASSES.get(kind, f"{kind}{head}"))(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * drawn)
            else:
                parameter.copy_(1.5 * drawn * parameter.shape[-1] ** -0.5)
    return model


def batch(seed: int) -> dict[str, np.ndarray]:
    """Rows of a prompt and a completion, padded on the right: chosen ones, then rejected ones."""
    rng = np.random.default_rng(seed)
    prompts = np.array([5, 1, 8, 3] * 2)
    completions = np.array([9, 12, 4, 7, 6, 10, 1, 11])
    ids = rng.integers(3, 67, (8, 20))
    ids[4:, :8] = np.where(np.arange(8) < prompts[:4, None], ids[:4, :8], ids[4:, :8])
    return {"ids": ids, "prompts": prompts, "completions": completions}


def to_the_left(rows: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows padded on the left with zeros, and their attention mask."""
    time = rows.shape[1]
    moved = np.stack([np.roll(row, time - n) for row, n in zip(rows, lengths, strict=True)])
    mask = np.arange(time) >= time - lengths[:, None]
    return torch.tensor(np.where(mask, moved, 0)), torch.tensor(mask.astype(np.int64))


def numbers(model) -> dict[str, np.ndarray]:
    data = batch(0)
    lengths = data["prompts"] + data["completions"]
    ids = torch.tensor(data["ids"])
    inside = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        right = model(input_ids=ids, attention_mask=inside.long()).logits

    left, mask = to_the_left(data["ids"], lengths)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=left, attention_mask=mask, position_ids=positions).logits
    each = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, left[:, 1:, None])[..., 0]
    time = ids.shape[1]
    completion = torch.arange(1, time) >= time - torch.tensor(data["completions"])[:, None]
    logps = (each * completion).sum(1)
    # As reference log-probabilities, numbers that depend on nothing.
    reference = torch.linspace(-40.0, -20.0, 8)
    ratios = logps - reference
    loss = -torch.nn.functional.logsigmoid(BETA * (ratios[:4] - ratios[4:])).mean()
    loss.backward()
    gradients = {f"gradient {name}": p.grad.numpy() for name, p in model.named_parameters()}

    prompt_ids, prompt_mask = to_the_left(data["ids"][:4, :8], data["prompts"][:4])
    model.generation_config.eos_token_id = None
    greedy = model.generate(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )[:, prompt_ids.shape[1] :]
    return {
        "logits": right.numpy(),
        "logps": logps.detach().numpy(),
        "loss": loss.detach().numpy(),
        "greedy": greedy.numpy(),
        "reference": reference.numpy(),
        **data,
        **gradients,
    }


def classified(model) -> dict[str, np.ndarray]:
    data = batch(1)
    lengths = data["prompts"] + data["completions"]
    mask = np.arange(data["ids"].shape[1]) < lengths[:, None]
    ids = np.where(mask, data["ids"], model.config.pad_token_id)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()).logits
    return {"logits": logits.numpy(), "ids": ids, "lengths": lengths}


def make(directory: Path) -> None:
    for seed, (name, (kind, settings)) in enumerate(DECODERS.items()):
        model = random_model(kind, settings, "ForCausalLM", seed)
        # Some of them in several files.
        limit = {"max_shard_size": "20KB"} if name.startswith("llama") else {}
        model.save_pretrained(directory / name, **limit)
        np.savez(directory / f"{name}.npz", **numbers(model))
        model.to(torch.bfloat16).save_pretrained(directory / f"{name}-bf16")
    for seed, (name, (kind, settings)) in enumerate(ENCODERS.items()):
        model = random_model(kind, settings, "ForSequenceClassification", seed)
        model.save_pretrained(directory / name)
        np.savez(directory / f"{name}.npz", **classified(model))
        model.to(torch.bfloat16).save_pretrained(directory / f"{name}-bf16")


def read(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        if not path.is_dir():
            continue
        decoder = path.name in DECODERS
        kind = (
            transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSequenceClassification
        )
        model, info = kind.from_pretrained(
            path, attn_implementation="eager", output_loading_info=True, dtype="auto"
        )
        wrong = {key: sorted(names) for key, names in info.items() if names}
        assert not wrong, f"{path.name}: {wrong}"
        data = batch(0 if decoder else 1)
        lengths = torch.tensor(data["prompts"] + data["completions"])
        mask = torch.arange(data["ids"].shape[1]) < lengths[:, None]
        ids = torch.tensor(data["ids"])
        if not decoder:
            ids = torch.where(mask, ids, model.config.pad_token_id)
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, attention_mask=mask.long()).logits
        np.savez(directory / f"{path.name}.npz", logits=logits.float().numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
