"""The committed corpus: every text gets its verdict, at its stage, with a reason to act on."""

from __future__ import annotations

import corpus
import pytest

from discojax import candidates
from discojax.candidates.checker import Checker
from discojax.candidates.gate import check

LEGAL = ("library", "legal_jax", "legal_torch", "legal_habits")


def test_the_corpus_is_large_enough() -> None:
    assert len(corpus.hostile()) >= 120
    assert len(corpus.legal()) >= 80


@pytest.mark.parametrize("category", corpus.HOSTILE)
def test_hostile_texts_are_rejected_at_their_stage(checker: Checker, category: str) -> None:
    wrong = []
    for entry in corpus.hostile():
        if entry.category != category:
            continue
        result = check(entry.source, checker=checker)
        if result.stage != entry.verdict:
            wrong.append((entry.name, result.stage, result.reason))
    assert wrong == []


@pytest.mark.parametrize("category", LEGAL)
def test_legal_texts_are_accepted(checker: Checker, category: str) -> None:
    results = {e.name: check(e.source, checker=checker) for e in corpus.legal() if e.category == category}
    assert {name: str(r.error) for name, r in results.items() if not r.accepted} == {}


@pytest.mark.parametrize(
    "entry", corpus.legal()[-len(corpus._entries("legal_habits")) :], ids=lambda e: e.name
)
def test_habits_mean_what_they_seem_to(entry: corpus.Entry) -> None:
    assert candidates.parse(entry.source).hash == candidates.parse(entry.same_as).hash


def test_reasons_are_short_plain_and_without_paths(checker: Checker) -> None:
    for entry in corpus.hostile():
        result = check(entry.source, checker=checker)
        text = str(result.error)
        assert len(text) < 300, text
        assert text.isprintable(), text
        assert "/work" not in text
        assert "site-packages" not in text
        assert "Traceback" not in text
        assert text.startswith(entry.verdict)


def test_a_legal_text_survives_printing(checker: Checker) -> None:
    for entry in corpus.legal():
        program = candidates.parse(entry.source)
        assert candidates.parse(program.canonical_source).hash == program.hash, entry.name
    printed = candidates.parse(corpus.legal()[0].source).canonical_source
    assert check(printed, checker=checker).accepted
