"""An exported trainer in TRL itself: ten steps beside `train --policy`, from the same directory and file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

pytest.importorskip("trl")

from discojax.config import Config
from discojax.data import hub_tokenizers, reviews
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.policies import pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.pretrained.architectures import policy_config
from discojax.population.order import batch_indices
from discojax.report.export import export
from discojax.search import finetune
from discojax.search.opening import given

pytestmark = [pytest.mark.parity, pytest.mark.slow]

STEPS, BATCH, BETA, RATE, DECAY, LENGTH = 10, 8, 0.3, 1e-3, 0.05, 64
MEASURED = ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")
EVERYTHING = """
def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta,
         chosen_lengths, rejected_lengths, progress):
    chosen = (policy_chosen_logps - reference_chosen_logps) / chosen_lengths
    rejected = (policy_rejected_logps - reference_rejected_logps) / rejected_lengths
    margin = 10.0 * beta * (chosen - rejected)
    uneven = jnp.square(margin - jnp.mean(margin))
    return jax.nn.softplus(-margin) + (0.5 - 0.4 * progress) * uneven
"""  # reads lengths, what is left of the training, and the batch as a whole
GPT2 = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": 304,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A small GPT-2 and its tokenizer as Transformers has them, and pairs of real sentences of any length."""
    root = tmp_path_factory.mktemp("home")
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:90]
    names = dict(zip(("pad_token", "bos_token", "eos_token"), byte_bpe.SPECIAL_TOKENS, strict=True))
    tokenizer = TextTokenizer("small", byte_bpe.train(texts, 304), 2, 0, None, names)
    assert tokenizer.size == GPT2["vocab_size"]
    policy = Decoder(policy_config(GPT2, "gpt2"), rngs=nnx.Rngs(0))
    pretrained.save(pretrained.Pretrained(policy, GPT2, Path("nowhere")), root / "gpt2")
    hub_tokenizers.save(tokenizer, root / "gpt2")
    rows = []
    for number, text in enumerate(texts):
        words = text.split()
        if len(words) > 6:
            cut = 3 + number % 3
            rows.append({"prompt": " ".join(words[:2]), "chosen": " " + " ".join(words[2:cut]),
                         "rejected": " " + " ".join(words[cut:7])})  # fmt: skip
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def ours(home: Path, folder: Path, objective: str) -> tuple[Path, list[float]]:
    """What `train --policy` makes of it: the directory it ends with, and the losses of its steps."""
    settings = dataclasses.replace(
        Config().finetune, policy=str(home / "gpt2"), data=str(home / "pairs.jsonl"), objective=objective,
        beta=BETA, learning_rate=RATE, steps=STEPS, batch=BATCH, micro_batch=BATCH, warmup=0.0,
        decay="constant", weight_decay=DECAY, dtype="float32", held_out=0.0, max_length=LENGTH,
        completion_tokens=LENGTH - 4, lora=dataclasses.replace(Config().finetune.lora, rank=0), style="plain",
    )  # fmt: skip
    run = dataclasses.replace(Config().run, directory=str(folder))
    tuned = finetune.finetune(dataclasses.replace(Config(), finetune=settings, run=run))
    rows = [json.loads(line) for line in (tuned.folder / "metrics.jsonl").read_text().splitlines()]
    return tuned.policy, [row["loss"] for row in rows if row["kind"] == "step"]


def exported(folder: Path, objective: str) -> type:
    """The trainer in the file that `export --to trl` writes."""
    (folder / "exported.py").write_text(export(given(objective).program, "trl"))
    spec = importlib.util.spec_from_file_location("exported", folder / "exported.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (trainer,) = (x for name, x in vars(module).items() if name.endswith("Trainer") and name != "DPOTrainer")
    return trainer


def theirs(home: Path, folder: Path, base: type, peft_config=None, **settings) -> tuple[Any, list[float]]:
    """What TRL's own loop makes of it with a trainer: that, when it has trained, and its steps' losses."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    losses: list[float] = []

    class Watched(base):
        def compute_loss(self, *arguments, **options):
            loss = super().compute_loss(*arguments, **options)
            losses.append(loss.item())
            return loss

    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    order = [
        batch_indices(np.int32(0), np.int32(step), pairs=len(rows), batch=BATCH).tolist()
        for step in range(STEPS)
    ]
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, max_steps=STEPS, beta=BETA,
        learning_rate=RATE, max_length=LENGTH, weight_decay=DECAY, max_grad_norm=1.0, adam_epsilon=1e-8,
        lr_scheduler_type="constant", warmup_steps=0, train_sampling_strategy="sequential", bf16=False,
        use_cpu=True, activation_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, per_device_eval_batch_size=BATCH, **settings,
    )  # fmt: skip
    torch.manual_seed(0)  # of adapters
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(home / "gpt2", dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list([rows[i] for batch in order for i in batch]),
        eval_dataset=Dataset.from_list(rows[:20]),
        processing_class=AutoTokenizer.from_pretrained(home / "gpt2"),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer, losses


@pytest.mark.parametrize("objective", ["dpo", "discopop", "loss.py"])
def test_ten_steps_of_trl_are_ten_of_ours(objective, home, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    if objective.endswith(".py"):
        objective = str(tmp_path / objective)
        Path(objective).write_text(EVERYTHING)
    directory, losses = ours(home, tmp_path, objective)
    trainer, expected = theirs(home, tmp_path, exported(tmp_path, objective))
    weights = {name: x.detach().numpy() for name, x in trainer.model.state_dict().items()}
    assert len(losses) == len(expected) == STEPS
    assert losses[-1] < losses[0] - 0.02, "it has learned something"
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)
    trained = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    assert trained.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(trained[name].numpy(), weight, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("kind", ["whole", "precomputed", "adapter"])
def test_dpo_is_trl_s_own_however_the_reference_is_had(kind, home, tmp_path):
    """Losses of the steps, and what an evaluation says, are those of TRL's DPO loss."""
    from peft import LoraConfig
    from trl import DPOTrainer

    options = {
        "whole": {},
        "precomputed": {"precompute_ref_log_probs": True},
        "adapter": {"peft_config": LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")},
    }[kind]
    found, expected = [], []
    for base, into in ((exported(tmp_path, "dpo"), found), (DPOTrainer, expected)):
        trainer, losses = theirs(home, tmp_path, base, **options)
        measured = trainer.evaluate()
        into += [*losses, *(measured[f"eval_{name}"] for name in ("loss", *MEASURED))]
    assert measured["eval_rewards/margins"] > 1e-3, "it has learned something"
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
