"""No input of any kind may do anything but give a program or a `CandidateError`, and soon."""

from __future__ import annotations

import ast
import time

import corpus
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discojax import candidates
from discojax.candidates import CandidateError, GraphError
from discojax.candidates.checker import Checker
from discojax.candidates.gate import check
from discojax.candidates.graph import MAX_OPERATIONS, operations
from discojax.candidates.text import LARGEST_SOURCE

quiet = settings(
    deadline=None, derandomize=True, database=None, max_examples=400, suppress_health_check=list(HealthCheck)
)


@quiet
@given(strategies.untrusted)
def test_parsing_gives_a_program_or_a_reason(source: object) -> None:
    begin = time.process_time()
    with strategies.watched() as events:
        result = strategies.parsed(source)
    assert events == []
    assert time.process_time() - begin < 50.0  # it takes milliseconds, unless it is quadratic or worse
    if isinstance(result, CandidateError):
        assert result.stage in ("text", "syntax", "program")
        assert len(str(result)) < 300
        assert str(result).isprintable()
    else:
        assert operations(result.graph) <= MAX_OPERATIONS
        assert result.code.length <= operations(result.graph)


@quiet
@given(strategies.programs | strategies.good_programs)
def test_a_program_prints_as_a_candidate_with_its_hash(source: str) -> None:
    try:
        program = candidates.parse(source)
    except CandidateError:
        return
    printed = strategies.printed(program)
    if printed is None:
        return
    assert len(printed) <= LARGEST_SOURCE
    assert candidates.parse(printed).hash == program.hash
    assert candidates.parse(printed).canonical_source == printed
    assert program.latex.count("{") == program.latex.count("}")


@quiet
@given(strategies.programs, st.data())
def test_constants_can_be_read_and_set(source: str, data: st.DataObject) -> None:
    try:
        program = candidates.parse(source)
    except CandidateError:
        return
    assert program.with_constants(program.constants) == program
    values = [data.draw(st.floats(0.125, 8.0, width=16)) for _ in program.constants]
    try:
        tuned = program.with_constants(values)
    except GraphError:
        return  # as when a term vanishes, and the policy with it
    assert candidates.parse(tuned.source) == tuned


class _Rename(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Name:
        return (
            ast.Name(f"renamed_{node.id}", node.ctx) if node.id in ("rho", "x", "y", "w", "losses") else node
        )


class _Swap(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.BinOp:
        self.generic_visit(node)
        if isinstance(node.op, (ast.Add, ast.Mult)):
            node.left, node.right = node.right, node.left
        return node


@quiet
@given(strategies.programs | strategies.good_programs, st.sampled_from([_Rename, _Swap]))
def test_renaming_and_commuting_keep_the_hash(source: str, change: type[ast.NodeTransformer]) -> None:
    try:
        program = candidates.parse(source)
    except CandidateError:
        return
    other = ast.unparse(ast.fix_missing_locations(change().visit(ast.parse(source))))
    assert candidates.parse(other).hash == program.hash


@settings(quiet, max_examples=150)
@given(strategies.good_programs | strategies.mutants | strategies.programs)
def test_the_whole_gate_answers_in_time(checker: Checker, source: str) -> None:
    result = check(source, checker=checker)
    assert result.accepted or len(str(result.error)) < 300
    assert "process" not in result.reason, "a checking process hung or crashed"


def _sample() -> list[corpus.Entry]:
    return [*corpus.legal()[::12], *[e for e in corpus.hostile() if e.verdict == "numbers"][::9]]


def test_the_same_text_gets_the_same_verdict(checker: Checker) -> None:
    for entry in _sample():
        assert check(entry.source, checker=checker) == check(entry.source, checker=checker), entry.name


@pytest.mark.slow
def test_another_process_gives_the_same_numbers(checker: Checker) -> None:
    other = Checker()
    try:
        for entry in _sample():
            assert check(entry.source, checker=checker) == check(entry.source, checker=other), entry.name
    finally:
        other.close()


@pytest.mark.parametrize("source", [None, 3, b"def", ["def"], 1.5, object(), "", "\n", "\ud800"])
def test_odd_objects_are_refused_at_the_text_stage(source: object) -> None:
    with pytest.raises(CandidateError) as error:
        candidates.compile(source)  # type: ignore[arg-type]
    assert error.value.stage == "text"
