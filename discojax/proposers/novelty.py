"""What is known already: programs, behaviours and names, so that nothing is proposed or trained twice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from discojax.candidates import Node
from discojax.proposers import screening
from discojax.proposers.selection import Member

__all__ = ["TOLERANCE", "Known"]

TOLERANCE = 0.02
"""How near every slope of two losses must be for them to train alike, in units of the mean slope."""


class Known:
    """A growing set of losses by name, program and behaviour.

    Attributes:
      tolerance: two losses are the same if every slope of the one is this near to the other's, in
        units of the mean slope. Scaling a loss changes nothing.
    """

    def __init__(self, members: Iterable[Member] = (), tolerance: float = TOLERANCE):
        self.tolerance = tolerance
        self.names: set[str] = set()
        self._programs: dict[Node, str] = {}
        self._behaved: list[str] = []
        self._behaviours = np.empty((16, screening.SLOPES), np.float32)
        for member in members:
            self.add(member.name, member.graph)

    def add(self, name: str, graph: Node | None) -> None:
        """Notes a loss; None for one that is no program, of which the name is taken all the same."""
        self.names.add(name)
        if graph is None or graph in self._programs:
            return
        self._programs[graph] = name
        behaviour = screening.behaviour(graph)
        if behaviour is not None:
            count = len(self._behaved)
            if count == len(self._behaviours):
                self._behaviours = np.concatenate([self._behaviours, np.empty_like(self._behaviours)])
            self._behaviours[count] = behaviour
            self._behaved.append(name)

    def twin(self, graph: Node) -> str | None:
        """The known loss that is the same program, or trains every policy alike; None if there is none."""
        if graph in self._programs:
            return self._programs[graph]
        behaviour = screening.behaviour(graph)
        if behaviour is None:
            return None
        gaps = screening.gaps(behaviour, self._behaviours[: len(self._behaved)])
        return self._behaved[int(gaps.argmin())] if (gaps < self.tolerance).any() else None

    def is_new(self, graph: Node) -> bool:
        """Whether it would train, and as nothing known does."""
        return screening.behaviour(graph) is not None and self.twin(graph) is None

    def name(self, base: str, graph: Node) -> str:
        """`base` and as many digits of the program's hash as make it the only one."""
        digest = graph.digest.hex()
        return next(name for n in range(4, 65) if (name := f"{base}_{digest[:n]}") not in self.names)
