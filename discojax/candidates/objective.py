"""A checked candidate as an objective, and the ways to one that need no checking process."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from discojax.candidates import canonical
from discojax.candidates import graph as graphs
from discojax.candidates.descriptor import Behaviour, behaviour
from discojax.candidates.errors import CandidateError
from discojax.candidates.graph import Apply, Constant, GraphError, Node
from discojax.candidates.latex import to_latex
from discojax.candidates.lowering import interpret, lower
from discojax.candidates.printer import to_source
from discojax.candidates.program import Translation, per_pair, translate
from discojax.candidates.syntax import check_syntax
from discojax.candidates.text import check_text
from discojax.objectives.machine import Code
from discojax.objectives.types import ARGUMENTS, Objective

__all__ = ["Program", "from_function", "from_graph", "parse", "read"]


def _call(graph: Node, **inputs):
    return interpret(graph, inputs)


@dataclass(frozen=True)
class Program(Objective):
    """An objective that is data: an expression graph, and what follows from it.

    Two programs are equal if they compute the same thing (`hash`), whatever they are called.

    Attributes:
      graph: the root of the canonical expression graph.
      lines: the source line of each node, for messages; not part of what the program is.
    """

    graph: Node = field(default=Constant(0.0), repr=False)
    lines: Mapping[Node, int] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.graph == other.graph

    def __hash__(self) -> int:
        return hash(self.graph)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical program, hexadecimal; equal for equal programs on any machine."""
        return self.graph.digest.hex()

    @functools.cached_property
    def code(self) -> Code:
        """The program for `machine.evaluate`."""
        return lower(self.graph)

    @functools.cached_property
    def batch_coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the batch."""
        return graphs.batch_coupled(self.graph)

    @functools.cached_property
    def complexity(self) -> int:
        """Operators plus constants."""
        return graphs.complexity(self.graph)

    @functools.cached_property
    def constants(self) -> tuple[float, ...]:
        """Its different constants, in the order of `code.constants`."""
        return graphs.constants(self.graph)

    @property
    def canonical_source(self) -> str:
        """The program printed from its graph."""
        return to_source(self.graph)

    @property
    def latex(self) -> str:
        """The program as mathematics."""
        return to_latex(self.graph)

    @functools.cached_property
    def behaviour(self) -> Behaviour:
        """Value and slope on a fixed grid of margins, for novelty and plots."""
        return behaviour(self.graph)

    def with_constants(self, values: Sequence[float]) -> Program:
        """The program with other constants; its source is printed anew.

        Raises:
          GraphError: for the wrong number of values, or one that is not representable.
        """
        return from_graph(canonical.with_constants(self.graph, values), self.name)


def read(source: object) -> tuple[str, Translation]:
    """Stages 1 to 3: the function's own name, and the program.

    Raises:
      CandidateError: at stage "text", "syntax" or "program".
    """
    return _read(check_text(source))


@functools.lru_cache(maxsize=256)  # the gate, the archive and the race each read a text that is proposed
def _read(text: str) -> tuple[str, Translation]:
    syntax = check_syntax(text)
    return syntax.name, translate(syntax)


def parse(source: str, name: str | None = None) -> Program:
    """Stages 1 to 3 of `compile`: milliseconds, no JAX tracing, no checking process.

    Args:
      source: candidate text.
      name: how the objective is called; by default as the function in the text.

    Raises:
      CandidateError: at stage "text", "syntax" or "program".
    """
    own, translation = read(source)
    return _program(translation.graph, name or own, source, translation.lines)


def from_graph(graph: Node, name: str = "loss") -> Program:
    """The program of a graph built by hand or by mutation; its source is printed from it.

    A graph that is a batch mean is taken for the loss of each pair, as in `parse`.

    Raises:
      GraphError: if it is too large, a comparison, or independent of the policy.
    """
    graph = per_pair(graph)
    graphs.check_size(graph)
    if graph.kind != "number":
        raise GraphError("a loss is a number, not a comparison")
    if not set(graphs.arguments(graph)) & set(ARGUMENTS[:2]):
        raise GraphError("the loss does not depend on the policy's log-probabilities")
    return _program(graph, name, to_source(graph), {})


def from_function(objective: Objective) -> Program:
    """The program of a library objective, read from its source text with its settings bound.

    The text is the library's own, so its length and characters are not checked, and nothing is
    traced; the tests check every library loss through all five stages.

    Raises:
      CandidateError: if the text is not in the candidate language.
    """
    import textwrap

    settings = {name: float(value) for name, value in objective.settings.items()}
    text = textwrap.dedent(objective.source)
    if not text.strip():
        raise CandidateError("text", None, f"the objective {objective.name} has no source text")
    translation = translate(check_syntax(text, settings), settings)
    program = _program(translation.graph, objective.name, objective.source, translation.lines)
    return replace(
        program,
        settings=objective.settings,
        formula=objective.formula,
        reference=objective.reference,
        aliases=objective.aliases,
        minimum_batch=max(program.minimum_batch, objective.minimum_batch),
    )


def _program(graph: Node, name: str, source: str, lines: Mapping[Node, int]) -> Program:
    read = graphs.arguments(graph)
    extra = [argument for argument in ARGUMENTS[5:] if argument in read]
    unbiased = any(isinstance(n, Apply) and n.operator.endswith("_unbiased") for n in graphs.nodes(graph))
    return Program(
        name=name,
        function=functools.partial(_call, graph),
        arguments=(*ARGUMENTS[:5], *extra),
        source=source,
        minimum_batch=2 if unbiased else 1,
        graph=graph,
        lines=lines,
    )
