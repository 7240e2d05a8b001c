"""Stage 5 by itself: the probes, the toy, and the reasons it gives."""

from __future__ import annotations

import corpus
import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.candidates import CandidateError, parse
from discojax.candidates.numbers import PAIRS, SETTINGS, check_numbers, evaluate_probes, probes


def rejected(expression: str) -> CandidateError:
    program = parse(corpus.body(f"return {expression}"))
    with pytest.raises(CandidateError) as error:
        check_numbers(program.graph, program.lines)
    assert error.value.stage == "numbers"
    assert len(str(error.value)) < 300
    return error.value


def test_probes_are_what_training_meets() -> None:
    logps = probes().logps
    margin = (logps[0] - logps[2]) - (logps[1] - logps[3])
    assert margin.shape == (SETTINGS, PAIRS)
    assert not margin[:3].any(), "margin 0 exactly, where training starts"
    assert 40 < np.abs(margin[3:9]).max() <= 50.001
    assert np.abs(margin[9:]).max() == pytest.approx(2000, rel=1e-4)
    assert all((x < 0).all() for x in logps[:4])
    assert min(x[:9].min() for x in logps[:4]) > -520
    assert all((x > 0).all() for x in logps[4:])


def test_margin_zero_is_zero_however_it_is_subtracted() -> None:
    pc, pr, rc, rr = (x[:3] for x in probes().logps[:4])
    for margin in ((pc - rc) - (pr - rr), (pc - pr) - (rc - rr), pc - pr - rc + rr, (pc + rr) - (pr + rc)):
        assert not margin.any()


def test_the_machine_gives_the_known_value_and_slope_of_dpo() -> None:
    values, by_chosen, by_rejected = evaluate_probes(
        candidates.from_function(objectives.get("dpo")).code, probes()
    )
    np.testing.assert_allclose(values[:3], np.log(2.0), rtol=1e-6)
    beta = probes().beta[:3, None] / PAIRS
    np.testing.assert_allclose(by_chosen[:3], np.broadcast_to(-0.5 * beta, (3, PAIRS)), rtol=1e-6)
    np.testing.assert_allclose(by_rejected[:3], np.broadcast_to(0.5 * beta, (3, PAIRS)), rtol=1e-6)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("-jnp.log(x)", ("jnp.log", "margin 0", "log_sigmoid")),
        ("jnp.where(rho > 0, jnp.log(rho), -rho)", ("jnp.log", "jnp.where does not help")),
        ("jnp.sqrt(rho ** 2) - x", ("jnp.sqrt", "slope", "1e-6")),
        ("-x / jnp.abs(x)", ("division", "margin 0")),
        ("(1 - x) ** 1.5", ("`**`", "base above 0")),
        ("jnp.exp(-rho / beta)", ("jnp.exp", "overflows", "clip")),
        ("jnp.where(x > 0, 0.0, 1.0)", ("zero everywhere",)),
        ("jax.nn.log_sigmoid(x)", ("preference accuracy", "sign")),
    ],
)
def test_reasons_name_the_operation_and_the_remedy(expression: str, words: tuple[str, ...]) -> None:
    error = rejected(expression)
    for word in words:
        assert word in error.reason
    if "slope" in error.reason or "gives" in error.reason:
        assert error.line == 4


def test_blame_falls_on_the_line_of_the_operation() -> None:
    program = parse(corpus.body("a = jnp.exp(x)\nb = jnp.log(rho)\nc = a + b\nreturn c - x"))
    with pytest.raises(CandidateError) as error:
        check_numbers(program.graph, program.lines)
    assert error.value.line == 5


def test_extremes_are_scored_and_not_rejected() -> None:
    released = next(e for e in corpus.legal() if e.name == "lrml")
    program = parse(released.source)
    assert check_numbers(program.graph).extreme_finite < 1.0, (
        "the released DiscoPOP overflows at the extremes"
    )
    assert check_numbers(candidates.from_function(objectives.get("discopop")).graph).extreme_finite == 1.0


@pytest.mark.parametrize("name", objectives.names())
def test_every_library_loss_raises_the_accuracy_of_the_toy(name: str) -> None:
    program = candidates.from_function(objectives.get(name))
    assert check_numbers(program.graph).toy_rise > 0.15


def test_checking_is_deterministic() -> None:
    program = parse(corpus.body("return jax.nn.softplus(-x) + 0.1 * jnp.std(rho)"))
    assert check_numbers(program.graph) == check_numbers(program.graph)
