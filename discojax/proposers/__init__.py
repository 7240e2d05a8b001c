"""Where candidates come from. A proposer writes text; the gate decides what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discojax.proposers.types import Proposal, Proposer, Scored

if TYPE_CHECKING:
    from discojax.proposers.evolution import Evolution

__all__ = ["Evolution", "Proposal", "Proposer", "Scored"]


def __getattr__(name: str) -> Any:
    if name == "Evolution":  # it imports JAX, which naming a proposer must not wait for
        from discojax.proposers.evolution import Evolution

        return Evolution
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
