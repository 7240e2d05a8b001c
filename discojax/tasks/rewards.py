"""Reward models of the packaged task: how likely a text is to be from a positive film review.

TF-IDF of words and pairs of words with logistic regression, features scaled by the square root of
their naive Bayes log-count ratio (after Wang and Manning, 2012, "Baselines and Bigrams"). It is
trained on whole reviews and on random-length prefixes of them, because what it will score are
completions of 16 to 40 words.

Three of them are trained on disjoint folds: one labels the pairs that policies are trained on, one
scores the search, one reports. A policy that fits the quirks of the first gains little from the
others.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int

from discojax.data import cache, reviews
from discojax.errors import UserError

__all__ = ["ROLES", "RewardModel", "Units", "accuracy", "build", "load", "save", "train"]

ROLES = ("reward_label", "reward_search", "reward_report")
LENGTHS = (8, 16, 32)  # words of the prefixes on which accuracy is measured
VERSION = 1  # of this file's result: raise it when training changes

Units = Literal["words", "characters"]
"""What a text is to a model: words, or the characters within them. Two models with different quirks."""

_WORDS = r"(?u)\b\w[\w']*\b|[!?]"
_FEATURES = 50_000
_PREFIXES = 2  # of each training text, of 4 to 47 words,
_PREFIX_WEIGHT = 0.5  # each worth half a whole text: their labels are less certain
_HELD_OUT = 1_500  # texts of each source


@dataclass(frozen=True)
class RewardModel:
    """A linear model of TF-IDF features.

    Attributes:
      terms: the words and pairs of words it knows.
      idf: float32 `[terms]`, their inverse document frequencies.
      weights: float32 `[terms]`, in logits per unit of L2-normalised TF-IDF.
      metadata: how it was trained and, if `build` made it, its `accuracy` on held-out text.
    """

    terms: tuple[str, ...] = field(repr=False)
    idf: Float32[np.ndarray, " terms"] = field(repr=False)
    weights: Float32[np.ndarray, " terms"] = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def logit(self, texts: Sequence[str]) -> Float32[np.ndarray, " texts"]:
        """The log-odds of each text being positive; 0 for one with no known term, such as an empty one."""
        if not len(texts):
            return np.zeros(0, np.float32)
        return np.asarray(self._vectorizer.transform(texts) @ self.weights, np.float32)

    def score(self, texts: Sequence[str]) -> Float32[np.ndarray, " texts"]:
        """The probability of each text being positive; 0.5 for one with no known term."""
        return (0.5 * (1 + np.tanh(0.5 * self.logit(texts)))).astype(np.float32)

    @functools.cached_property
    def sha256(self) -> str:
        """The content hash of what decides a score."""
        return cache.content_hash({"terms": self.terms, "idf": self.idf, "weights": self.weights})

    @functools.cached_property
    def _vectorizer(self) -> Any:
        vocabulary = {term: i for i, term in enumerate(self.terms)}
        vectorizer = _tfidf(self.metadata.get("units", "words"), vocabulary=vocabulary)
        vectorizer.idf_ = self.idf
        return vectorizer


def _tfidf(units: Units, **settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # deferred: a second to import

    form: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": _WORDS}
    if units == "characters":
        form = {"ngram_range": (2, 5), "analyzer": "char_wb"}
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **form, **settings)


def train(
    texts: Sequence[str], labels: Int[np.ndarray, " texts"], seed: int = 0, units: Units = "words"
) -> RewardModel:
    """A reward model of texts with labels 1 (positive) and 0; the same arguments give the same one.

    No intercept: the labels are nearly balanced, and a text that says nothing should score 0.5.

    Args:
      seed: draws the lengths of the prefixes.
      units: terms are words and pairs of them, or two to five characters of one word.

    Raises:
      UserError: fewer than two texts of a label, or no term occurs in two texts.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    positive = np.asarray(labels) == 1
    if min(positive.sum(), (~positive).sum()) < 2:
        raise UserError("A reward model needs at least two positive and two negative texts to train on.")
    vectorizer = _tfidf(units, min_df=2, max_features=_FEATURES)
    try:
        whole = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise UserError(
            "No word occurs in two of the texts that a reward model should be trained on."
        ) from error
    prefixes, owner = _prefixes(texts, np.random.default_rng(seed))
    features = sparse.vstack([whole, vectorizer.transform(prefixes)]) if prefixes else whole
    scale = _log_count_ratio(whole, positive)
    classifier = LogisticRegression(C=4.0, solver="liblinear", fit_intercept=False, random_state=0)
    classifier.fit(
        features @ sparse.diags(scale),
        np.concatenate([positive, positive[owner]]),
        sample_weight=np.concatenate([np.ones(len(texts)), np.full(len(prefixes), _PREFIX_WEIGHT)]),
    )
    return RewardModel(
        terms=tuple(vectorizer.get_feature_names_out().tolist()),
        idf=vectorizer.idf_.astype(np.float32),
        weights=(classifier.coef_[0] * scale).astype(np.float32),
        metadata={"texts": len(texts), "prefixes": len(prefixes), "seed": seed, "units": units},
    )


