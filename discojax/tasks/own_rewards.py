"""Rewards of one's own: a Python function, a classifier in Transformers' format, a judge, or ROUGE.

What such a reward says is checked each time: as many numbers as texts. One that is not finite is a
failure of its lane, with the count of them, and never a zero.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from discojax.data import cache
from discojax.errors import UserError, nearest
from discojax.policies.pretrained.locating import locate
from discojax.tasks import overlap
from discojax.tasks.judges import Judge
from discojax.tasks.types import Reward

__all__ = [
    "Classifier",
    "classifier",
    "counted",
    "entry_point",
    "identify",
    "judged",
    "needs_answers",
    "overlapping",
    "own_reward",
]

_ROWS = 32  # texts a call
_LOST = 20  # of so many completions one may be without a verdict
_STEP = 32  # texts are padded to a multiple of this many tokens, so that few lengths are compiled


def own_reward(name: str) -> Reward:
    """The reward that `evaluation.reward` names: `module:function`, or a classifier's folder or hub id.

    Raises:
      UserError: there is no such thing.
    """
    if needs_answers(name):
        raise UserError(f"The reward {name} compares with what people wrote: it is for the task preferences.")
    module, colon, function = name.partition(":")
    if colon and module != "hf":
        return entry_point(module, function)
    return classifier(function if colon else name)


def identify(name: str) -> str:
    """A hash of what `name` means as a reward: of a module's source or a classifier's weights, if at hand."""
    module, colon, function = name.partition(":")
    if colon and module != "hf":
        spec = None if module == "judge" else importlib.util.find_spec(module)
        origin = spec.origin if spec else None
        source = Path(origin).read_bytes() if origin and origin.endswith(".py") else b""
        return cache.content_hash({"name": name, "source": source})
    if name == "rouge":
        return cache.content_hash({"name": name, "version": overlap.VERSION})
    place = locate(function if colon else name)
    digests = []
    for file in sorted(place.glob("*.safetensors")) if place.is_dir() else [place]:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return cache.content_hash({"classifier": digests})


def needs_answers(name: str) -> bool:
    """Whether a reward compares with what people wrote."""
    return name == "rouge" or name.startswith("judge:")


def overlapping(answers: Mapping[str, str]) -> Reward:
    """ROUGE-L with what a person wrote to each prompt: a proxy."""
    return lambda prompts, completions: overlap.rouge(completions, [answers[p] for p in prompts])["rougeL"]


def judged(judge: Judge, answers: Mapping[str, str], counts: dict[str, int]) -> Reward:
    """How a judge prefers a completion to what a person wrote to its prompt: 0, 0.25, ... 1.

    Where few completions have no verdict (one in `_LOST` at most) these count as ties, as neither a win
    nor a loss; where more have none, all of them are NaN, which fails their lane.

    Args:
      judge: see `Judge`.
      answers: what people wrote, by prompt.
      counts: is told how many verdicts there were, and how many replies were none.
    """

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        verdicts = judge.compare(prompts, completions, [answers[prompt] for prompt in prompts])
        missing = ~np.isfinite(verdicts.win)
        counts["completions judged"] = counts.get("completions judged", 0) + len(missing)
        for what in ("unparseable", "unanswered"):
            counts[what] = counts.get(what, 0) + int(getattr(verdicts, what).sum())
        few = missing.sum() * _LOST <= len(missing)
        return np.asarray(np.where(missing & few, 0.5, verdicts.win), np.float32)

    return reward


def entry_point(module: str, function: str) -> Reward:
    """`score(prompts, completions) -> [n]` of a module, which is also sought in the current folder.

    Raises:
      UserError: no such module or function, or, when it is called, that it failed or did not give one
        number for each text.
    """
    name = f"{module}:{function}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"There is no Python module {module!r} for the reward {name}: write module:function, with "
                "the module installed or in the current folder."
            ) from None
        raise UserError(f"The reward's module {module} cannot be imported ({error}).") from error
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"The reward's module {module} cannot be imported ({_said(error)}).") from error
    score = getattr(found, function, None)
    if not callable(score):
        callables = [key for key, value in vars(found).items() if callable(value)]
        raise UserError(f"{module} has no function {function!r}.{nearest(function, callables)}")

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        try:
            values = np.asarray(score(list(prompts), list(completions)), np.float32)
        except Exception as error:  # whatever a user's function raises
            raise UserError(f"The reward {name} failed ({_said(error)}).") from error
        if values.shape != (len(completions),):
            raise UserError(
                f"The reward {name} must give {len(completions)} numbers, one a completion, and gave an "
                f"array of shape {values.shape}."
            )
        return values

    return reward


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"


@dataclass(frozen=True)
class Classifier:
    """A reward that a classifier gives; see `classifier`.

    Attributes:
      score: of texts, and how many of them were cut.
      counts: is told how many texts were scored, and how many cut.
    """

    score: Callable[[Sequence[str]], tuple[np.ndarray, int]]
    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """See `tasks.types.Reward`."""
        values, cut = self.score([a + b for a, b in zip(prompts, completions, strict=True)])
        for what, count in (("texts scored", len(values)), ("of them cut", cut)):
            self.counts[what] = self.counts.get(what, 0) + count
        return values


def counted(reward: Reward, counts: dict[str, int]) -> Reward:
    """The same reward; `counts` is told what a classifier scores and cuts."""
    return replace(reward, counts=counts) if isinstance(reward, Classifier) else reward


def classifier(source: str) -> Classifier:
    """The probability of a classifier's positive label for prompt and completion, or its only logit.

    The positive label is the one whose name begins with `pos`, or the last. A text longer than the
    model's positions loses its beginning, which is the prompt's, and is counted.

    Args:
      source: a folder as Transformers saves it, or an id on the hub.

    Raises:
      UserError: there is no such model, it is no classifier, or it has no tokenizer.
    """
    from discojax.data import hub_tokenizers
    from discojax.policies import pretrained
    from discojax.policies.encoder import Encoder

    loaded = pretrained.load(source)
    if not isinstance(loaded.policy, Encoder):
        raise UserError(f"{source} is a language model; as a reward give a classifier, such as a RoBERTa.")
    tokenizer = hub_tokenizers.encoder(loaded.source)
    graph, weights = nnx.split(loaded.policy)
    config = loaded.policy.config
    tokenizer.enable_truncation(config.max_length, direction="left")  # the right is what is to be scored
    positive = _positive(loaded.hf_config, config.labels)

    @jax.jit
    def run(weights: Any, ids: Any, lengths: Any) -> Any:
        logits = nnx.merge(graph, weights)(ids, lengths)
        return logits[:, 0] if config.labels == 1 else jax.nn.softmax(logits)[:, positive]

    def score(texts: Sequence[str]) -> tuple[np.ndarray, int]:
        encodings = tokenizer.encode_batch(list(texts))
        rows = [encoding.ids for encoding in encodings]
        values = np.zeros(len(rows), np.float32)
        order = np.argsort([len(row) for row in rows])  # texts of like length are padded together
        for start in range(0, len(rows), _ROWS):
            chosen = order[np.minimum(np.arange(start, start + _ROWS), len(rows) - 1)]
            longest = max(len(rows[i]) for i in chosen)
            width = min(-(-longest // _STEP) * _STEP, config.max_length)
            ids = np.zeros((_ROWS, width), np.int32)
            for place, i in enumerate(chosen):
                ids[place, : len(rows[i])] = rows[i]
            lengths = np.asarray([max(len(rows[i]), 1) for i in chosen], np.int32)
            values[chosen] = np.asarray(run(weights, ids, lengths))
        return values, sum(bool(encoding.overflowing) for encoding in encodings)

    return Classifier(score)


def _positive(config: Mapping[str, Any], labels: int) -> int:
    names = json.loads(json.dumps(config.get("id2label") or {}))
    for number, name in names.items():
        if str(name).lower().startswith("pos"):
            return int(number)
    return labels - 1
