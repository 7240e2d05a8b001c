"""The packaged tasks: continue a review so that it comes out positive.

Two sources of real text, one task each: `rotten_tomatoes` (sentences), on which the search runs,
and `imdb`, which stays held out. Everything they need is built here on the first run from the
packaged reviews, and kept in the cache by the content of what it was built from: tokenizer, reward
models, the supervised policy, sampled preference pairs, the reference's log-probabilities.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from discojax.data import hub_tokenizers, reviews, tokenizer
from discojax.data.pairs import Pairs
from discojax.data.readers import read_rows
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError, nearest
from discojax.tasks import building, rewards
from discojax.tasks.bases import Base
from discojax.tasks.types import Prompts, Report, Reward, Task, TaskConfig

__all__ = ["SPLITS", "Foundation", "build", "lay_foundation", "of_text"]

SPLITS = {"search": "reward_search", "select": "reward_search", "report": "reward_report"}
"""The splits of prompts, and the fold whose reward model scores each. Labels have a third model."""

_OPENING = 240  # characters, which hold any prompt


@dataclass(frozen=True)
class Foundation:
    """What all packaged tasks of one `TaskConfig` stand on; see `lay_foundation`."""

    base: Base
    rewards: Mapping[str, rewards.RewardModel]
    prompts: Mapping[tuple[str, str], Prompts]


def lay_foundation(
    config: TaskConfig,
    *,
    base: Base | None = None,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> Foundation:
    """Tokenizer, reward models, supervised policy and prompts, built or read from the cache.

    Args:
      config: see `TaskConfig`.
      base: a policy that is there already, in place of one that is trained here.
      root: the cache's directory.
      report: told how it goes.

    Raises:
      UserError: the reviews are not installed, or the cache cannot be written.
    """
    report("reviews", 0, 1)
    texts = _through_tfds(root)
    report("reviews", 1, 1)
    models = {}
    for done, fold in enumerate(rewards.ROLES):
        report("reward models", done, len(rewards.ROLES))
        models[fold] = rewards.build(texts, fold, root=root)
    report("reward models", len(rewards.ROLES), len(rewards.ROLES))
    base = base or _supervised(texts, config, root, report)
    return Foundation(base, models, _all_prompts(texts, base, config))


def _through_tfds(root: Path | str | None) -> reviews.Reviews:
    """The reviews, read as any TFDS data set is, from what our builder wrote of them.

    Without TFDS, which is an extra, they are read from their package: the same rows in the same order.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return reviews.load()
    from discojax.tasks import builders

    rows = [row for _, row in read_rows(str(builders.prepare(builders.FilmReviews, root)), "train")]
    return reviews.from_rows(rows)


def _supervised(texts: reviews.Reviews, config: TaskConfig, root: Path | str | None, report: Report) -> Base:
    report("tokenizer", 0, 1)
    tokens = hub_tokenizers.ours(tokenizer.build(texts, config.policy.vocab_size, root))
    report("tokenizer", 1, 1)
    corpus = reviews.fold(texts, None, "policy")
    return building.supervised(
        corpus.sha256, lambda: _windows(corpus.texts, tokens, config.policy.max_length), tokens, config,
        root=root, report=report,
    )  # fmt: skip


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
    ground = foundation or lay_foundation(config, root=root, report=report)
    base, models = ground.base, ground.rewards
    label = models["reward_label"]

    def pairs(given: Prompts, count: int) -> tuple[Pairs, int]:
        return building.preference_pairs(
            name, base, given, of_text(label.logit), label.sha256, count, config, root=root, report=report,
        )  # fmt: skip

    splits = {split: ground.prompts[name, f"prompts_{split}"] for split in SPLITS}
    training, dropped = pairs(_first(ground.prompts[name, "policy"], _spare(config.pairs)), config.pairs)
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
        name, base, config,
        pairs=training,
        held_out=held_out,
        prompts=splits,
        reward={split: of_text(models[fold].score) for split, fold in SPLITS.items()},
        rewards={
            "label": label.sha256, **{split: models[fold].sha256 for split, fold in SPLITS.items()}
        },
        facts={
            "pairs left out": dropped,
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


def _windows(texts: Sequence[str], tokens: TextTokenizer, time: int, most: int = 4):
    """Supervised sequences: the first windows of each text, each begun with `<bos>`.

    A text that ends within a window is closed with `<eos>` there.
    """
    rows, lengths = [], []
    room = time - 1
    for ids in tokens.encode_batch(texts):
        for start in range(0, min(len(ids), most * room), room):
            window = [tokenizer.BOS, *ids[start : start + room]]
            if len(window) < time:
                window.append(tokenizer.EOS)
            if len(window) < 4:
                continue
            lengths.append(len(window))
            rows.append(window + [tokenizer.PAD] * (time - len(window)))
    return np.asarray(rows, np.int32), np.asarray(lengths, np.int32)


def _all_prompts(texts: reviews.Reviews, base: Base, config: TaskConfig):
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
                ids = base.tokenizer.encode(openings[place])
                row = base.begun(ids[: sizes[place]])
                if len(ids) > config.prompt_tokens and row not in seen:
                    seen.add(row)
                    rows.append(row)
            found[source, role] = Prompts.of(rows, 1 + config.prompt_tokens, base.tokenizer.pad_id)
    return found
