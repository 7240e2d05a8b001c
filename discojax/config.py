"""What a run is made of: everything a user may set, as frozen dataclasses.

`load` reads them from YAML and from `key.sub=value` overrides (`discojax.settings` says how);
`dump` writes them back. Every setting has a default, and the defaults are the quickstart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from discojax.errors import UserError
from discojax.places import is_remote, working_folder
from discojax.settings import Range, dump, find, parse
from discojax.task_settings import Count, Lora, Natural, Policy, Positive, Sft, Task, TaskName

__all__ = [
    "Budget",
    "Checkpoint",
    "Config",
    "Evaluation",
    "Finetune",
    "Lora",
    "Mesh",
    "Policy",
    "Population",
    "Proposer",
    "Run",
    "Search",
    "Sft",
    "Task",
    "TaskName",
    "Transfer",
    "dump",
    "find",
    "load",
]

Share = Annotated[float, Range(above=0, most=1)]
# Every round has training seeds of its own (`search.rungs`): so many at most, or two would share some.
Seeds = Annotated[int, Range(least=1, most=100)]


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; `lane: 0` takes all that the others leave."""

    lane: Natural = 0
    data: Count = 1
    model: Count = 1


@dataclass(frozen=True)
class Population:
    """The lanes that train at once; `batch` is one lane's, in pairs.

    A lane takes up to `chunk` steps in one call to the device. `implementation` lays lanes over a
    device one after another (`map`) or all at once (`vmap`); `auto` takes what suits the backend.
    Policies compute in `dtype`; weights, losses and optimisers are float32 in either case. A batch
    is taken in `accumulate` parts, of which only one's activations are in memory at a time.
    """

    lanes: Count = 16
    batch: Count = 16
    accumulate: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    chunk: Count = 8
    learning_rate: Positive = 2e-3
    implementation: Literal["auto", "vmap", "map"] = "auto"
    mesh: Mesh = Mesh()


@dataclass(frozen=True)
class Search:
    """The outer loop.

    The `library` losses, and then `candidates` accepted ones proposed in `generations`, are trained at
    each of `betas`. The library and every generation are brackets of their own. A rung is (seeds, steps,
    keep): in the first all of a bracket are trained, and the best `keep` of it enter each later one, on
    fresh seeds. The best of all brackets go through `elites`, a rung more on fresh seeds and prompts,
    before any is believed. A generation is proposed while the `lag` generations before it train, from
    what is known of the others. `controls` are searched besides, each at the same budget: do evolution
    and a model's memory of what was measured help?
    """

    proposer: Literal[
        "evolution", "random_mutation", "gemini", "gemini-legacy", "openai", "replay", "file"
    ] = "evolution"
    candidates: Natural = 16
    generations: Count = 4
    betas: tuple[Positive, ...] = (0.1, 0.5)
    library: tuple[str, ...] = (
        "dpo", "ipo", "slic", "discopop", "exp", "robust", "kto_pair", "simpo",
        "apo_zero", "cell", "dbaql", "aqfl",
    )  # fmt: skip
    rungs: tuple[tuple[Seeds, Count, Count], ...] = ((1, 20, 64), (1, 40, 2))
    elites: tuple[Seeds, Count, Count] = (2, 40, 4)
    lag: Natural = 1
    controls: tuple[Literal["random_mutation", "best_of_n", "tuned_baselines"], ...] = ()

    def __post_init__(self) -> None:
        if not self.betas or not self.rungs:
            raise UserError("search.betas and search.rungs must each have at least one entry.")
        if len(self.rungs) > 9:
            raise UserError(
                f"search.rungs has {len(self.rungs)} entries, and 9 have seeds of their own: remove some."
            )


@dataclass(frozen=True)
class Proposer:
    """What `search.proposer` needs, where it is a language model (`gemini`, `openai`), `replay` or `file`.

    `models` are the server's own names (several share the requests by what they gain), `base_url` is for
    another server than the usual one, and `key_variable` names the environment variable with its key.
    `api_version` is Gemini's. Without `history` a proposer does not learn what became of its proposals:
    best-of-N. A request is for up to `candidates`, of a prompt of at most `prompt_tokens` and a reply of
    `output_tokens`; it is sent up to `attempts` times, `timeout` seconds each, and a run ends after
    `failures` failed ones in a row. Up to `concurrency` requests are under way at once, none of them told
    what the others will bring. `thinking` is a number of tokens, or a level as the server knows it; `price`
    is dollars for a million tokens, in and out, if `prices.yaml` lacks them. `path` is the folder of `file`,
    or the run, archive or transcript that `replay` repeats.
    """

    models: tuple[str, ...] = ()
    base_url: str = ""
    key_variable: str = ""
    api_version: Literal["v1beta", "v1"] = "v1beta"
    history: bool = True
    candidates: Annotated[int, Range(least=1, most=16)] = 4
    concurrency: Annotated[int, Range(least=1, most=64)] = 1
    temperature: Annotated[float, Range(least=0, most=2)] = 1.0
    thinking: int | str | None = None
    prompt_tokens: Annotated[int, Range(least=6000)] = 12_000
    output_tokens: Annotated[int, Range(least=256)] = 16_384
    timeout: Positive = 180.0
    attempts: Count = 6
    failures: Count = 5
    price: tuple[Annotated[float, Range(least=0)], ...] = ()
    path: str = ""

    def __post_init__(self) -> None:
        if self.base_url:
            _check_address(self.base_url)
        if len(self.price) not in (0, 2, 3):
            raise UserError(
                "proposer.price takes dollars for a million tokens in and out, such as [0.5, 3], and as a "
                "third number, where they are less, those for tokens in that the server had kept."
            )


