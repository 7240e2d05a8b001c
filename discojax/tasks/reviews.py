"""The packaged tasks: continue a review so that it comes out positive.

Two sources of real text, one task each: `rotten_tomatoes` (sentences), on which the search runs,
and `imdb`, which stays held out. Everything they need is built here on the first run from the
packaged reviews, and kept in the cache by the content of what it was built from: tokenizer, reward
models, the supervised policy, sampled preference pairs, the reference's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from discojax.data import cache, reviews, tokenizer
from discojax.data.pairs import Pairs
from discojax.data.reference import with_reference
from discojax.errors import UserError, nearest
from discojax.policies import sft, weights
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.tasks import rewards
from discojax.tasks.measure import Prompts, SamplingConfig
from discojax.tasks.sampled_pairs import sample_pairs

__all__ = ["SPLITS", "Foundation", "ReviewsConfig", "ReviewsTask", "build", "lay_foundation"]

VERSION = 1
SPLITS = {"search": "reward_search", "select": "reward_search", "report": "reward_report"}
"""The splits of prompts, and the fold whose reward model scores each. Labels have a third model."""

_OPENING = 240  # characters, which hold any prompt

Report = Callable[[str, int, int], None]
"""Told what is being built, how much of it is done, and of how much."""


@dataclass(frozen=True)
class ReviewsConfig:
    """What a packaged task is made of.

    Attributes:
      policy: the small decoder.
      sft: how it learns to write reviews.
      prompt_tokens: prompts have 2 to this many tokens of a review, after the beginning-of-sequence.
      completion_tokens: the longest completion.
      pairs: how many prompts make a preference pair.
      temperature: of sampling.
      completions: sampled a prompt, of which the two furthest apart in reward make the pair.
      label_temperature: of the Bradley-Terry labels, in logits of the labelling reward.
      seed: of everything built here; a run's own seed is another.
    """

    policy: DecoderConfig
    sft: sft.SftConfig = field(default_factory=sft.SftConfig)
    prompt_tokens: int = 6
    completion_tokens: int = 20
    pairs: int = 1024
    temperature: float = 1.0
    completions: int = 4
    label_temperature: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class ReviewsTask:
    """A task, ready to train and measure on.

    Attributes:
      name: `rotten_tomatoes` or `imdb`.
      graph, params: the supervised policy, where every lane starts and what KL is measured from.
      tokenizer: see `data.tokenizer`.
      pairs: preference pairs with reference log-probabilities.
      sampling: how completions are drawn.
      prompts: of each of `SPLITS`, no two splits sharing one.
      reward: P(positive) of a text by each split's own reward model.
      identity: the content hash of all of the above.
      facts: what a report should say of it: sizes, accuracies, the policy's loss.
    """

    name: str
    graph: nnx.GraphDef
    params: Any
    tokenizer: Tokenizer
    pairs: Pairs
    sampling: SamplingConfig
    prompts: Mapping[str, Prompts]
    reward: Mapping[str, Callable[[Sequence[str]], np.ndarray]]
    identity: str
    facts: Mapping[str, Any]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, special tokens left out."""
        return self.tokenizer.decode_batch([[int(i) for i in row] for row in rows], skip_special_tokens=True)


@dataclass(frozen=True)
class Foundation:
    """What all packaged tasks of one `ReviewsConfig` stand on; see `lay_foundation`."""

    tokenizer: Tokenizer
    rewards: Mapping[str, rewards.RewardModel]
    graph: nnx.GraphDef
    params: Any
    loss: float
    prompts: Mapping[tuple[str, str], Prompts]


