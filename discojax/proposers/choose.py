"""The one place where `search.proposer` becomes a proposer."""

from __future__ import annotations

from collections.abc import Sequence

from discojax.config import Config
from discojax.errors import UserError
from discojax.proposers.evolution import Evolution
from discojax.proposers.types import Ledger, Proposer

__all__ = ["make_proposer"]


def make_proposer(config: Config, library: Sequence[str], *, ledger: Ledger | None = None) -> Proposer:
    """The proposer that the config names. Nothing is sent yet.

    Args:
      config: `search.proposer`, and `proposer` and `budget` for what it needs.
      library: names of the losses that the search starts from.
      ledger: where paid requests are kept, which language models need.

    Raises:
      UserError: if a setting or an SDK is missing, or does not fit the proposer.
    """
    name = config.search.proposer
    if name in ("evolution", "random_mutation"):
        return Evolution(selection=name == "evolution" and config.proposer.history, library=tuple(library))
    raise UserError(f"search.proposer={name} is not there yet.")
