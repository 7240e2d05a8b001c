"""The embedded proposer: genetic programming on loss graphs, seeded with the library.

It needs no key and no network. What it writes is candidate text that goes through the gate like a
language model's; what it reads of the past is text too, read by the gate's first stages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from discojax import objectives
from discojax.candidates import CandidateError, GraphError, Node, from_graph, parse, to_source
from discojax.candidates.graph import operations
from discojax.errors import UserError, nearest
from discojax.proposers import grammar, selection, variation
from discojax.proposers.novelty import TOLERANCE, Known
from discojax.proposers.selection import Member
from discojax.proposers.types import Proposal, Scored
from discojax.proposers.variation import Change

__all__ = ["OPERATORS", "Evolution"]

OPERATORS: Mapping[str, float] = {
    "fresh": 2.0,
    "mutate": 3.0,
    "crossover": 2.0,
    "tune": 1.5,
    "simplify": 1.0,
    "mix": 2.0,
    "temper": 1.0,
}
"""How often each operator is used before anything is known of what it gains."""

_VERBS = {
    "fresh": "From the grammar,",
    "mutate": "A mutation of",
    "crossover": "A crossover of",
    "tune": "A tuning of",
    "simplify": "A simplification of",
    "mix": "A mixture of",
    "temper": "A tempering of",
}
_ALONE: Mapping[str, Callable[[Node, random.Random], Change | None]] = {
    "mutate": variation.mutate,
    "tune": variation.tune,
    "simplify": variation.simplify,
    "temper": variation.temper,
}
_IN_PAIRS: Mapping[str, Callable[[Node, Node, random.Random], Change | None]] = {
    "crossover": variation.crossover,
    "mix": variation.mix,
}
_TRIES = 12  # of one operator, before another is drawn
_DRAWS = 60  # of operators for one proposal, before giving up
_LONGEST_STEM = 14


@dataclass(frozen=True)
class Evolution:
    """Proposes losses by evolution; `propose` is a pure function of its arguments.

    Attributes:
      selection: whether the past matters. Without it parents are drawn from the library alone, all
        alike, and operators by their prior weights: the control that evolution must beat.
      library: names of the losses to start from; all by default.
      max_operations: the most operators a proposal may have.
      operators: prior weights of the operators, by name; one that is left out is not used.
      tournament: how many are drawn for a parent's place.
      explore: how often a parent is any loss instead, measured or not.
      novelty: a loss is a duplicate if every slope is this near to a known one's, in units of the
        mean slope. Scaling a loss changes nothing.

    Raises:
      UserError: for an unknown operator or library loss, or if no operator is left.
    """

    selection: bool = True
    library: tuple[str, ...] = ()
    max_operations: int = 40
    operators: Mapping[str, float] = field(default_factory=lambda: OPERATORS, hash=False)
    tournament: int = 4
    explore: float = 0.25
    novelty: float = TOLERANCE

    def __post_init__(self) -> None:
        for name in self.operators:
            if name not in OPERATORS:
                raise UserError(
                    f"There is no operator {name!r} of evolution.{nearest(name, OPERATORS)} "
                    f"Choose among {', '.join(OPERATORS)}."
                )
        if not any(weight > 0 for weight in self.operators.values()):
            raise UserError("Evolution needs an operator with a weight above 0.")
        selection.library(self._names)

    @property
    def name(self) -> str:
        """What archives and reports call it."""
        return "evolution" if self.selection else "random_mutation"

    @property
    def _names(self) -> tuple[str, ...]:
        return self.library or tuple(objectives.names())

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        """New losses as text, none of them a program or a behaviour that the history or the library has.

        Asked for fewer with the same history and seed, it gives the first of the same list.

        Args:
          history: everything tried so far, in the order it was tried.
          count: how many to propose.
          seed: of the randomness.

        Returns:
          `count` proposals; fewer only if nothing new could be found within `max_operations`.
        """
        rng = random.Random(f"{seed} {len(history)}")
        seeds = selection.library(self._names)
        known = Known((*seeds, *selection.library(tuple(objectives.names()))), self.novelty)
        for past in history:
            known.add(past.name, selection.read(past.source))
        if self.selection:
            pool = selection.members(history, seeds)
            weights = selection.operator_weights(history, self.operators)
        else:
            pool, weights = list(seeds), dict(self.operators)
        scored = [member for member in pool if self.selection and member.score is not None]
        noise = selection.resolutions(history)

        def parent() -> Member:
            if not scored or rng.random() < self.explore:
                return rng.choice(pool)
            return selection.tournament(scored, self.tournament, noise, rng)

        proposals: list[Proposal] = []
        for _ in range(count):
            for _ in range(_DRAWS):
                operator = rng.choices(list(weights), list(weights.values()))[0]
                drawn = (self._draw(operator, parent, known, rng) for _ in range(_TRIES))
                proposal = next((p for p in drawn if p is not None), None)
                if proposal is not None:
                    proposals.append(proposal)
                    break
            else:
                return proposals
        return proposals

    def _draw(
        self, operator: str, parent: Callable[[], Member], known: Known, rng: random.Random
    ) -> Proposal | None:
        """One throw of the dice: a proposal that is new and looks trainable, or None."""
        parents = [parent() for _ in range(0 if operator == "fresh" else 2 if operator in _IN_PAIRS else 1)]
        if len({member.graph for member in parents}) < len(parents):
            return None
        try:
            stems, change = _vary(operator, parents, rng)
            if change is None:
                return None
            graph = from_graph(change.graph).graph
            if graph.shape != "batch" or operations(graph) > self.max_operations or not known.is_new(graph):
                return None
            name = known.name("_".join((operator, *stems)), graph)
            thought = f"{_VERBS[operator]} {' and '.join(stems)}: {change.what}."
            source = to_source(graph, name, thought)
            if parse(source).graph != graph:
                return None
        except (GraphError, CandidateError):  # a constant out of range, or a text too long
            return None
        known.add(name, graph)
        return Proposal(name, source, operator, tuple(member.name for member in parents), thought)


def _vary(operator: str, parents: Sequence[Member], rng: random.Random) -> tuple[list[str], Change | None]:
    stems = [_stem(member.name) for member in parents]
    one, other = [*(member.graph for member in parents), None, None][:2]
    if one is None:
        word, graph = grammar.loss(rng)
        return [word], Change(graph, grammar.DESCRIPTIONS[word])
    if other is None:
        return stems, _ALONE[operator](one, rng)
    return stems, _IN_PAIRS[operator](one, other, rng)


_OWN_NAME = re.compile(rf"(?:{'|'.join(OPERATORS)})_(.+)_[0-9a-f]{{4,}}")


def _stem(name: str) -> str:
    """A short word for a parent, also of names that a model made up: `mix_dpo_exp_3f2a` gives `dpo_exp`."""
    own = _OWN_NAME.fullmatch(name)
    words = re.sub(r"[^a-z0-9]+", "_", (own[1] if own else name).lower()).strip("_")
    if len(words) > _LONGEST_STEM:
        words = words[:_LONGEST_STEM].rpartition("_")[0] or words[:_LONGEST_STEM]
    return words.strip("_") or "loss"
