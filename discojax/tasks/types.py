"""What a task is: a policy to start from, pairs to train on, prompts and rewards to measure with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.policies.sft import SftConfig

__all__ = [
    "OwnData",
    "PretrainedConfig",
    "Prompts",
    "Report",
    "Reward",
    "SamplingConfig",
    "Task",
    "TaskConfig",
    "assert_disjoint",
    "read",
]

Reward = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, " texts"]]
"""Scores completions: `reward(prompts, completions) -> [n]`, where prompt + completion is the text.
What it cannot score is NaN, which is counted and never averaged."""

Report = Callable[[str, int, int], None]
"""Told what is being built, how much of it is done, and of how much."""


class Prompts(NamedTuple):
    """Prompts to complete, padded on the right, each at least one token long."""

    ids: Int[np.ndarray, "prompts time"]
    lengths: Int[np.ndarray, " prompts"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], width: int, pad_id: int) -> Prompts:
        """Rows of tokens, each at most `width` long, padded."""
        ids = np.asarray([[*row, *[pad_id] * (width - len(row))] for row in rows], np.int32)
        return cls(ids.reshape(-1, width), np.asarray([len(row) for row in rows], np.int32))

    def rows(self) -> list[tuple[int, ...]]:
        """Each prompt's tokens, without padding."""
        return [tuple(row[:n]) for row, n in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn: at most `tokens` tokens each, at `temperature`, up to `eos_id`.

    `top_k` and `top_p` leave unlikely tokens out, see `policies.sampling.likeliest`; by default none.
    """

    tokens: int
    eos_id: int
    pad_id: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def content(self) -> dict[str, Any]:
        """What decides the draws, for content hashes: that no token is left out goes without saying."""
        left_out = {"top_k": 0, "top_p": 1.0}
        return {name: x for name, x in asdict(self).items() if name not in left_out or x != left_out[name]}


@dataclass(frozen=True)
class PretrainedConfig:
    """A policy that is there already, in place of the small one.

    Attributes:
      source: a directory, a GGUF file, an id on the hub, or `smollm2`; see `policies.pretrained.load`.
      tokenizer: where its tokenizer is, if not there.
      remat: `DecoderConfig.remat`.
      attention: `DecoderConfig.attention`.
      revision: a branch, tag or commit on the hub; "" for its main branch.
    """

    source: str
    tokenizer: str = ""
    remat: Literal["none", "dots", "block"] = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    revision: str = ""


@dataclass(frozen=True)
class OwnData:
    """What the task `preferences` is made of; see `tasks.preferences`.

    Attributes:
      pairs, split, columns: preference pairs, see `data.readers.read_rows` and `data.sources.Columns`.
      prompts, prompts_split, prompts_columns: what is reported on: a source of the same kinds, and its
        columns of prompts and of what people wrote, "" if there is none. "" for prompts: the pairs' own.
      openings: only a few tokens of each of `prompts`, from its beginning, are a prompt.
      held_out: the share of the pairs' prompts that nothing trains on.
      marker: what every prompt ends with.
      style: how prompts are written; see `data.chat.choose_style`.
      reward: of the search and of what chooses; see `tasks.own_rewards`.
      report_reward: of the report; one of the two may be "", and is then the other.
    """

    pairs: str = ""
    split: str = "train"
    columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")
    prompts: str = ""
    prompts_split: str = "test"
    prompts_columns: tuple[str, str] = ("prompt", "")
    openings: bool = False
    held_out: float = 0.3
    marker: str = ""
    style: Literal["auto", "plain", "chat"] = "auto"
    reward: str = ""
    report_reward: str = ""


@dataclass(frozen=True)
class TaskConfig:
    """What a task is made of.

    Attributes:
      policy: the small decoder, which `pretrained` replaces.
      sft: how it learns to write.
      prompt_tokens: prompts have at most this many tokens after the beginning-of-sequence.
      completion_tokens: the longest completion.
      pairs: how many prompts make a preference pair.
      temperature, top_k, top_p: of sampling; see `SamplingConfig`.
      completions: sampled a prompt, of which the two furthest apart in reward make the pair.
      label_temperature: of the Bradley-Terry labels, in logits of the labelling reward.
      seed: of everything built here; a run's own seed is another.
      held_out_pairs: pairs of prompts that nothing trains on, on which accuracy is measured.
      dtype: what policies compute in.
      pretrained: a policy in place of the small one, used as it is.
      lora: adapters that train in place of all weights.
      own: what the task `preferences` is made of.
    """

    policy: DecoderConfig
    sft: SftConfig = field(default_factory=SftConfig)
    prompt_tokens: int = 6
    completion_tokens: int = 20
    pairs: int = 1024
    temperature: float = 1.0
    completions: int = 4
    label_temperature: float = 0.25
    seed: int = 0
    held_out_pairs: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    pretrained: PretrainedConfig | None = None
    lora: LoraConfig | None = None
    own: OwnData = field(default_factory=OwnData)
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Task:
    """A task, ready to train and measure on.

    Attributes:
      name: what it is called.
      graph, params: the supervised policy, where every lane starts and what KL is measured from.
      tokenizer: see `data.tokenizer`.
      pairs: preference pairs with reference log-probabilities.
      sampling: how completions are drawn.
      prompts: of each split, no two splits sharing one.
      reward: of each split.
      identity: the content hash of all of the above.
      source: the content hash of what is the same on every machine, as trained weights need not be: prompts,
        what people wrote, and of one's own data the pairs and the rewards too.
      facts: what a report should say of it: sizes, accuracies, the policy's loss, what was left out.
      rewards: the content hash of each split's reward, and of the one behind the pairs as `label`.
      held_out: pairs that nothing trains on, with reference log-probabilities, or None.
      references: what people wrote for each prompt of a split, where there is that.
      frozen: the weights that all lanes share, where `params` are adapters to them; else None.
      texts: each prompt of a split as its source has it, where that is not what its tokens say.
    """

    name: str
    graph: nnx.GraphDef
    params: Any
    tokenizer: Tokenizer
    pairs: Pairs
    sampling: SamplingConfig
    prompts: Mapping[str, Prompts]
    reward: Mapping[str, Reward]
    identity: str
    facts: Mapping[str, Any]
    rewards: Mapping[str, str]
    held_out: Pairs | None = None
    references: Mapping[str, Sequence[str]] = field(default_factory=dict)
    frozen: Any = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source: str = ""

    def asked(self, split: str) -> list[str]:
        """The prompts of a split in words, as a judge is shown them."""
        return list(self.texts.get(split) or self.decode(self.prompts[split].rows()))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, special tokens left out."""
        return self.tokenizer.decode_batch([[int(i) for i in row] for row in rows], skip_special_tokens=True)


def assert_disjoint(searched: Iterable[Task], reported: Iterable[Task], split: str = "report") -> None:
    """That what reports has no part in the search: no prompt, no pair and no reward of it.

    Args:
      searched: the tasks that a search trains and scores on, all of whose other splits count.
      reported: the tasks that report, on `split`.

    Raises:
      UserError: saying what they share. A number measured so would say how well a search remembers.
    """
    searched, reported = list(searched), list(reported)
    for task in reported:
        if repeated := len(task.prompts[split].rows()) - len(set(task.prompts[split].rows())):
            raise UserError(
                f"{task.name} repeats {repeated} of its {split!r} prompts, which would count twice: "
                "remove the duplicates from its source."
            )
    for one in [*searched, *reported]:
        for other in reported:
            if shared := _shared(one, other, split):
                raise UserError(
                    f"{other.name} reports on {len(shared)} prompts that {one.name} trains or searches on: "
                    "give the two disjoint sources."
                )
            names = {one.rewards.get(name) for name in ("label", "search", "select")} - {None}
            if other.rewards.get(split) in names:
                raise UserError(
                    f"The reward that reports {other.name} is one that {one.name} labels or searches with: "
                    "report with another model, or one trained on a disjoint fold."
                )


def _shared(one: Task, other: Task, split: str) -> set[tuple[int, ...]]:
    """The prompts of `other`'s `split` that `one` trains on, or measures with in any other split."""
    reported = set(other.prompts[split].rows())
    elsewhere = {row for name, prompts in one.prompts.items() if name != split for row in prompts.rows()}
    trained = Prompts(one.pairs.chosen_ids, one.pairs.prompt_length).rows()
    return reported & (elsewhere | set(trained))


def read(
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    ids: Int[np.ndarray, "texts time"],
    prompt_lengths: Int[np.ndarray, " texts"],
    lengths: Int[np.ndarray, " texts"],
) -> tuple[list[str], list[str]]:
    """The prompts and the completions of rows of tokens; prompt + completion is the text of both.

    A tokenizer may give a completion its first space only behind a prompt, so the whole is decoded,
    and the completion is what follows the prompt; or by itself, where a character spans the border.
    """
    rows = list(zip(ids, prompt_lengths, lengths, strict=True))
    prompts = decode([row[:n] for row, n, _ in rows])
    alone = decode([row[n : n + m] for row, n, m in rows])
    whole = decode([row[: n + m] for row, n, m in rows])
    return prompts, [
        text[len(prompt) :] if text.startswith(prompt) else short
        for text, prompt, short in zip(whole, prompts, alone, strict=True)
    ]