def lay_foundation(
    config: ReviewsConfig,
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
    graph, params, loss = _policy(texts, tokens, config, root, report)
    return Foundation(tokens, models, graph, params, loss, _all_prompts(texts, tokens, config))


def build(
    name: str,
    config: ReviewsConfig,
    *,
    foundation: Foundation | None = None,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> ReviewsTask:
    """Builds a task, or reads it from the cache.

    Args:
      name: one of `data.reviews.SOURCES`.
      config: see `ReviewsConfig`.
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
    graph, params, tokens, models, prompts = (
        base.graph, base.params, base.tokenizer, base.rewards, base.prompts,
    )  # fmt: skip
    sampling = SamplingConfig(config.completion_tokens, tokenizer.EOS, tokenizer.PAD, config.temperature)
    spare = config.pairs + config.pairs // 20 + 8  # some are dropped, and both tasks shall have as many
    training = Prompts(*(array[:spare] for array in prompts[name, "policy"]))
    pairs, dropped = _pairs(
        name, graph, params, training, tokens, sampling,
        models["reward_label"], config, root, report,
    )  # fmt: skip
    pairs = with_reference(
        pairs, graph, params, tokens=config.completion_tokens, root=root,
        progress=lambda done, total: report("reference log-probabilities", done, total),
    )  # fmt: skip
    splits = {split: prompts[name, f"prompts_{split}"] for split in SPLITS}
    identity = cache.content_hash(
        {
            "name": name,
            "params": [np.asarray(x) for x in jax.tree.leaves(params)],
            "pairs": dict(pairs._asdict()),
            "prompts": {split: list(p) for split, p in splits.items()},
            "rewards": [models[fold].sha256 for fold in rewards.ROLES],
            "sampling": asdict(sampling),
        }
    )
    return ReviewsTask(
        name, graph, params, tokens, pairs, sampling, splits,
        {split: models[fold].score for split, fold in SPLITS.items()},
        identity,
        {
            "pairs": len(pairs.prompt_length),
            "pairs left out": dropped,
            "prompts": {split: len(p.lengths) for split, p in splits.items()},
            "parameters": int(sum(np.size(x) for x in jax.tree.leaves(params))),
            "supervised loss": base.loss,
            "rewards": {fold: models[fold].metadata["accuracy"] for fold in rewards.ROLES},
        },
    )  # fmt: skip


def _policy(texts, tokens: Tokenizer, config: ReviewsConfig, root, report: Report):
    """The decoder after supervised training on the policy's fold of both sources."""
    graph, state = nnx.split(Decoder(config.policy, rngs=nnx.Rngs(config.seed)))
    fold = reviews.fold(texts, None, "policy")
    inputs = {
        "texts": fold.sha256,
        "tokenizer": cache.content_hash(tokens.to_str()),
        "policy": asdict(config.policy),
        "sft": asdict(config.sft),
        "seed": config.seed,
        "version": VERSION,
        "weights": weights.VERSION,
    }

    def make(directory: Path) -> None:
        ids, lengths = _windows(fold.texts, tokens, config.policy.max_length)

        def progress(done: int, loss: float) -> None:
            report(f"policy (loss {loss:.2f} nats a token)", done, config.sft.steps)

        trained, losses = sft.train(
            graph, state, ids, lengths, config=config.sft, seed=config.seed, progress=progress
        )
        weights.save(trained, directory / "policy.safetensors")
        (directory / "loss.txt").write_text(repr(float(np.mean(losses[-5:]))))

    directory = cache.build("policy", inputs, make, root)
    like = jax.eval_shape(lambda: state)
    params = weights.load(like, directory / "policy.safetensors")
    return graph, params, float((directory / "loss.txt").read_text())


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


def _all_prompts(texts: reviews.Reviews, tokens: Tokenizer, config: ReviewsConfig):
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


def _pairs(name, graph, params, prompts: Prompts, tokens, sampling, model, config, root, report: Report):
    inputs = {
        "params": cache.content_hash([np.asarray(x) for x in jax.tree.leaves(params)]),
        "policy": asdict(config.policy),  # heads change what the same weights do
        "prompts": cache.content_hash(list(prompts)),
        "reward": model.sha256,
        "sampling": asdict(sampling),
        "pairs": config.pairs,
        "completions": config.completions,
        "label_temperature": config.label_temperature,
        "seed": config.seed,
        "version": VERSION,
    }

    def make(directory: Path) -> None:
        pairs, dropped = sample_pairs(
            graph, params, prompts, config=sampling, seed=config.seed, logit=model.logit,
            completions=config.completions, label_temperature=config.label_temperature,
            decode=lambda rows: tokens.decode_batch([[int(i) for i in row] for row in rows]),
            progress=lambda done, total: report(f"preference pairs ({name})", done, total),
        )  # fmt: skip
        arrays = {key: x[: config.pairs] for key, x in pairs._asdict().items() if x is not None}
        np.savez(directory / "pairs.npz", dropped=dropped.total, **arrays)

    directory = cache.build("pairs", inputs, make, root)
    with np.load(directory / "pairs.npz") as saved:
        arrays = dict(saved)
    dropped = int(arrays.pop("dropped"))
    return Pairs(**arrays), dropped