@dataclass(frozen=True)
class Budget:
    """What a run may use up, in all its sessions: null is no limit. `candidates` counts every proposal.

    A budget may be raised when a run is resumed; it changes nothing of what was found.
    """

    dollars: Positive | None = None
    tokens: Count | None = None
    candidates: Count | None = None
    minutes: Positive | None = None


@dataclass(frozen=True)
class Evaluation:
    """How contenders are measured, and the held-out evaluation of the `finalists` and `baselines`.

    `search_prompts` are sampled for a lane of the search, `prompts` for one of the held-out
    evaluation, which trains afresh at `seeds` seeds for `steps` steps. The score is the area under the
    reward-KL frontier up to `kl_budget`, in nats a completion; intervals, from `bootstrap` replicates,
    are at `confidence`.

    `evaluate` measures `objectives`, each at the one of `learning_rates` that was best for it on other
    prompts (null: population.learning_rate and half of it; none: that alone), and preference accuracy on
    `held_out_pairs`. `judge` compares completions with a person's and with the supervised policy's:
    `proxy`, a reward model, or a language model as SERVER:MODEL, such as `gemini:gemini-3.5-flash`;
    `judged` prompts are shown to it. `reward` scores in place of the task's own: MODULE:FUNCTION,
    `score(prompts, completions) -> [n]`, or a classifier's folder or hub id.
    """

    finalists: Natural = 3
    baselines: tuple[str, ...] = ("dpo", "ipo", "slic", "discopop")
    objectives: tuple[str, ...] = (
        "dpo", "slic", "kto_pair", "dbaql", "padll", "aqfl", "cell", "discopop", "pfl",
    )  # fmt: skip
    learning_rates: tuple[Positive, ...] | None = None
    held_out_pairs: Natural = 200
    judge: str = "proxy"
    judged: Annotated[int, Range(least=2)] = 128
    reward: str = ""
    seeds: Annotated[int, Range(least=2, most=400)] = 3
    steps: Count = 40
    search_prompts: Annotated[int, Range(least=2)] = 128
    prompts: Annotated[int, Range(least=2)] = 256
    kl_budget: Positive = 10.0
    bootstrap: Count = 1000
    confidence: Share = 0.95


@dataclass(frozen=True)
class Finetune:
    """How `train --policy` trains one pretrained policy with one loss.

    `policy` and `data` are a directory or file, or an id on the hub; of `split` at most `pairs` are read
    (0 is all), and the share `held_out` of their prompts is not trained on. A null `learning_rate` is
    5e-7, as in the DiscoPOP paper, or for adapters 5e-6, as TRL's DPO script has it. `steps` replaces
    `epochs`. `revision` is the policy's branch, tag or commit on the hub, `attention` by what attention is
    computed (`auto`: as JAX chooses; `cudnn`: an NVIDIA GPU, bfloat16). A device takes up to `micro_batch`
    pairs at a time; there are `data_devices` copies of the policy, each divided over `model_devices` (0: all
    that are left), and all devices share a batch equally. What is saved is the whole policy, or adapters.
    """

    policy: str = ""
    revision: str = ""
    tokenizer: str = ""
    data: str = ""
    split: str = "train"
    columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")
    pairs: Natural = 0
    held_out: Annotated[float, Range(least=0, most=0.5)] = 0.05
    style: Literal["auto", "plain", "chat"] = "auto"
    max_length: Annotated[int, Range(least=4)] = 1024
    completion_tokens: Annotated[int, Range(least=2)] = 512
    objective: str = "discopop"
    beta: Positive = 0.05
    lora: Lora = Lora()
    learning_rate: Positive | None = None
    epochs: Positive = 2.0
    steps: Natural = 0
    batch: Count = 128
    micro_batch: Count = 4
    warmup: Annotated[float, Range(least=0, most=1)] = 0.1
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: Annotated[float, Range(least=0)] = 0.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "dots", "block"] = "block"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    data_devices: Count = 1
    model_devices: Natural = 0
    checkpoint: Count = 50
    save: Literal["merged", "adapters"] = "merged"

    def __post_init__(self) -> None:
        if self.save == "adapters" and not self.lora.rank:
            raise UserError("finetune.save=adapters needs adapters: set finetune.lora.rank, such as 16.")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError("finetune.attention=cudnn is for bfloat16: set finetune.dtype to it.")
        model = self.model_devices or 1
        if self.batch % (self.data_devices * model):
            factors = f"finetune.data_devices ({self.data_devices}) times model_devices ({model})"
            raise UserError(f"finetune.batch ({self.batch}) must be a multiple of {factors}.")


