"""Small random models of Transformers in PyTorch, and what they compute.

Run by `test_parity.py` in a Python that has torch, which need not be that of discojax:

    python transformers_models.py make DIRECTORY    writes a directory for each model, and numbers
    python transformers_models.py read DIRECTORY    reads the models in DIRECTORY, writes their logits
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

BETA = 0.5
NEW_TOKENS = 32

CONFIGS = json.loads((Path(__file__).parent / "small_models.json").read_text())
ENCODERS = ("roberta", "distilbert")


def kind_of(name: str):
    if name in ENCODERS:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM


def random_model(name: str, seed: int):
    """A model whose every parameter is drawn, norms and biases too, so large that its choices differ."""
    settings = dict(CONFIGS[name])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = kind_of(name).from_config(config, attn_implementation="eager").eval()
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


def right_padded(model) -> dict[str, np.ndarray]:
    data = batch(0)
    lengths = data["prompts"] + data["completions"]
    mask = np.arange(data["ids"].shape[1]) < lengths[:, None]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(data["ids"]), attention_mask=torch.tensor(mask).long()).logits
    return {"logits": logits.numpy()}


def numbers(model) -> dict[str, np.ndarray]:
    data = batch(0)
    lengths = data["prompts"] + data["completions"]
    left, mask = to_the_left(data["ids"], lengths)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=left, attention_mask=mask, position_ids=positions).logits
    each = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, left[:, 1:, None])[..., 0]
    time = left.shape[1]
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
        **right_padded(model),
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
    for seed, name in enumerate(CONFIGS):
        model = random_model(name, seed)
        # Some of them in several files.
        model.save_pretrained(directory / name, max_shard_size="20KB" if "llama" in name else "1GB")
        computed = classified(model) if name in ENCODERS else numbers(model)
        np.savez(directory / f"{name}.npz", **computed)
        model.to(torch.bfloat16).save_pretrained(directory / f"{name}-bf16")


def read(directory: Path) -> None:
    for path in sorted(path for path in directory.iterdir() if path.is_dir()):
        model, info = kind_of(path.name).from_pretrained(
            path, attn_implementation="eager", output_loading_info=True, dtype="auto"
        )
        wrong = {key: sorted(names) for key, names in info.items() if names}
        assert not wrong, f"{path.name}: {wrong}"
        inputs = classified if path.name in ENCODERS else right_padded
        np.savez(directory / f"{path.name}.npz", logits=inputs(model.eval())["logits"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    {"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
