"""Summaries without a judge: ROUGE, and a model of what tells a person's summary from a sampled one.

Both are proxies. The model sees a summary's words (TF-IDF, as `rewards`) and how it takes up its post:
the share of its words and of its pairs of words that stand there, its length, and whether it ends as a
sentence does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from discojax.data import cache
from discojax.errors import UserError
from discojax.tasks import rewards

__all__ = ["HumanModel", "load", "rouge", "save", "train"]

VERSION = 1  # of the models' results: raise it when training changes

_WORD = re.compile(r"\w[\w']*")
_HELD_OUT = 5  # one post in five measures accuracy


@dataclass(frozen=True)
class HumanModel:
    """How likely a summary is a person's, given its post.

    Attributes:
      words: logits of the summary's words alone.
      weights: `[features]`, of those logits and of the features of `_features`, with
      bias: added.
      body: the posts of prompts.
      metadata: how it was trained, and its `accuracy` on posts that it was not trained on.
    """

    words: rewards.RewardModel
    weights: Float[np.ndarray, " features"]
    bias: float
    body: Callable[[Sequence[str]], list[str]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def logit(self, prompts: Sequence[str], completions: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """The log-odds of each completion being a person's summary of its post."""
        features = _features(self.words, self.body(prompts), completions)
        return np.asarray(features @ self.weights + self.bias, np.float32)

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """The same as a probability."""
        return (0.5 * (1 + np.tanh(0.5 * self.logit(prompts, completions)))).astype(np.float32)

    @property
    def sha256(self) -> str:
        """The content hash of what decides a score."""
        return cache.content_hash({"words": self.words.sha256, "weights": self.weights, "bias": self.bias})


def train(bodies: Sequence[str], human: Sequence[str], sampled: Sequence[str], seed: int = 0) -> HumanModel:
    """A model that tells `human` summaries of `bodies` from `sampled` ones; one post is in one part only.

    The words' logits come from two fifths of the posts and their weight among the features from two
    more, because logits on what they were fitted to are too sure.

    Raises:
      UserError: there are too few posts.
    """
    from sklearn.linear_model import LogisticRegression

    if len(bodies) < 10:
        raise UserError(f"A reward model of summaries needs at least 10 posts, not {len(bodies)}.")
    part = np.random.default_rng(seed).permutation(len(bodies)) % _HELD_OUT

    def of(parts: Sequence[int]) -> tuple[list[str], list[str], np.ndarray]:
        rows = np.flatnonzero(np.isin(part, parts)).tolist()
        texts = [human[i] for i in rows] + [sampled[i] for i in rows]
        return [bodies[i] for i in rows] * 2, texts, np.repeat([1, 0], len(rows))

    _, texts, labels = of([0, 1])
    words = rewards.train(texts, labels, seed)
    posts, texts, labels = of([2, 3])
    classifier = LogisticRegression(C=1.0, max_iter=1000).fit(_features(words, posts, texts), labels)
    model = HumanModel(
        words,
        np.asarray(classifier.coef_[0], np.float32),
        float(classifier.intercept_[0]),
        list,
        {"posts": len(bodies), "seed": seed},
    )
    posts, texts, labels = of([4])
    right = float(np.mean((model.logit(posts, texts) > 0) == (labels == 1)))
    return HumanModel(
        model.words, model.weights, model.bias, list, {**model.metadata, "accuracy": round(right, 4)}
    )


def _features(
    words: rewards.RewardModel, bodies: Sequence[str], texts: Sequence[str]
) -> Float[np.ndarray, "texts features"]:
    rows = []
    for body, text in zip(bodies, texts, strict=True):
        post, said = _tokens(body), _tokens(text)
        pairs, post_pairs = list(pairwise(said)), set(pairwise(post))
        known = set(post)
        rows.append(
            (
                sum(word in known for word in said) / max(len(said), 1),
                sum(pair in post_pairs for pair in pairs) / max(len(pairs), 1),
                np.log1p(len(said)),
                float(text.rstrip().endswith((".", "!", "?"))),
                len(set(said)) / max(len(said), 1),
            )
        )
    dense = np.asarray(rows, np.float32).reshape(len(rows), 5)
    return np.concatenate([words.logit(texts)[:, None], dense], axis=1)


def save(directory: Path, model: HumanModel) -> None:
    """Writes a model: what `rewards.save` writes of its words, and `features.json`."""
    rewards.save(directory, model.words)
    cache.write_json(
        directory / "features.json",
        {
            "weights": [float(x) for x in model.weights],
            "bias": model.bias,
            "metadata": dict(model.metadata),
        },
    )


def load(directory: Path, body: Callable[[Sequence[str]], list[str]]) -> HumanModel:
    """What `save` wrote, for prompts whose posts are `body(prompts)`."""
    kept = json.loads((directory / "features.json").read_bytes())
    weights = np.asarray(kept["weights"], np.float32)
    return HumanModel(rewards.load(directory), weights, kept["bias"], body, kept["metadata"])


def rouge(completions: Sequence[str], references: Sequence[str]) -> dict[str, Float[np.ndarray, " texts"]]:
    """ROUGE F1 of each completion against its reference (Lin, 2004): `rouge1`, `rouge2`, `rougeL`.

    Words in lower case without stemming; 0 where nothing is shared, or where there is no word.
    """
    found: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    for ours, theirs in zip(map(_tokens, completions), map(_tokens, references), strict=True):
        for name, size in (("rouge1", 1), ("rouge2", 2)):
            one, other = _grams(ours, size), _grams(theirs, size)
            found[name].append(_f1((one & other).total(), one.total(), other.total()))
        found["rougeL"].append(_f1(_common(ours, theirs), len(ours), len(theirs)))
    return {name: np.asarray(values) for name, values in found.items()}


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(size)), strict=False))


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if ours + theirs else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = 0
        for j, b in enumerate(other):
            before, row[j + 1] = row[j + 1], before + 1 if a == b else max(row[j + 1], row[j])
    return row[-1]


def _tokens(text: str) -> list[str]:
    return _WORD.findall(text.lower())
