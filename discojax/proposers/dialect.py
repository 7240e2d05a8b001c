"""What a server has been found to understand: features it refuses are asked for in a plainer way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from discojax.proposers.faults import RefusalError

__all__ = ["Dialect", "Feature"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feature:
    """Something a server may refuse.

    Attributes:
      ways: of asking for it, the best first; a refusal of the last one stands.
      words: that name it in a refusal.
      suspected: whether to blame it for a refusal that names nothing known.
    """

    ways: tuple[str, ...]
    words: tuple[str, ...]
    suspected: bool = False

    def after(self, way: str) -> Feature:
        """This feature with only the ways that come after one."""
        return replace(self, ways=self.ways[self.ways.index(way) + 1 :])


class Dialect:
    """Asks in the best way that the server takes, and remembers it. Safe to use from several threads."""

    def __init__(self, features: Mapping[str, Feature], server: str):
        self._features = features
        self._server = server
        self._known = dict.fromkeys(features, 0)
        self._lock = threading.Lock()

    @property
    def ways(self) -> dict[str, str]:
        """For each feature, the way in which it is asked for now."""
        return {name: self._features[name].ways[level] for name, level in self._known.items()}

    def settle(self, name: str, way: str) -> None:
        """Asks for a feature in this way from now on."""
        with self._lock:
            self._known[name] = max(self._known[name], self._features[name].ways.index(way))

    def attempt(self, used: Collection[str], send: Callable[[dict[str, str]], T]) -> T:
        """What `send` gives for the best ways that are not refused.

        Args:
          used: the features that this request has.
          send: sends it in the given ways.

        Raises:
          ClientError: what `send` raises, a `RefusalError` only if no way is left.
        """
        levels = dict(self._known)
        lowered: dict[str, str] = {}
        while True:
            try:
                result = send({name: self._features[name].ways[at] for name, at in levels.items()})
            except RefusalError as refusal:
                blamed = self._blamed(refusal.said, used, levels)
                if blamed is None:
                    raise
                lowered.setdefault(blamed, str(refusal))
                levels[blamed] += 1
                continue
            # Only now: a request refused in every way says nothing about the ways.
            for name, why in lowered.items():
                self.settle(name, self._features[name].ways[levels[name]])
                _log.info("%s: %s is now %s: %s", self._server, name, self.ways[name], why)
            return result

    def _blamed(self, said: str, used: Collection[str], levels: Mapping[str, int]) -> str | None:
        left = [n for n in self._features if n in used and levels[n] + 1 < len(self._features[n].ways)]
        named = [name for name in left if any(word in said for word in self._features[name].words)]
        suspected = [name for name in left if self._features[name].suspected]
        return next(iter(named or suspected), None)
