"""What a preference objective is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float, Int

__all__ = ["ARGUMENTS", "LogProbs", "Objective"]

ARGUMENTS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
    "beta",
    "chosen_lengths",
    "rejected_lengths",
    "progress",
)
"""The arguments a loss may name. The first five always, in this order; the rest if it wants them."""


class LogProbs(NamedTuple):
    """Log-probabilities of a batch of preference pairs, a pytree.

    The first four are summed over completion tokens, in nats, float32; the lengths count
    completion tokens. The batch is the **global** one: some losses use its statistics.
    """

    policy_chosen: Float[Array, " batch"]
    policy_rejected: Float[Array, " batch"]
    reference_chosen: Float[Array, " batch"]
    reference_rejected: Float[Array, " batch"]
    chosen_length: Int[Array, " batch"]
    rejected_length: Int[Array, " batch"]


@dataclass(frozen=True)
class Objective:
    """A preference loss: one value per pair, from log-probabilities and beta.

    Attributes:
      name: how users and reports call it.
      function: the loss over the arrays of `ARGUMENTS`, by keyword.
      arguments: which of `ARGUMENTS` it takes.
      source: its text in the candidate language (`discojax.candidates`).
      settings: values of the constants its text names, such as `label_smoothing`.
      formula: one line of mathematics.
      reference: the paper, its year and equation.
    """

    name: str
    function: Callable[..., Array] = field(repr=False)
    arguments: tuple[str, ...] = ARGUMENTS[:5]
    source: str = field(default="", repr=False)
    settings: Mapping[str, float] = field(default_factory=dict)
    formula: str = ""
    reference: str = ""

    def __call__(
        self, logps: LogProbs, beta: float | Array, progress: float | Array = 0.0
    ) -> Float[Array, " batch"]:
        """The loss of each pair, float32 `[batch]`; `progress` is the fraction of training done."""
        import jax.numpy as jnp  # deferred: listing objectives must not wait for JAX

        given: dict[str, Any] = dict(
            zip(ARGUMENTS, (*logps[:4], beta, *logps[4:], progress), strict=True)
        )
        inputs = {name: jnp.asarray(given[name], jnp.float32) for name in self.arguments}
        return self.function(**inputs)
