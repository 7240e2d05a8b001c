"""Proposing: ask, gate, note everything. What the archive already has is not asked for again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from discojax import candidates, objectives
from discojax.candidates import CheckResult, Program
from discojax.proposers import selection
from discojax.proposers.novelty import Known
from discojax.proposers.selection import Member
from discojax.proposers.types import Proposal, Proposer, Scored
from discojax.search import archive as archives
from discojax.search.archive import Archive, Attempt
from discojax.search.statistics import Comparison
from discojax.search.trials import Contender

__all__ = ["Notebook", "Rung", "admit_library", "history", "propose"]

_TRIES = 6  # proposals asked for at most, for each one wanted


class Rung(NamedTuple):
    """What is known of one rung, over all generations: on how much it measures, and comparisons by name."""

    seeds: int
    steps: int
    comparisons: Mapping[str, Comparison]


class Notebook:
    """The attempts of one search, in order, as the archive has them; in memory, so that none is read twice.

    Searches that share an archive (`search.controls`) know the library and nothing of each other: each
    has attempt numbers of its own, `archive.NUMBERS * place` and up, and its own prefix of names.

    Args:
      archive: where they are kept.
      place: 0 for the search itself, whose attempts begin with the library's.
      prefix: of the names of its attempts.

    Attributes:
      next_number: of the attempt to come.
      attempts: in order, the library's first.
      numbers, names: of attempts, by name and by number.
      programs: names of the accepted ones, by hash.
    """

    def __init__(self, archive: Archive, place: int = 0, prefix: str = ""):
        self.archive, self.prefix = archive, prefix
        self.next_number = first = archives.NUMBERS * place
        self.attempts: list[Attempt] = []
        self.numbers: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.programs: dict[str, str] = {}
        self._known: Known | None = None
        for attempt in archives.attempts(archive):
            mine = first <= attempt.number < first + archives.NUMBERS
            if mine or attempt.operator == "library":
                self._note(attempt)

    def of(self, generation: int) -> list[Attempt]:
        """Attempts of one generation; the library's are those of generation 0."""
        return [attempt for attempt in self.attempts if attempt.generation == generation]

    def add(self, new: Sequence[Attempt]) -> None:
        """Notes attempts, all of them or none: the archive has them before anything is made of them."""
        archives.add_attempts(self.archive, new)
        for attempt in new:
            self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.next_number = max(self.next_number, attempt.number + 1)
        self.numbers[attempt.name] = attempt.number
        self.names[attempt.number] = attempt.name
        if attempt.status == "accepted" and attempt.hash:
            self.programs.setdefault(attempt.hash, attempt.name)
            if self._known is not None:
                self._known.add(attempt.name, selection.read(attempt.source or ""))

    def behaviours(self) -> Known:
        """The accepted ones by what they do to a policy; made when first asked for."""
        if self._known is None:
            accepted = (attempt for attempt in self.attempts if attempt.status == "accepted")
            graphs = ((attempt.name, selection.read(attempt.source or "")) for attempt in accepted)
            self._known = Known(Member(name, graph) for name, graph in graphs if graph is not None)
        return self._known


def admit_library(archive: Archive, names: Sequence[str]) -> list[Contender]:
    """The library's losses as contenders, noted as the first attempts."""
    notebook = Notebook(archive)
    known = set(notebook.numbers)
    contenders: list[Contender] = []
    new: list[Attempt] = []
    for name in names:
        objective = objectives.get(name)
        program = candidates.from_function(objective)
        contenders.append(Contender(objective.name, program, "library"))
        if objective.name not in known:
            new.append(
                Attempt(
                    number=notebook.next_number + len(new),
                    generation=0,
                    name=objective.name,
                    operator="library",
                    status="accepted",
                    thought=objective.reference,
                    source=program.source,
                    hash=program.hash,
                    proposer="library",
                )
            )
    notebook.add(new)
    return contenders


def history(notebook: Notebook, rungs: Sequence[Rung] = (), *, before: int = 1_000_000) -> list[Scored]:
    """What was tried in the generations `before` one, as a proposer is shown it.

    Args:
      notebook: of the search.
      rungs: from the first, what may be known of each. A loss is shown with its score at the highest; one
        that has none is "pending", whether its lanes have ended or not: what a proposer is shown does not
        depend on the clock.
      before: what the generation itself has tried is left out, so that a resumed run is shown what it
        was shown the first time.
    """
    past = [attempt for attempt in notebook.attempts if attempt.generation < before]
    return [_shown(attempt, notebook.names, rungs) for attempt in past]