def _prefixes(texts: Sequence[str], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Random-length beginnings of the texts, and the index of the text each is from."""
    prefixes, owner = [], []
    lengths = rng.integers(4, 48, size=(len(texts), _PREFIXES))
    for i, text in enumerate(texts):
        words = text.split(maxsplit=48)
        for length in lengths[i]:
            if length < len(words):
                prefixes.append(" ".join(words[:length]))
                owner.append(i)
    return prefixes, np.asarray(owner, np.int64)


def _log_count_ratio(features: Any, positive: np.ndarray) -> np.ndarray:
    """The signed square root of log P(term | positive) / P(term | negative), one-smoothed.

    The square root was best of the ratio itself, its root and no scaling, on held-out prefixes.
    """
    present = features > 0
    counts = [np.asarray(present[rows].sum(axis=0)).ravel() + 1.0 for rows in (positive, ~positive)]
    ratio = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
    return np.sign(ratio) * np.sqrt(np.abs(ratio))


def accuracy(model: RewardModel, held_out: reviews.Reviews) -> dict[str, dict[str, float]]:
    """The share of texts on the right side of 0.5, by source, and by length in words or `full`."""
    found: dict[str, dict[str, float]] = {}
    for source in dict.fromkeys(held_out.sources):
        part = held_out.take(i for i, origin in enumerate(held_out.sources) if origin == source)
        by_length = {str(n): [" ".join(text.split()[:n]) for text in part.texts] for n in LENGTHS}
        found[source] = {
            length: round(float(np.mean((model.logit(texts) > 0) == (part.labels == 1))), 4)
            for length, texts in (by_length | {"full": list(part.texts)}).items()
        }
    return found


def build(
    data: reviews.Reviews,
    role: str,
    seed: int = 0,
    root: Path | str | None = None,
    units: Units = "words",
) -> RewardModel:
    """The cached reward model trained on the fold of one of `ROLES`, of both sources.

    Its `metadata["accuracy"]` is measured on texts of the policy's fold, which no reward model sees.

    Raises:
      UserError: there is no such role, or the cache cannot be written.
    """
    import sklearn

    if role not in ROLES:
        raise UserError(f"No reward model is called {role!r}: choose one of {', '.join(ROLES)}.")
    texts = reviews.fold(data, None, role)
    held_out = [reviews.fold(data, source, "policy") for source in reviews.SOURCES]
    inputs = {
        "texts": texts.sha256,
        "held_out": [part.sha256 for part in held_out],
        "seed": seed,
        "version": VERSION,
        "sklearn": sklearn.__version__,
    }
    if units != "words":
        inputs["units"] = units

    def make(directory: Path) -> None:
        model = train(texts.texts, texts.labels, seed, units)
        measured = {
            source: accuracy(model, part.take(range(max(0, len(part) - _HELD_OUT), len(part))))[source]
            for source, part in zip(reviews.SOURCES, held_out, strict=True)
            if len(part)
        }
        extra = {"role": role, "accuracy": measured}
        save(directory, RewardModel(model.terms, model.idf, model.weights, {**model.metadata, **extra}))

    return load(cache.build(role.replace("_", "-"), inputs, make, root))


def save(directory: Path, model: RewardModel) -> None:
    """Writes a model as `terms.json`, `weights.npz` and `metadata.json`: no pickle."""
    cache.write_json(directory / "terms.json", list(model.terms))
    cache.save_arrays(directory / "weights.npz", {"idf": model.idf, "weights": model.weights})
    cache.write_json(directory / "metadata.json", dict(model.metadata))


def load(directory: Path) -> RewardModel:
    """What `save` wrote. `build` has checked the content's hashes before it comes here."""
    terms = json.loads((directory / "terms.json").read_bytes())
    arrays = cache.load_arrays(directory / "weights.npz", ["idf", "weights"])
    metadata = json.loads((directory / "metadata.json").read_bytes())
    return RewardModel(tuple(terms), arrays["idf"], arrays["weights"], metadata)
