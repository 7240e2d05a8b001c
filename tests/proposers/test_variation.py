"""The operators of genetic programming: types kept, constants alone tuned, complexity brought down."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discojax import objectives
from discojax.candidates import Constant, GraphError, Node, apply, from_function, from_graph, parse, to_source
from discojax.candidates.graph import complexity, constants, nodes
from discojax.proposers import grammar, screening, variation

LIBRARY = {name: from_function(objectives.get(name)).graph for name in objectives.names()}
ALONE = (variation.mutate, variation.tune, variation.simplify, variation.temper)
IN_PAIRS = (variation.crossover, variation.mix)


def children(operator, seeds: int = 12) -> list[tuple[tuple[Node, ...], variation.Change]]:
    """What an operator makes of every library loss (and a partner), with the parents."""
    made = []
    graphs = list(LIBRARY.values())
    for i, parent in enumerate(graphs):
        for seed in range(seeds):
            rng = random.Random(100 * i + seed)
            parents = (parent, rng.choice(graphs)) if operator in IN_PAIRS else (parent,)
            try:
                change = operator(*parents, rng)
            except GraphError:
                continue
            if change is not None:
                made.append((parents, change))
    return made


@pytest.mark.parametrize("operator", [*ALONE, *IN_PAIRS], ids=lambda f: f.__name__)
def test_children_are_programs_of_the_parents_type(operator):
    made = children(operator)
    assert len(made) > 100
    for parents, change in made:
        assert (change.graph.kind, change.graph.shape) == (parents[0].kind, "batch")
        assert change.what.isascii() and "\n" not in change.what


@pytest.mark.parametrize("operator", [*ALONE, variation.crossover], ids=lambda f: f.__name__)
def test_children_differ_from_their_parents(operator):
    made = children(operator)
    different = sum(change.graph != parents[0] for parents, change in made)
    assert different > 0.9 * len(made)


def test_crossover_brings_in_what_only_the_donor_has():
    receiver, donor = LIBRARY["dpo"], LIBRARY["sigmoid_norm"]
    for seed in range(30):
        change = variation.crossover(receiver, donor, random.Random(seed))
        if change is not None:
            new = set(nodes(change.graph)) - set(nodes(receiver))
            assert new & set(nodes(donor))


def test_tuning_changes_constants_alone():
    made = children(variation.tune)
    for (parent,), change in made:
        assert change.graph.skeleton == parent.skeleton
        assert change.graph != parent
        assert len(constants(change.graph)) <= len(constants(parent))
    changed = {parent for (parent,), _ in made}
    assert changed == {graph for graph in LIBRARY.values() if constants(graph)}


def test_a_loss_without_constants_cannot_be_tuned():
    assert constants(LIBRARY["bco_pair"]) == ()
    assert variation.tune(LIBRARY["bco_pair"], random.Random(0)) is None


def test_tuning_moves_a_threshold_at_zero():
    hinge, logistic = LIBRARY["slic"], LIBRARY["bco_pair"]
    split = apply("where", apply("less", grammar.LOG_RATIO, 0.0), hinge, logistic)
    tuned = [variation.tune(split, random.Random(seed)) for seed in range(30)]
    thresholds = {constants(change.graph)[0] for change in tuned if change is not None}
    assert len(thresholds) > 5 and all(0 <= value < 0.5 for value in thresholds)


def test_simplification_brings_complexity_down():
    made = children(variation.simplify)
    assert all(complexity(change.graph) < complexity(parent) for (parent,), change in made)


def test_simplification_can_undo_a_regulariser():
    base = apply("softplus", apply("negative", grammar.LOGIT))
    both = apply("add", base, apply("multiply", 0.1, apply("square", grammar.LOGIT)))
    found = {change.graph for seed in range(40) if (change := variation.simplify(both, random.Random(seed)))}
    assert base in found


def test_a_mixture_holds_both_parents():
    dpo, exp = LIBRARY["slic"], LIBRARY["exp"]
    for seed in range(20):
        change = variation.mix(dpo, exp, random.Random(seed))
        assert change is not None
        assert {dpo, exp} <= set(nodes(change.graph))


def test_a_constant_mixture_is_convex():
    rng = random.Random(0)
    mixed = grammar.blend(rng, 0.3, LIBRARY["slic"], LIBRARY["slic"])
    assert sorted(constants(mixed)) == [0.3, 0.7, 1.0]  # 1.0 is the hinge's own


def test_tempering_rescales_an_argument():
    change = variation.temper(LIBRARY["bco_pair"], random.Random(1))
    assert change is not None
    (temperature,) = constants(change.graph)
    # A power of two may stand as its reciprocal, which is the same number.
    assert f"{temperature:g}" in change.what or f"{1 / temperature:g}" in change.what


def test_one_place_of_several_can_change():
    x = grammar.LOGIT
    both = apply("multiply", apply("sigmoid", x), apply("softplus", x))
    changed = {variation._substitute(both, x, grammar.LOG_RATIO, random.Random(seed)) for seed in range(40)}
    assert len(changed) == 3  # everywhere, in the first place, in the second


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_the_grammar_writes_text_that_reads_back(seed):
    rng = random.Random(seed)
    try:
        word, graph = grammar.loss(rng)
    except GraphError:
        return
    assert word in grammar.DESCRIPTIONS
    program = from_graph(graph)
    assert parse(to_source(program.graph, "fresh")).hash == program.hash


def test_most_of_the_grammar_trains():
    kept = sum(
        screening.behaviour(from_graph(grammar.loss(random.Random(seed))[1]).graph) is not None
        for seed in range(200)
    )
    assert kept > 160


@pytest.mark.parametrize("name", objectives.names())
def test_every_library_loss_passes_the_screening(name):
    assert screening.behaviour(LIBRARY[name]) is not None


@pytest.mark.parametrize(
    ("what", "graph"),
    [
        ("learns backwards", apply("softplus", grammar.LOGIT)),
        ("undefined at the start", apply("negative", apply("sqrt", grammar.LOGIT))),
        ("no gradient", apply("stop_gradient", apply("softplus", apply("negative", grammar.LOGIT)))),
        ("overflows", apply("exp", apply("multiply", -100.0, grammar.LOG_RATIO))),
        ("dead at the start", apply("square", apply("relu", apply("subtract", -1.0, grammar.LOGIT)))),
    ],
)
def test_screening_turns_down(what, graph):
    assert screening.behaviour(graph) is None


def test_scaling_a_loss_is_no_new_behaviour():
    dpo = screening.behaviour(LIBRARY["dpo"])
    scaled = screening.behaviour(apply("add", Constant(3.0), apply("multiply", 7.0, LIBRARY["dpo"])))
    exp = screening.behaviour(LIBRARY["exp"])
    assert dpo is not None and scaled is not None and exp is not None
    assert screening.gaps(scaled, dpo[None])[0] < 0.02
    assert screening.gaps(exp, dpo[None])[0] > 0.02
