"""Runs TRL's own `DPOTrainer` on fixed log-probabilities and writes `trl_golden.json`.

    pip install torch==2.13.0 && pip install trl==1.16.0     (a virtual environment of its own)
    python tests/objectives/trl_golden.py                    (rewrites the golden file)

The trainer is built as a user builds it, with a `DPOConfig` and a tiny random model; then its
`_compute_loss` is called with a model that returns prescribed per-token log-probabilities, in
float64, in the place where TRL's fused head returns its own. What is recorded is TRL's mean loss
and its gradient with respect to each completion's summed log-probability.

`CASES` is the mapping between TRL's names and ours. Two things differ by name:
* TRL's `sigmoid` ignores `label_smoothing`; ours applies it. So every TRL `sigmoid` is `dpo` without.
* TRL's `ipo` divides log-ratios by token counts; that is `ipo_avg` here (`ipo` is summed).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE / "trl_golden.json"

BETAS = (0.01, 0.05, 0.1, 0.5)

# Pairs with log-ratio margins 0.25, 3, -2.3714, 1.44012, 30, -25, 12, -0.75.
POLICY_CHOSEN = [-40.0, -55.5, -61.0, -33.0, -70.25, -90.0, -48.0, -52.25]
POLICY_REJECTED = [-42.0, -58.0, -60.0, -36.5, -95.0, -66.0, -59.5, -51.0]
REFERENCE_CHOSEN = [-41.0, -57.0, -60.5, -34.0, -80.0, -78.0, -50.0, -52.0]
MARGINS = [0.25, 3.0, -2.3714, 1.44012, 30.0, -25.0, 12.0, -0.75]
CHOSEN_LENGTHS = [12, 20, 17, 9, 31, 40, 14, 22]
REJECTED_LENGTHS = [15, 18, 25, 11, 36, 28, 21, 16]

_PAIRS = list(zip(POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, MARGINS, strict=True))
INPUTS = {
    "golden rows": {
        "policy_chosen": POLICY_CHOSEN,
        "policy_rejected": POLICY_REJECTED,
        "reference_chosen": REFERENCE_CHOSEN,
        "reference_rejected": [pr - ((pc - rc) - margin) for pc, pr, rc, margin in _PAIRS],
        "chosen_length": CHOSEN_LENGTHS,
        "rejected_length": REJECTED_LENGTHS,
    },
    "step 0": {  # the policy is the reference
        "policy_chosen": POLICY_CHOSEN,
        "policy_rejected": POLICY_REJECTED,
        "reference_chosen": POLICY_CHOSEN,
        "reference_rejected": POLICY_REJECTED,
        "chosen_length": CHOSEN_LENGTHS,
        "rejected_length": REJECTED_LENGTHS,
    },
}

# (TRL's loss_type, its other settings, our name, our settings)
CASES = [
    ("sigmoid", {}, "dpo", {}),
    ("sigmoid", {"label_smoothing": 0.2}, "dpo", {}),
    ("hinge", {}, "slic", {}),
    ("ipo", {}, "ipo_avg", {}),
    ("exo_pair", {"label_smoothing": 0.001}, "exo_pair", {}),
    ("exo_pair", {"label_smoothing": 0.1}, "exo_pair", {"label_smoothing": 0.1}),
    ("nca_pair", {}, "nca_pair", {}),
    ("robust", {"label_smoothing": 0.1}, "robust", {}),
    ("robust", {"label_smoothing": 0.3}, "robust", {"label_smoothing": 0.3}),
    ("bco_pair", {}, "bco_pair", {}),
    ("sppo_hard", {}, "sppo_hard", {}),
    ("aot", {}, "aot", {}),
    ("aot", {"label_smoothing": 0.2}, "aot", {"label_smoothing": 0.2}),
    ("aot_unpaired", {}, "aot_unpaired", {}),
    ("aot_unpaired", {"label_smoothing": 0.2}, "aot_unpaired", {"label_smoothing": 0.2}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {}, "discopop", {}),
    ("discopop", {"discopop_tau": 0.5}, "discopop", {"tau": 0.5}),
    ("sft", {}, "sft", {}),
    ("sigmoid_norm", {}, "sigmoid_norm", {}),
]


def _trainer_of(directory: str):
    """A function from settings of `DPOConfig` to a real `DPOTrainer` on a tiny random model."""
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    pairs = Dataset.from_dict({"prompt": ["a"], "chosen": ["a"], "rejected": ["b"]})

    def trainer(**settings) -> DPOTrainer:
        config = GPT2Config(vocab_size=4, n_positions=8, n_embd=4, n_layer=1, n_head=1)
        return DPOTrainer(
            model=GPT2LMHeadModel(config),
            args=DPOConfig(
                output_dir=directory,
                use_cpu=True,
                bf16=False,
                report_to="none",
                precompute_ref_log_probs=True,
                disable_tqdm=True,
                **settings,
            ),
            processing_class=tokenizer,
            train_dataset=pairs,
        )

    return trainer


class _Prescribed:
    """Stands where the policy stands in `_compute_loss`, and returns what a fused head returns.

    Every token of a completion has the same log-probability, so that they sum to `logps`.
    """

    training = False

    def __init__(self, logps, mask):
        self.logps = logps
        self.mask = mask

    def __call__(self, **_):
        from types import SimpleNamespace

        import torch

        spread = self.logps / self.mask.sum(1)
        zeros = torch.zeros_like(self.mask)
        return SimpleNamespace(
            log_probs=spread[:, None] * self.mask,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


def _run(trainer, rows) -> dict:
    import torch

    lengths = torch.tensor(rows["chosen_length"] + rows["rejected_length"])
    width = 1 + int(lengths.max())  # one prompt token, then the completion
    position = torch.arange(width)
    mask = ((position >= 1) & (position <= lengths[:, None])).long()
    logps = torch.tensor(
        rows["policy_chosen"] + rows["policy_rejected"], dtype=torch.float64, requires_grad=True
    )
    inputs = {
        "input_ids": torch.full_like(mask, 2),
        "attention_mask": (position <= lengths[:, None]).long(),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(rows["reference_chosen"], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor(rows["reference_rejected"], dtype=torch.float64),
    }
    loss = trainer._compute_loss(_Prescribed(logps, mask[:, 1:].double()), inputs, False)
    (gradient,) = torch.autograd.grad(loss, logps)
    chosen, rejected = gradient.chunk(2)
    return {"loss": loss.item(), "chosen": chosen.tolist(), "rejected": rejected.tolist()}


def compute() -> dict:
    """TRL's results for every case, beta and set of rows, with the versions that gave them."""
    import torch
    import transformers
    import trl

    results = []
    with tempfile.TemporaryDirectory() as directory:
        trainer_of = _trainer_of(directory)
        for loss_type, trl_settings, name, settings in CASES:
            for beta in BETAS:
                trainer = trainer_of(loss_type=loss_type, beta=beta, **trl_settings)
                for rows in INPUTS:
                    results.append(
                        {
                            "loss_type": loss_type,
                            "trl_settings": trl_settings,
                            "name": name,
                            "settings": settings,
                            "beta": beta,
                            "rows": rows,
                            **_run(trainer, INPUTS[rows]),
                        }
                    )
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    return {"versions": versions, "inputs": INPUTS, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=GOLDEN, help="where to write (default: the golden file)"
    )
    output = parser.parse_args().output
    golden = compute()
    lines = ",\n  ".join(json.dumps(result) for result in golden.pop("results"))
    head = json.dumps(golden, indent=1).removesuffix("\n}")
    output.write_text(f'{head},\n "results": [\n  {lines}\n ]\n}}\n')
    print(f"{output}: {len(CASES) * len(BETAS) * len(INPUTS)} results, {golden['versions']}")


if __name__ == "__main__":
    main()
