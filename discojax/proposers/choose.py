"""The one place where `search.proposer` becomes a proposer."""

from __future__ import annotations

from collections.abc import Sequence

from discojax.config import Config
from discojax.config import Proposer as Settings
from discojax.errors import UserError
from discojax.proposers.budget import price_of
from discojax.proposers.evolution import Evolution
from discojax.proposers.types import Ledger, Proposer

__all__ = ["DEFAULT_MODEL", "make_proposer"]

DEFAULT_MODEL = "gemini-flash-latest"
"""An alias that Google moves to its newest fast model, so that it does not go out of service."""


def make_proposer(config: Config, library: Sequence[str], *, ledger: Ledger | None = None) -> Proposer:
    """The proposer that the config names. For a new run, a model's server is asked whether it is there.

    Args:
      config: `search.proposer`, and `proposer` and `budget` for what it needs.
      library: names of the losses that the search starts from.
      ledger: where paid requests are kept; language models need one.

    Raises:
      UserError: if a setting or an SDK is missing, or does not fit the proposer; for a language model
        also if its key, its name or its address is wrong.
    """
    name = config.search.proposer
    if name in ("evolution", "random_mutation"):
        return Evolution(selection=name == "evolution" and config.proposer.history, library=tuple(library))
    if name == "replay":
        from discojax.proposers.replay import Replay, recorded

        return Replay(recorded(config.proposer.path))
    if name == "file":
        from discojax.proposers.folder import read_folder

        return read_folder(config.proposer.path)
    if ledger is None:
        raise ValueError(f"{name} pays for its requests, so it needs a ledger")
    return _language_model(config, ledger)


def _language_model(config: Config, ledger: Ledger) -> Proposer:
    from discojax.proposers.connect import connect
    from discojax.proposers.language_model import LanguageModel
    from discojax.proposers.paying import Purse
    from discojax.proposers.retry import Patience

    settings, server = config.proposer, config.search.proposer
    assert server in ("gemini", "gemini-legacy", "openai")
    models = settings.models
    options = {"api_version": settings.api_version} if server == "gemini" else {}
    if not options and settings.api_version != Settings().api_version:
        raise UserError(f"proposer.api_version is of search.proposer=gemini, not of {server}: leave it out.")
    if not models:
        if server == "openai":
            raise UserError(
                "search.proposer=openai needs a model: set proposer.models, for instance to "
                '["qwen3:8b"] with proposer.base_url=http://localhost:11434/v1 for Ollama.'
            )
        models = (DEFAULT_MODEL,)
    unpriced = [model for model in models if not settings.price and price_of(server, model) is None]
    if unpriced and config.budget.dollars is not None and config.budget.tokens is None:
        raise UserError(
            f"The price of {unpriced[0]!r} is not known, so budget.dollars cannot hold: set proposer.price "
            "to [IN, OUT], dollars for a million tokens, or budget.tokens."
        )
    clients = tuple(
        connect(
            server,
            model,
            base_url=settings.base_url or None,
            key_variable=settings.key_variable or None,
            thinking=settings.thinking,
            patience=Patience(attempts=settings.attempts, give_up_after=settings.failures),
            **options,
        )
        for model in dict.fromkeys(models)
    )
    if not ledger.spent().requests:  # a wrong key or name is told now, not after minutes of preparation
        for client in clients:
            client.probe()
    purse = Purse(config.budget, ledger, settings.price)
    return LanguageModel(clients, settings, purse, config.evaluation.confidence)
