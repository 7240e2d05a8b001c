"""What a task and its policy are made of: the part of `discojax.config` that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from discojax.errors import UserError
from discojax.settings import Range

__all__ = ["Count", "Lora", "Natural", "Policy", "Positive", "Sft", "Task", "TaskName"]

Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
TaskName = Literal["rotten_tomatoes", "imdb", "tldr", "preferences"]


@dataclass(frozen=True)
class Lora:
    """Adapters of this `rank` on the layers that `targets` name; rank 0 trains all weights."""

    rank: Natural = 16
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("query", "value")


@dataclass(frozen=True)
class Policy:
    """What is trained: a small decoder that is made here, or a `pretrained` policy.

    Of the small one `width` is the model dimension and `max_length` in tokens; the supervised training
    of `sft` makes it. `pretrained` is a folder, a GGUF file, an id on the hub or `smollm2`, and takes
    the place of all that; `revision` is a branch, tag or commit on the hub, `tokenizer` where its own
    is, if elsewhere. `remat` says what of a policy's activations is computed twice instead of kept, and
    `attention` by what attention is computed (`auto`: as JAX chooses; `cudnn`: an NVIDIA GPU, bfloat16).
    With `lora.rank` lanes train adapters over one base.
    """

    layers: Count = 3
    width: Count = 128
    heads: Count = 4
    vocab_size: Count = 4096
    max_length: Count = 32
    pretrained: str | None = None
    revision: str = ""
    tokenizer: str = ""
    remat: Literal["none", "dots", "block"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    lora: Lora = Lora(rank=0)

    def __post_init__(self) -> None:
        if self.revision and self.pretrained is None:
            raise UserError("policy.revision is of a policy on the hub: set policy.pretrained to its id too.")
        if self.width % self.heads:
            raise UserError(
                f"policy.width ({self.width}) must be a multiple of policy.heads ({self.heads}): "
                "each head takes an equal share of it."
            )


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning, which makes the policy that every lane starts from.

    `matrix_learning_rate` is Muon's, for matrices; `learning_rate` AdamW's, for the rest.
    """

    steps: Count = 700
    batch: Count = 32
    learning_rate: Positive = 4e-3
    matrix_learning_rate: Positive = 2e-2


@dataclass(frozen=True)
class Task:
    """What the policies are trained to do, and the preference pairs that there are for it.

    `name` is the task of the search and `held_out` the one of the report. Prompts have up to
    `prompt_tokens` tokens. Completions are drawn at `temperature`, from the `top_k` likeliest tokens (0:
    from all) and of these from the fewest that have `top_p` of their probability. Each of `pairs` prompts
    is given `completions`, of which the two furthest apart in reward make a pair, labelled by Bradley and
    Terry's model at `label_temperature`. `seed` is that of all this data, which runs of different seeds
    share.

    The task `preferences` has at most `pairs` pairs from `data`: a `.jsonl` or `.parquet` file, a folder
    of such, `hf:OWNER/NAME` or `tfds:NAME`, and of that the `split`, with these `columns` (where the
    second holds a number it is the place of the chosen one in the list that the third holds). It is
    measured on `prompts`, such a source with columns for the prompt and for what a person wrote (or
    ""); with `openings` only 2 to `prompt_tokens` tokens of each are a prompt. Without them it is
    measured on the data's own prompts, the share `held_out_prompts` of them, and then trains on the
    others. Every prompt ends with `marker`, and `style` says how it is written. `reward` is what a
    search is scored by, `evaluation.reward` what reports: MODULE:FUNCTION, a classifier, `rouge` (with
    what people wrote), or judge:SERVER:MODEL.
    """

    name: TaskName = "rotten_tomatoes"
    held_out: TaskName = "imdb"
    prompt_tokens: Annotated[int, Range(least=2)] = 6
    completion_tokens: Count = 16
    pairs: Count = 2000
    completions: Annotated[int, Range(least=2)] = 4
    temperature: Positive = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    label_temperature: Positive = 0.25
    seed: Natural = 0
    data: str = ""
    split: str = "train"
    columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")
    prompts: str = ""
    prompts_split: str = "test"
    prompts_columns: tuple[str, str] = ("prompt", "")
    openings: bool = False
    held_out_prompts: Annotated[float, Range(above=0, most=0.9)] = 0.3
    marker: str = ""
    style: Literal["auto", "plain", "chat"] = "auto"
    reward: str = ""
