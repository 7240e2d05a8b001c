"""The peers: PyTorch, TRL and Transformers, in a process of their own that works when it is told to.

Run by `benchmarks.peers`, with a Python that has torch, transformers and trl. It reads one JSON
object a line and answers each with one: `{"do": "build", ...}` prepares a subject, `{"do": NAME,
"times": n}` runs it and answers with the seconds it took. The GPU is used where there is one.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def model(shape: dict[str, Any]) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape["vocab_size"], n_positions=shape["max_length"], n_embd=shape["width"],
        n_layer=shape["layers"], n_head=shape["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(DEVICE)


def plain(shape: dict[str, Any], data: dict[str, Any]) -> Callable[[int], Any]:
    """DPO as one would write it in eager PyTorch: logits of completion tokens only, fused AdamW off."""
    policy = model(shape).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, weight_decay=0.0)
    ids = torch.tensor(data["ids"], device=DEVICE)  # [batches, 2 * pairs, time]: chosen, then rejected
    reference = torch.tensor(data["reference"], dtype=torch.float32, device=DEVICE)
    prompt = data["prompt"]
    place = 0

    def steps(times: int) -> list[float]:
        nonlocal place
        losses = []
        for _ in range(times):
            batch, known = ids[place % len(ids)], reference[place % len(ids)]
            place += 1
            hidden = policy.transformer(input_ids=batch[:, :-1]).last_hidden_state[:, prompt - 1 :]
            logps = torch.log_softmax(policy.lm_head(hidden), -1)
            summed = logps.gather(-1, batch[:, prompt:, None]).squeeze(-1).sum(-1)
            chosen, rejected = (summed - known).chunk(2)
            loss = torch.nn.functional.softplus(-0.1 * (chosen - rejected)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
        wait()
        return [float(loss) for loss in losses]

    return steps


class Gate(TrainerCallback):
    """Lets a trainer that runs in a thread of its own take one step at a time."""

    def __init__(self) -> None:
        self.go: queue.Queue[None] = queue.Queue()
        self.ready: queue.Queue[None] = queue.Queue()

    def on_step_begin(self, args, state, control, **kwargs):
        wait()
        self.ready.put(None)
        self.go.get()


def trl(
    shape: dict[str, Any], data: dict[str, Any], *, gradient_checkpointing: bool = False
) -> Callable[[int], Any]:
    """TRL's DPOTrainer, its reference log-probabilities precomputed, on the same tokens."""
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    transformers.utils.logging.set_verbosity_error()
    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )

    def text(row: list[int]) -> str:
        return " ".join(f"w{i}" for i in row)

    prompt = data["prompt"]
    rows = []
    for batch in data["ids"]:
        pairs = len(batch) // 2
        for chosen, rejected in zip(batch[:pairs], batch[pairs:], strict=True):
            # TRL adds the end-of-sequence token itself: one word fewer gives the same length.
            rows.append({"prompt": text(chosen[:prompt]), "chosen": " " + text(chosen[prompt:-1]),
                         "rejected": " " + text(rejected[prompt:-1])})  # fmt: skip
    gate = Gate()
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=pairs, max_steps=10**6, learning_rate=1e-4,
        beta=0.1, precompute_ref_log_probs=True, max_length=shape["max_length"], report_to=[],
        logging_strategy="no", save_strategy="no", use_cpu=DEVICE == "cpu", bf16=False,
        gradient_checkpointing=gradient_checkpointing, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model(shape), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=wrapped, callbacks=[gate],
    )  # fmt: skip
    threading.Thread(target=trainer.train, daemon=True).start()
    gate.ready.get()

    def steps(times: int) -> None:
        """From one step's beginning to the next's: collating and bookkeeping are part of a step."""
        for _ in range(times):
            gate.go.put(None)
            gate.ready.get()

    return steps


def generate(shape: dict[str, Any], data: dict[str, Any]) -> Callable[[int], Any]:
    """Transformers' `generate` with its cache, for one policy: `lanes` of them are as many calls."""
    policy = model(shape).eval()
    ids = torch.tensor(data["prompts"], device=DEVICE)
    tokens = data["tokens"]

    def calls(times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                policy.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                    max_new_tokens=tokens, min_new_tokens=tokens,
                )  # fmt: skip
        wait()

    return calls


SUBJECTS = {
    "plain": plain,
    "trl": trl,
    "trl, as it comes": partial(trl, gradient_checkpointing=True),
    "generate": generate,
}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # trainers print
    built: dict[str, Callable[[int], Any]] = {}

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    import transformers

    answer(device=torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU", torch=torch.__version__,
           transformers=transformers.__version__, threads=torch.get_num_threads())  # fmt: skip
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "build":
            if "file" in order["data"]:
                with np.load(order["data"]["file"]) as file:
                    order["data"] = {k: v.tolist() for k, v in file.items()}
            built[order["name"]] = SUBJECTS[order["name"]](order["shape"], order["data"])
            answer(built=order["name"])
        else:
            begun = time.perf_counter()
            result = built[order["do"]](order["times"])
            answer(seconds=time.perf_counter() - begun, result=result)


if __name__ == "__main__":
    main()
