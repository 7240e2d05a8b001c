"""A program in other forms: LaTeX, behaviour on a grid, pickles, printed source."""

from __future__ import annotations

import pickle

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

from discojax import candidates, objectives
from discojax.candidates import MARGINS, parse
from discojax.candidates.printer import CALLS
from discojax.objectives.operators import OPERATORS

_ROWS = [jnp.full(4, value) for value in (-5.0, -6.0, -5.5, -5.0)]
LOGPS = objectives.LogProbs(*_ROWS, jnp.ones(4, int), jnp.ones(4, int))
PROGRAMS = {entry.name: parse(entry.source) for entry in corpus.legal()}


def test_every_operator_can_be_printed() -> None:
    infix = {
        "negative",
        "reciprocal",
        "power",
        "add",
        "subtract",
        "multiply",
        "divide",
        "greater",
        "greater_equal",
    }
    infix |= {"less", "less_equal", "equal", "not_equal"}
    assert set(OPERATORS) <= set(CALLS) | infix


@pytest.mark.parametrize("name", PROGRAMS)
def test_latex_is_well_formed(name: str) -> None:
    lines = PROGRAMS[name].latex.split("\n")
    assert lines[0] == r"\begin{aligned}"
    assert lines[-1] == r"\end{aligned}"
    assert lines[-2].startswith(r"\ell &=")
    parser = MathTextParser("path")
    for line in lines[1:-1]:
        parser.parse(f"${line.replace('&', '').removesuffix(chr(92) * 2).strip()}$")


def test_latex_of_dpo_and_discopop() -> None:
    assert PROGRAMS["cpo"].latex.startswith("\\begin{aligned}")
    program = parse(corpus.body("return jax.nn.softplus(-x) * jnp.where(rho < 0, 0.5, 1.0)"))
    assert program.latex.split("\n")[1:-1] == [
        r"a &= \log\pi_w - \log\pi^{\mathrm{ref}}_w \\",
        r"b &= \log\pi_l - \log\pi^{\mathrm{ref}}_l \\",
        r"\rho &= a - b \\",
        r"x &= \beta \, \rho \\",
        r"\ell &= \left(0.5 \, \mathbf{1}\left[\rho < 0\right]"
        r" + \mathbf{1}\left[\neg\left(\rho < 0\right)\right]\right) \, \mathrm{softplus}\left(-x\right)",
    ]


def test_behaviour_is_the_curve_of_the_loss() -> None:
    curve = PROGRAMS["logistic_log_loss"].behaviour
    np.testing.assert_allclose(curve.values, np.logaddexp(0.0, -MARGINS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(curve.slopes, -1 / (1 + np.exp(MARGINS)), rtol=1e-5, atol=1e-6)


def test_distance_ignores_offset_and_scale_and_tells_losses_apart() -> None:
    one = parse(corpus.body("return jax.nn.softplus(-x)")).behaviour
    same = parse(corpus.body("return 3 * jax.nn.softplus(-x) + 7")).behaviour
    other = parse(corpus.body("return jnp.square(rho - 0.5 / beta)")).behaviour
    assert candidates.distance(one, one) == 0.0
    assert candidates.distance(one, same) < 1e-4
    assert candidates.distance(one, other) > 0.5


def test_behaviour_of_what_overflows_is_still_a_descriptor() -> None:
    wild = parse(corpus.body("return jnp.exp(jnp.exp(-9 * x))"))
    assert np.isfinite(wild.behaviour.descriptor).all()
    assert candidates.distance(wild.behaviour, PROGRAMS["dpo"].behaviour) > 0


def test_programs_travel_between_processes() -> None:
    program = PROGRAMS["discopop"]
    copy = pickle.loads(pickle.dumps(program))
    assert copy == program
    assert copy.name == program.name
    np.testing.assert_array_equal(copy(LOGPS, 0.1), program(LOGPS, 0.1))


@pytest.mark.slow
def test_constants_can_be_mapped_over() -> None:
    program = parse(corpus.body("return 0.7 * jax.nn.softplus(-x)"))
    scales = jnp.asarray([0.5, 1.0, 2.0])
    constants = jnp.zeros((3, len(program.code.constants))).at[:, 0].set(scales)
    losses = jax.vmap(lambda c: objectives.evaluate(program.code._replace(constants=c), LOGPS, 0.1))(
        constants
    )
    np.testing.assert_allclose(losses[:, 0] / losses[1, 0], scales, rtol=1e-6)
    tuned = program.with_constants([2.0])
    np.testing.assert_allclose(tuned(LOGPS, 0.1), losses[2], rtol=1e-6)


def test_printed_source_reads_well() -> None:
    assert PROGRAMS["logistic_log_loss"].canonical_source == (
        "def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
        "reference_rejected_logps, beta):\n"
        "    policy_margin = policy_chosen_logps - policy_rejected_logps\n"
        "    reference_margin = reference_chosen_logps - reference_rejected_logps\n"
        "    log_ratio = policy_margin - reference_margin\n"
        "    logits = beta * log_ratio\n"
        "    return jax.nn.softplus(-logits)\n"
    )


def test_docstrings_are_made_harmless() -> None:
    text = candidates.to_source(PROGRAMS["dpo"].graph, "mine", 'ends " here """ and \\')
    assert parse(text).name == "mine"
    assert parse(text) == PROGRAMS["dpo"]
