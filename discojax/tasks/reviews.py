"""The packaged tasks: continue a review so that it comes out positive.

Two sources of real text, one task each: `rotten_tomatoes` (sentences), on which the search runs,
and `imdb`, which stays held out. Everything they need is built here on the first run from the
packaged reviews, and kept in the cache by the content of what it was built from: tokenizer, reward
models, the supervised policy, sampled preference pairs, the reference's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from discojax.data import reviews, tokenizer
from discojax.data.pairs import Pairs
from discojax.errors import UserError, nearest
from discojax.tasks import building, rewards
from discojax.tasks.types import Prompts, Report, Reward, Task, TaskConfig

__all__ = ["SPLITS", "Foundation", "build", "lay_foundation", "of_text"]

SPLITS = {"search": "reward_search", "select": "reward_search", "report": "reward_report"}
"""The splits of prompts, and the fold whose reward model scores each. Labels have a third model."""

_OPENING = 240  # characters, which hold any prompt


@dataclass(frozen=True)
class Foundation:
    """What all packaged tasks of one `TaskConfig` stand on; see `lay_foundation`."""

    tokenizer: Tokenizer
    rewards: Mapping[str, rewards.RewardModel]
    graph: nnx.GraphDef
    params: Any
    loss: float
    prompts: Mapping[tuple[str, str], Prompts]


def lay_foundation(
    config: TaskConfig,
    *,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> Foundation:
    """Tokenizer, reward models, supervised policy and prompts, built or read from the cache.

    Raises:
      UserError: the reviews are not installed, or the cache cannot be written.
    """
    report("reviews", 0, 1)
    texts = reviews.load()
    report("reviews", 1, 1)
    report("tokenizer", 0, 1)
    tokens = tokenizer.load(tokenizer.build(texts, config.policy.vocab_size, root))
    report("tokenizer", 1, 1)
    models = {}
    for done, fold in enumerate(rewards.ROLES):
        report("reward models", done, len(rewards.ROLES))
        models[fold] = rewards.build(texts, fold, root=root)
    report("reward models", len(rewards.ROLES), len(rewards.ROLES))
    corpus = reviews.fold(texts, None, "policy")
    graph, params, loss = building.supervised(
        corpus.sha256, lambda: _windows(corpus.texts, tokens, config.policy.max_length), tokens, config,
        root=root, report=report,
    )  # fmt: skip
    return Foundation(tokens, models, graph, params, loss, _all_prompts(texts, tokens, config))


def build(
    name: str,
    config: TaskConfig,
    *,
    foundation: Foundation | None = None,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> Task:
    """Builds a task, or reads it from the cache.

    Args:
      name: one of `data.reviews.SOURCES`.
      config: see `TaskConfig`.
      foundation: of this config, if it is at hand.
      root: the cache's directory.
      report: told how the building goes.

    Raises:
      UserError: no task has that name; the reviews are not installed; the cache cannot be written.
    """
    if name not in reviews.SOURCES:
        raise UserError(
            f"No task is called {name!r}: choose one of {', '.join(reviews.SOURCES)}."
            f"{nearest(name, reviews.SOURCES)}"
        )
    base = foundation or lay_foundation(config, root=root, report=report)
    models = base.rewards
    label = models["reward_label"]

    def pairs(given: Prompts, count: int) -> tuple[Pairs, int]:
        return building.preference_pairs(
            name, base.graph, base.params, given, base.tokenizer, of_text(label.logit), label.sha256,
            count, config, root=root, report=report,
        )  # fmt: skip

    splits = {split: base.prompts[name, f"prompts_{split}"] for split in SPLITS}
    training, dropped = pairs(_first(base.prompts[name, "policy"], _spare(config.pairs)), config.pairs)
    held_out = None
    if config.held_out_pairs:
        # From the far end of the report's prompts, whose texts nothing was trained on.
        spare, whole = _spare(config.held_out_pairs), splits["report"]
        if len(whole.lengths) < spare + 2:
            raise UserError(
                f"{name} has {len(whole.lengths)} prompts to report on, too few to take "
                f"{config.held_out_pairs} held-out pairs from: lower evaluation.held_out_pairs."
            )
        splits["report"] = Prompts(*(array[:-spare] for array in whole))
        held_out, _ = pairs(Prompts(*(array[-spare:] for array in whole)), config.held_out_pairs)
    return building.finish(
        name, base.graph, base.params, base.tokenizer, config,
        pairs=training,
        held_out=held_out,
        prompts=splits,
        reward={split: of_text(models[fold].score) for split, fold in SPLITS.items()},
        rewards={
            "label": label.sha256, **{split: models[fold].sha256 for split, fold in SPLITS.items()}
        },
        facts={
            "pairs left out": dropped,
            "supervised loss": base.loss,
            "rewards": {fold: models[fold].metadata["accuracy"] for fold in rewards.ROLES},
        },
    )  # fmt: skip


def of_text(score: Callable[[Sequence[str]], np.ndarray]) -> Reward:
    """A reward that reads prompt and completion as one text, as the DiscoPOP paper's does."""
    return lambda prompts, completions: score([a + b for a, b in zip(prompts, completions, strict=True)])


def _spare(pairs: int) -> int:
    return pairs + pairs // 20 + 8  # some are dropped, and both tasks shall have as many


def _first(prompts: Prompts, count: int) -> Prompts:
    return Prompts(*(array[:count] for array in prompts))


def _windows(texts: Sequence[str], tokens: Tokenizer, time: int, most: int = 4):
    """Supervised sequences: the first windows of each text, each begun with `<bos>`.

    A text that ends within a window is closed with `<eos>` there.
    """
    rows, lengths = [], []
    room = time - 1
    for ids in tokenizer.encode_batch(tokens, texts):
        for start in range(0, min(len(ids), most * room), room):
            window = [tokenizer.BOS, *ids[start : start + room]]
            if len(window) < time:
                window.append(tokenizer.EOS)
            if len(window) < 4:
                continue
            lengths.append(len(window))
            rows.append(window + [tokenizer.PAD] * (time - len(window)))
    return np.asarray(rows, np.int32), np.asarray(lengths, np.int32)


def _all_prompts(texts: reviews.Reviews, tokens: Tokenizer, config: TaskConfig):
    """The prompts of every source and role: beginnings of texts, 2 to `prompt_tokens` tokens long.

    No two are equal, whatever their source and role: what a policy is measured on it was not
    trained on, and what chose a finalist does not report it. Measuring goes first, so training
    gives up what they share. Their order means nothing.
    """
    generator = np.random.default_rng(config.seed)
    seen: set[tuple[int, ...]] = set()
    found: dict[tuple[str, str], Prompts] = {}
    for role in ("prompts_report", "prompts_select", "prompts_search", "policy"):
        for source in reviews.SOURCES:
            openings = [text[:_OPENING] for text in reviews.fold(texts, source, role).texts]
            sizes = generator.integers(2, config.prompt_tokens, size=len(openings), endpoint=True)
            rows = []
            for place in generator.permutation(len(openings)):
                ids = tokenizer.encode(tokens, openings[place])
                row = (tokenizer.BOS, *ids[: sizes[place]])
                if len(ids) > config.prompt_tokens and row not in seen:
                    seen.add(row)
                    rows.append(row)
            padded = [[*row, *[tokenizer.PAD] * (1 + config.prompt_tokens - len(row))] for row in rows]
            lengths = np.asarray([len(row) for row in rows], np.int32)
            found[source, role] = Prompts(np.asarray(padded, np.int32), lengths)
    return found