def _shown(attempt: Attempt, names: Mapping[int, str], rungs: Sequence[Rung] = ()) -> Scored:
    shown = Scored(
        name=attempt.name,
        source=attempt.source or "",
        status="pending" if attempt.status == "accepted" else attempt.status,
        reason=attempt.reason or "",
        parents=tuple(names[number] for number in attempt.parents if number in names),
        operator=attempt.operator,
        model=attempt.model,
    )
    reached = [number for number, rung in enumerate(rungs) if attempt.name in rung.comparisons]
    if attempt.status != "accepted" or not reached:
        return shown
    number = reached[-1]
    rung = rungs[number]
    comparison = rung.comparisons[attempt.name]
    if comparison.verdict == "failed":
        where = f" at rung {number}" if number else ""
        reason = f"{comparison.failures} of {comparison.lanes} lanes diverged{where}"
        return replace(shown, status="failed", reason=reason)
    shown = replace(shown, status="ok", score=0.0, rung=number, seeds=rung.seeds, steps=rung.steps)
    if comparison.verdict == "baseline":
        return shown
    first = rungs[0].comparisons[attempt.name].difference.value if number else None
    return replace(shown, score=comparison.difference.value, interval=comparison.interval, first_score=first)


def propose(
    notebook: Notebook,
    proposer: Proposer,
    past: Sequence[Scored],
    *,
    generation: int,
    wanted: int,
    seed: int,
    batch: int = 4,
    told: bool = True,
    go_on: Callable[[], bool] = lambda: True,
    heard: Callable[[Sequence[Proposal]], None] = lambda proposals: None,
) -> Iterator[Contender]:
    """Has `wanted` candidates proposed and accepted, and yields each as soon as it is.

    There are fewer only if the proposer runs dry or may not `go_on`. Each request is for what is still
    missing, at most `batch`. A resumed run takes the attempts that the archive has of this generation,
    then goes on with the request that follows them.

    Args:
      notebook: what was tried, and where new attempts go.
      proposer: who is asked.
      past: what it is shown of the generations before.
      generation: which one this is.
      wanted: accepted candidates.
      seed: of the proposer's randomness; every request has its own of it.
      batch: candidates asked for at once.
      told: whether a request shows what became of the requests before it.
      go_on: asked before each request.
      heard: told every reply before the gate is.
    """
    past, accepted = list(past), 0
    made = notebook.of(generation)
    while True:
        past += [_shown(attempt, notebook.names) for attempt in made if told]
        for attempt in made:
            if attempt.status == "accepted" and accepted < wanted:
                accepted += 1
                yield _contender(attempt)
        tries = len(notebook.of(generation))
        if accepted >= wanted or tries >= _TRIES * wanted or not go_on():
            return
        asked = _mixed(seed, generation, tries)
        proposals = proposer.propose(past, min(batch, wanted - accepted), asked)
        if not proposals:
            return
        heard(proposals)
        made = _gated(notebook, proposer.name, proposals, generation, asked)
        notebook.add(made)


def _gated(
    notebook: Notebook, proposer: str, proposals: Sequence[Proposal], generation: int, seed: int
) -> list[Attempt]:
    """The gate's verdicts on one reply, as attempts."""
    number, made = notebook.next_number, list[Attempt]()
    taken, programs = set(notebook.numbers), dict(notebook.programs)
    for proposal in proposals:
        result = None if proposal.unanswered else candidates.check(proposal.source)
        name = proposal.name
        if not name.startswith(notebook.prefix):
            name = notebook.prefix + name
        while name in taken:
            name += "_"
        attempt = Attempt(
            number=number + len(made),
            generation=generation,
            name=name,
            operator=proposal.operator,
            status="unanswered",
            parents=tuple(notebook.numbers[p] for p in proposal.parents if p in notebook.numbers),
            thought=proposal.thought,
            reason=proposal.unanswered,
            proposer=proposer,
            seed=seed,
            **proposal.provenance,
        )
        if result is not None:
            attempt = _judged(attempt, proposal.source, result, programs, notebook)
        made.append(attempt)
        taken.add(name)
        if (
            attempt.status == "accepted"
            and attempt.hash
            and result is not None
            and result.program is not None
        ):
            programs[attempt.hash] = name
            notebook.behaviours().add(name, result.program.graph)
    return made


def _judged(
    attempt: Attempt, source: str, result: CheckResult, programs: Mapping[str, str], notebook: Notebook
) -> Attempt:
    program = result.program
    attempt = replace(attempt, source=source, hash=None if program is None else program.hash)
    if not result.accepted or program is None:
        return replace(attempt, status="rejected", stage=result.stage, reason=result.reason)
    if program.hash in programs:
        return replace(attempt, status="duplicate", reason=f"the same program as {programs[program.hash]}")
    if twin := notebook.behaviours().twin(program.graph):
        return replace(attempt, status="duplicate", reason=f"the same slopes as {twin}, up to a factor")
    return replace(attempt, status="accepted", reason=None)


def _contender(attempt: Attempt) -> Contender:
    """An accepted attempt as a contender; its text passed the gate when it was first proposed."""
    assert attempt.source is not None
    program: Program = candidates.parse(attempt.source, attempt.name)
    return Contender(attempt.name, program, "proposed", operator=attempt.operator, thought=attempt.thought)


def _mixed(*parts: int) -> int:
    """One seed from several numbers."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part) % (2**31 - 1)
    return mixed
