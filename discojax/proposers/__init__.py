"""Where candidates come from. A proposer writes text; the gate decides what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from discojax.proposers.types import Proposal, Proposer, Scored

if TYPE_CHECKING:
    from discojax.proposers.evolution import Evolution

__all__ = ["Evolution", "Proposal", "Proposer", "Scored"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"evolution": ["Evolution"]})
