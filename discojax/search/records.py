"""The archive's records: what is kept of a proposal and of an evaluation."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from discojax.parsing import PARSING
from discojax.proposers.types import Provenance

__all__ = ["NUMBERS", "Attempt", "Evaluation", "EvaluationKey", "columns_of", "plain", "unpack"]

NUMBERS = 1_000_000
"""Of attempts, for each arm: the search's begin at 0, those of its controls at multiples of this."""


@dataclass(frozen=True)
class Attempt(Provenance):
    """One proposal, whatever became of it, and which request it is from.

    Attributes:
      number: its place in the run, from 0, unique: proposing the same number twice is an error.
      generation: the round of search it was made in.
      name: how reports call it.
      operator: what was asked for: "fresh", "mutate", "crossover", ...
      status: "accepted", "rejected" (with `stage` and `reason`), "duplicate" (of an earlier one) or
        "unanswered" (a request that gave no candidate, with the `reason`).
      parents: numbers of the attempts it was made from.
      thought: the proposer's own words.
      source: the candidate's text; None if the reply held none.
      hash: canonical hash of the program; None if it never became one.
      stage: the gate's stage that rejected it.
      reason: why, in one sentence.
      proposer: "evolution", "gemini", ...
      seed: of the proposer's randomness.
      created: seconds since 1970; set when added if None.
      id: the database's own, set when read.
    """

    number: int
    generation: int
    name: str
    operator: str
    status: Literal["accepted", "rejected", "duplicate", "unanswered"]
    parents: tuple[int, ...] = ()
    thought: str = ""
    source: str | None = None
    hash: str | None = None
    stage: str | None = None
    reason: str | None = None
    proposer: str = ""
    seed: int | None = None
    created: float | None = None
    id: int | None = None


@dataclass(frozen=True)
class EvaluationKey:
    """What makes an evaluation the same one: no two have equal keys.

    Attributes:
      hash: canonical hash of the objective's program ("sft" for the untrained policy).
      objective: its name.
      task, split: what it was evaluated on, such as "imdb" and "search".
      rung: of racing, from 0; a final evaluation has its own.
      beta, seed, steps, learning_rate: of the lane.
    """

    hash: str
    objective: str
    task: str
    split: str
    rung: int
    beta: float
    seed: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Evaluation:
    """What one lane's policy measured, or that it could not be measured.

    Attributes:
      key: which lane.
      status: "ok", "diverged" (a NaN in training) or "failed" (anything else; `reason` says what).
      reward: mean over the prompts. None unless ok, as are all numbers below.
      kl: sequence KL(policy‖reference) over completion tokens, in nats.
      kl_per_token_reference: the DiscoPOP paper's KL(reference‖policy) per token, where measured.
      length: mean completion tokens.
      per_prompt: arrays `[prompts]`; if ok, at least "reward" and "kl".
      reason: for a failure.
      created: seconds since 1970; set when added if None.
    """

    key: EvaluationKey
    status: Literal["ok", "diverged", "failed"]
    reward: float | None = None
    kl: float | None = None
    kl_per_token_reference: float | None = None
    length: float | None = None
    per_prompt: Mapping[str, np.ndarray] = field(default_factory=dict)
    reason: str | None = None
    created: float | None = None


def plain(value: Any) -> Any:
    """`value` as JSON has it: a number that is not finite is null, a tuple a list."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def columns_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation's columns, its key's first.

    Raises:
      ValueError: if it is ok and lacks finite per-prompt arrays. The database checks the rest.
    """
    arrays = evaluation.per_prompt
    if evaluation.status == "ok":
        for name in ("reward", "kl"):
            if name not in arrays or not np.isfinite(arrays[name]).all():
                raise ValueError(
                    f"{evaluation.key.objective}: an ok evaluation needs a finite {name} per prompt"
                )
    numbers = ("reward", "kl", "kl_per_token_reference", "length")
    return {
        **asdict(evaluation.key),
        "status": evaluation.status,
        **{n: None if getattr(evaluation, n) is None else float(getattr(evaluation, n)) for n in numbers},
        "per_prompt": _pack(arrays) if arrays else None,
        "reason": evaluation.reason,
        "created": time.time() if evaluation.created is None else evaluation.created,
    }


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(x) for name, x in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(blob: bytes | None, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `per_prompt` blob, a compressed npz, all or those of `names`; none of none.

    Nothing in it is executed.
    """
    if blob is None:
        return {}
    with PARSING, np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if names is None or name in names}
