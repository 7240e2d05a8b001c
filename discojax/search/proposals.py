"""Proposing: ask, gate, note everything. What the archive already has is not asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from discojax import candidates, objectives
from discojax.candidates import Program
from discojax.proposers.types import Proposal, Proposer, Scored
from discojax.search import archive as archives
from discojax.search.archive import Archive, Attempt
from discojax.search.display import Bar
from discojax.search.laboratory import Contender
from discojax.search.statistics import Comparison, interval

__all__ = ["admit_library", "history", "propose"]

_TRIES = 6  # proposals asked for at most, for each one wanted


def admit_library(archive: Archive, names: Sequence[str]) -> list[Contender]:
    """The library's losses as contenders, noted as the first attempts."""
    contenders = []
    known = {attempt.name for attempt in archives.attempts(archive, operator="library")}
    for name in names:
        objective = objectives.get(name)
        program = candidates.from_function(objective)
        contenders.append(Contender(objective.name, program, "library"))
        if objective.name not in known:
            archives.add_attempt(
                archive,
                Attempt(
                    number=len(archives.attempts(archive)),
                    generation=0,
                    name=objective.name,
                    operator="library",
                    status="accepted",
                    thought=objective.reference,
                    source=program.source,
                    hash=program.hash,
                    proposer="library",
                ),
            )
    return contenders


def history(archive: Archive, comparisons: Mapping[str, Comparison], *, before: int) -> list[Scored]:
    """What was tried before a generation, as a proposer is shown it.

    Scores are differences to the baseline. What the generation itself has tried is left out, so
    that a resumed run is shown what it was shown the first time.
    """
    attempts = [attempt for attempt in archives.attempts(archive) if attempt.generation < before]
    names = {attempt.number: attempt.name for attempt in attempts}
    scored = []
    for attempt in attempts:
        comparison = comparisons.get(attempt.name)
        if attempt.status == "accepted" and comparison is None:
            continue  # admitted, not measured yet
        shown = Scored(
            name=attempt.name,
            source=attempt.source or "",
            status="ok" if attempt.status == "accepted" else attempt.status,
            reason=attempt.reason or "",
            parents=tuple(names[number] for number in attempt.parents),
            operator=attempt.operator,
        )
        if attempt.status == "accepted" and comparison is not None:
            shown = _with_score(shown, comparison)
        scored.append(shown)
    return scored


def _with_score(shown: Scored, comparison: Comparison) -> Scored:
    if comparison.verdict == "failed":
        return replace(
            shown, status="failed", reason=f"{comparison.failures} of {comparison.lanes} lanes diverged"
        )
    if comparison.verdict == "baseline":
        return replace(shown, score=0.0)
    return replace(shown, score=comparison.difference.value, interval=interval(comparison.difference))


def propose(
    archive: Archive,
    proposer: Proposer,
    past: Sequence[Scored],
    *,
    generation: int,
    wanted: int,
    seed: int,
    bar: Bar,
) -> list[Contender]:
    """Has `wanted` candidates proposed and accepted; fewer only if the proposer runs dry.

    Each round asks for what is still missing, and shows what became of the rounds before. A resumed
    run takes the attempts that the archive has of this generation, then goes on.
    """
    past = list(past)
    accepted: list[Contender] = []
    made = archives.attempts(archive, generation=generation)
    accepted += [_again(attempt) for attempt in made if attempt.status == "accepted"]
    past += [_seen(attempt) for attempt in made]
    bar.update(min(len(accepted), wanted))
    tries = len(made)
    while len(accepted) < wanted and tries < _TRIES * wanted:
        proposals = proposer.propose(past, wanted - len(accepted), _mixed(seed, generation, tries))
        if not proposals:
            break
        results = candidates.check_many(proposal.source for proposal in proposals)
        attempts: list[Attempt] = []
        for proposal, result in zip(proposals, results, strict=True):
            attempts.append(
                _attempt(archive, proposer, proposal, result, generation, len(attempts), attempts, seed)
            )
            if attempts[-1].status == "accepted":
                accepted.append(_again(attempts[-1], result.program))
        archives.add_attempts(archive, attempts)
        past += [_seen(attempt) for attempt in attempts]
        tries += len(attempts)
        bar.update(min(len(accepted), wanted))
    return accepted[:wanted]


def _attempt(
    archive: Archive,
    proposer: Proposer,
    proposal: Proposal,
    result: candidates.CheckResult,
    generation: int,
    offset: int,
    siblings: Iterable[Attempt],
    seed: int,
) -> Attempt:
    before = archives.attempts(archive)
    numbers = {attempt.name: attempt.number for attempt in before}
    known = {a.hash: a.name for a in (*before, *siblings) if a.hash and a.status == "accepted"}
    program = result.program
    status, stage, reason = "accepted", None, None
    if not result.accepted:
        status, stage, reason = "rejected", result.stage, result.reason
    elif program is not None and program.hash in known:
        status, reason = "duplicate", f"the same program as {known[program.hash]}"
    taken = {*numbers, *(a.name for a in siblings)}
    name = proposal.name
    while name in taken:
        name += "_"
    return Attempt(
        number=len(before) + offset,
        generation=generation,
        name=name,
        operator=proposal.operator,
        status=status,  # type: ignore[arg-type]
        parents=tuple(numbers[parent] for parent in proposal.parents if parent in numbers),
        thought=proposal.thought,
        source=proposal.source,
        hash=None if program is None else program.hash,
        stage=stage,
        reason=reason,
        proposer=proposer.name,
        seed=seed,
    )


def _again(attempt: Attempt, program: Program | None = None) -> Contender:
    """An accepted attempt as a contender; its text passed the gate when it was first proposed."""
    assert attempt.source is not None
    program = program or candidates.parse(attempt.source, attempt.name)
    return Contender(attempt.name, program, "proposed", operator=attempt.operator, thought=attempt.thought)


def _seen(attempt: Attempt) -> Scored:
    # One that was accepted but not measured yet is shown as something not to propose again.
    return Scored(
        name=attempt.name,
        source=attempt.source or "",
        status="duplicate" if attempt.status == "accepted" else attempt.status,
        reason=attempt.reason or "",
        operator=attempt.operator,
    )


def _mixed(*parts: int) -> int:
    """One seed from several numbers."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part) % (2**31 - 1)
    return mixed
