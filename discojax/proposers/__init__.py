"""Where candidates come from. A proposer writes text; the gate decides what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from discojax.proposers.choose import make_proposer
    from discojax.proposers.evolution import Evolution
    from discojax.proposers.language_model import LanguageModel
    from discojax.proposers.types import Ledger, Proposal, Proposer, Scored

__all__ = ["Evolution", "LanguageModel", "Ledger", "Proposal", "Proposer", "Scored", "make_proposer"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choose": ["make_proposer"],
        "evolution": ["Evolution"],
        "language_model": ["LanguageModel"],
        "types": ["Ledger", "Proposal", "Proposer", "Scored"],
    },
)
