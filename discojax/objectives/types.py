"""What a preference objective is given, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from discojax.errors import UserError

if TYPE_CHECKING:  # listing objectives must not wait for JAX
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

    Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      name: how users and reports call it; for a library loss, `get(name)` gives it back.
      function: the loss over the arrays of `ARGUMENTS`, by keyword.
      arguments: which of `ARGUMENTS` it takes.
      source: its text in the candidate language (`discojax.candidates`).
      settings: values of the constants its text names, such as `label_smoothing`.
      formula: one line of mathematics, in the letters of `registry.NOTATION`.
      reference: the paper, its year and equation.
      aliases: other names that mean the same.
      minimum_batch: how few pairs its batch statistics are defined for.
    """

    name: str
    function: Callable[..., Array] = field(repr=False)
    arguments: tuple[str, ...] = ARGUMENTS[:5]
    source: str = field(default="", repr=False)
    settings: Mapping[str, float] = field(default_factory=dict, hash=False)
    formula: str = ""
    reference: str = ""
    aliases: tuple[str, ...] = ()
    minimum_batch: int = 1

    def __call__(
        self, logps: LogProbs, beta: float | Array, progress: float | Array = 0.0
    ) -> Float[Array, " batch"]:
        """The loss of each pair, float32 `[batch]`.

        Args:
          logps: the batch; its lengths may be `None` for a loss that does not take them.
          beta: the strength of the penalty towards the reference, a scalar above 0.
          progress: the fraction of training done, 0 to 1.

        Raises:
          UserError: if the loss needs completion lengths that are `None`, or more pairs.
        """
        import jax.numpy as jnp

        given: dict[str, Any] = dict(zip(ARGUMENTS, (*logps[:4], beta, *logps[4:], progress), strict=True))
        absent = [name for name in self.arguments if given[name] is None]
        if absent:
            raise UserError(
                f"Loss {self.name!r} needs {' and '.join(absent)}: "
                "pass LogProbs with the completions' token counts."
            )
        inputs = {name: jnp.asarray(given[name], jnp.float32) for name in self.arguments}
        pairs = inputs[ARGUMENTS[0]].size
        if pairs < self.minimum_batch:
            raise UserError(
                f"Loss {self.name!r} uses the variance over the batch and needs at least "
                f"{self.minimum_batch} pairs in it, not {pairs}: raise the batch size."
            )
        return self.function(**inputs)
