"""Rewards of one's own: a Python function, or a classifier in Transformers' format.

What such a reward says is checked each time: as many numbers as texts. One that is not finite is a
failure of its lane, with the count of them, and never a zero.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from discojax.errors import UserError, nearest
from discojax.tasks.types import Reward

__all__ = ["classifier", "entry_point", "own_reward"]

_ROWS = 32  # texts a call
_STEP = 32  # texts are padded to a multiple of this many tokens, so that few lengths are compiled


def own_reward(name: str) -> Reward:
    """The reward that `evaluation.reward` names: `module:function`, or a classifier's folder or hub id.

    Raises:
      UserError: there is no such thing.
    """
    module, colon, function = name.partition(":")
    if colon and module != "hf":
        return entry_point(module, function)
    return classifier(function if colon else name)


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


def classifier(source: str) -> Reward:
    """The probability of a classifier's positive label for prompt and completion, or its only logit.

    The positive label is the one whose name begins with `pos`, or the last. A text longer than the
    model's positions loses its end.

    Args:
      source: a folder as Transformers saves it, or an id on the hub.

    Raises:
      UserError: there is no such model, it is no classifier, or it has no tokenizer.json.
    """
    from tokenizers import Tokenizer

    from discojax.policies import pretrained
    from discojax.policies.encoder import Encoder

    loaded = pretrained.load(source)
    if not isinstance(loaded.policy, Encoder):
        raise UserError(f"{source} is a language model; as a reward give a classifier, such as a RoBERTa.")
    file = loaded.source / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{file} is needed to read texts for the reward {source} ({error}).") from error
    graph, weights = nnx.split(loaded.policy)
    config = loaded.policy.config
    tokenizer.enable_truncation(config.max_length)
    positive = _positive(loaded.hf_config, config.labels)

    @jax.jit
    def run(weights: Any, ids: Any, lengths: Any) -> Any:
        logits = nnx.merge(graph, weights)(ids, lengths)
        return logits[:, 0] if config.labels == 1 else jax.nn.softmax(logits)[:, positive]

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        texts = [a + b for a, b in zip(prompts, completions, strict=True)]
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
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
        return values

    return reward


def _positive(config: Mapping[str, Any], labels: int) -> int:
    names = json.loads(json.dumps(config.get("id2label") or {}))
    for number, name in names.items():
        if str(name).lower().startswith("pos"):
            return int(number)
    return labels - 1