@dataclass(frozen=True)
class Transfer:
    """Where `transfer` takes a run's finalists: `tasks`, and the first of them with another policy.

    Baselines and others of the search, up to `objectives` in all, go along for the rank correlation.
    """

    tasks: tuple[TaskName, ...] = ("imdb", "tldr")
    objectives: Count = 12
    layers: Count = 2
    width: Count = 96
    heads: Count = 4

    def __post_init__(self) -> None:
        if not self.tasks or self.width % self.heads:
            raise UserError("transfer.tasks needs a task, and transfer.width a multiple of transfer.heads.")


@dataclass(frozen=True)
class Checkpoint:
    """Lanes in training are kept every `interval` seconds, and whenever a run is asked to stop.

    The last `keep` checkpoints are there. A run that is killed loses what it did since the last of them,
    never a result. With an interval of 0 lanes are kept only where a run is asked to stop.
    """

    interval: Annotated[float, Range(least=0)] = 60.0
    keep: Count = 2


@dataclass(frozen=True)
class Run:
    """Where a run lives, `directory/name`, and the seed that all its randomness comes from.

    `directory` may be in a bucket, such as gs://BUCKET/runs or s3://BUCKET/runs.

    What goes into its metrics.jsonl is plotted too, by TensorBoard from its folder `tensorboard` and by
    Weights & Biases in the project that `wandb` names: both off, and each with an extra of its name.
    """

    name: str = "quickstart"
    directory: str = "runs"
    tensorboard: bool = False
    wandb: str = ""
    seed: Annotated[int, Range(least=0, most=200_000)] = 0  # lanes' seeds are ten thousand apart, in int32

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UserError(
                f"run.name ({self.name!r}) names a folder: use letters, digits, '.', '_' and '-', "
                "and run.directory for where that folder is."
            )

    @property
    def path(self) -> Path:
        """The run's folder on this machine."""
        return working_folder(self.directory) / self.name

    @property
    def remote(self) -> str | None:
        """Where it lives, if that is in a bucket."""
        return f"{self.directory.rstrip('/')}/{self.name}" if is_remote(self.directory) else None


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. The defaults are those of `configs/quickstart.yaml`."""

    policy: Policy = Policy()
    sft: Sft = Sft()
    task: Task = Task()
    population: Population = Population()
    search: Search = Search()
    proposer: Proposer = Proposer()
    budget: Budget = Budget()
    evaluation: Evaluation = Evaluation()
    transfer: Transfer = Transfer()
    finetune: Finetune = Finetune()
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()

    def __post_init__(self) -> None:
        if self.policy.attention == "cudnn" and self.population.dtype != "bfloat16":
            raise UserError("policy.attention=cudnn is for bfloat16: set population.dtype to it.")
        tokens = 1 + self.task.prompt_tokens + self.task.completion_tokens
        if self.policy.pretrained is None and tokens > self.policy.max_length:
            raise UserError(
                f"task.prompt_tokens + task.completion_tokens + 1 ({tokens}) do not fit into "
                f"policy.max_length ({self.policy.max_length}): raise the one or lower the others."
            )


def _check_address(base_url: str) -> None:
    """That nothing is in it but an address: it is kept with the run, and shown in its report."""
    scheme, separator, rest = base_url.partition("://")
    if re.search(r"[?#@]", base_url):
        raise UserError(
            "proposer.base_url is written into the run's files, so no user, password or key may stand in it: "
            "leave out what is before '@' and from '?' on, put the key into an environment variable, and the "
            "name of that into proposer.key_variable."
        )
    if not separator or scheme.lower() not in ("http", "https") or not rest.strip("/"):
        raise UserError(
            f"proposer.base_url ({base_url!r}) is no address: write it with http:// or https://, such as "
            "http://localhost:11434/v1."
        )


_DEFAULT = "quickstart"


def load(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `file`, changed by `overrides`.

    Args:
      file: a path, or the bare name of one in `configs/`; the quickstart if None.
      overrides: `key.sub=value` each, the value in YAML; later ones win.

    Raises:
      UserError: for a missing or malformed file, an unknown key, or a value of the wrong type.
    """
    try:
        path = find(_DEFAULT if file is None else file)
    except UserError:
        if file not in (None, _DEFAULT):
            raise
        return parse(Config, "", overrides)  # installed without the clone: the defaults are that file
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it cannot be a config.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return parse(Config, text, overrides, file=str(path))
