"""The gate: five stages between a text and a program that may train policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from discojax.candidates.checker import Checker, shared
from discojax.candidates.errors import CandidateError, Stage
from discojax.candidates.objective import Program, parse

__all__ = ["CheckResult", "check", "check_many", "compile", "warm"]


@dataclass(frozen=True)
class CheckResult:
    """The gate's verdict on one text.

    Attributes:
      accepted: whether it may train.
      stage: the stage that rejected it; None if accepted.
      line: the line at fault, where one is.
      reason: what is wrong and what to write instead, as `CandidateError` words it.
      program: the program; also of a text that stages 4 or 5 rejected.
      extreme_finite: the share of pairs with finite value and gradient at log-ratios of up to ±2,000.
      toy_rise: by how much preference accuracy rose on the tabular toy.
      largest_gradient: the largest slope in a policy log-probability over realistic pairs.
    """

    accepted: bool
    stage: Stage | None = None
    line: int | None = None
    reason: str = ""
    program: Program | None = None
    extreme_finite: float = 0.0
    toy_rise: float = 0.0
    largest_gradient: float = 0.0

    @property
    def error(self) -> CandidateError:
        """The rejection as the exception `compile` raises."""
        assert self.stage is not None, "an accepted candidate has no error"
        return CandidateError(self.stage, self.line, self.reason)


def compile(source: str, name: str | None = None) -> Program:
    """All five stages: the program of a candidate, fit to train.

    >>> compile("def loss(policy_chosen_logps): return jnp.log(policy_chosen_logps)")
    Traceback (most recent call last):
    discojax.candidates.errors.CandidateError: numbers, line 1: jnp.log gives nan at margin 0...

    Args:
      source: candidate text.
      name: how the objective is called; by default as the function in the text.

    Raises:
      CandidateError: with the stage, the line and the reason.
      UserError: if no checking process can be started on this machine.
    """
    result = check(source, name)
    if not result.accepted:
        raise result.error
    assert result.program is not None
    return result.program


def check(source: str, name: str | None = None, checker: Checker | None = None) -> CheckResult:
    """As `compile`, but gives the verdict instead of raising, with what stage 5 measured."""
    try:
        program = parse(source, name)
    except CandidateError as error:
        return CheckResult(False, error.stage, error.line, error.reason)
    answer = (checker or shared()).ask(source)
    if not answer["accepted"]:
        return CheckResult(False, answer["stage"], answer["line"], answer["reason"], program)
    return CheckResult(True, program=program, **answer["measures"])


def check_many(sources: Iterable[str], checker: Checker | None = None) -> Iterator[CheckResult]:
    """The verdicts on many texts in order, as they come, about a hundred a second."""
    for source in sources:
        yield check(source, checker=checker)


def warm(wait: bool = False) -> None:
    """Starts the checking process ahead of its first use, so that the first check does not wait for it."""
    shared().warm(wait)
