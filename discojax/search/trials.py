"""What a search is about, as plain data: who competes, what each goes through, what was measured.

Importing this module imports no JAX, so that what only reads a run is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from discojax.search.statistics import Comparison, Estimate, Samples

if TYPE_CHECKING:
    from discojax.candidates import Program

__all__ = ["SEARCH", "SFT", "Contender", "Control", "Measured", "Trial"]

SFT = "sft"
"""The name under which the untrained policy is measured: a lane of no steps."""
SEARCH = "search"
"""The arm that is not a control."""


@dataclass(frozen=True)
class Contender:
    """An objective that competes: from the library, proposed, given by the user, or tuned.

    `learning_rate` is its own where the control of tuned baselines gives it one; None is the run's.
    """

    name: str
    program: Program
    origin: str
    parents: tuple[str, ...] = ()
    operator: str = ""
    thought: str = ""
    learning_rate: float | None = None


@dataclass(frozen=True)
class Trial:
    """What every contender of one round goes through.

    Attributes:
      rung: of racing, from 0; it tells measurements of otherwise equal settings apart.
      task, split: what is trained on and which prompts measure it.
      steps, betas, seeds: a lane each beta and seed, of that many steps.
      prompts: how many of the split's prompts.
    """

    rung: int
    task: str
    split: str
    steps: int
    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: int


class Measured(NamedTuple):
    """A round's measurements.

    Attributes:
      samples: reward and KL of each contender, `[betas, seeds, prompts]`, NaN where it diverged.
      sft: the SFT policy's reward on the same prompts, `[prompts]`, its draws averaged over seeds.
      sft_by_seed: the same by seed, `[seeds, prompts]`.
    """

    samples: dict[str, Samples]
    sft: np.ndarray
    sft_by_seed: np.ndarray


@dataclass(frozen=True)
class Control:
    """One line of the table of controls; the search itself is the first.

    Attributes:
      name: "search", or one of `search.controls`.
      proposed, accepted: candidates.
      lane_steps: optimisation steps that its candidates were given, elites included.
      best: the objective that its elites' measurements put first; "" if none trained.
      comparison: of that one with the baseline, held out, by itself.
      lead: how far the search's best lies above this one's, held out; None for the search.
    """

    name: str
    proposed: int
    accepted: int
    lane_steps: int
    best: str = ""
    comparison: Comparison | None = None
    lead: Estimate | None = None
