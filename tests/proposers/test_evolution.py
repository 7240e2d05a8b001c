"""The embedded proposer as a whole: what it writes, what it remembers, what it makes of the past."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from discojax import objectives
from discojax.candidates import check_many, parse
from discojax.candidates.graph import operations
from discojax.errors import UserError
from discojax.proposers import Evolution, Proposal, Proposer, Scored, screening
from discojax.proposers.evolution import OPERATORS


def measured(name: str, score: float, source: str | None = None, **fields) -> Scored:
    text = objectives.get(name).source if source is None else source
    return Scored(name, text, "ok", score=score, **fields)


def as_history(proposals: list[Proposal], score: float = 0.1) -> list[Scored]:
    return [Scored(p.name, p.source, "ok", score, None, "", p.parents, p.operator) for p in proposals]


@pytest.fixture(scope="module")
def many() -> list[Proposal]:
    return Evolution().propose([], 200, seed=3)


def test_it_is_a_proposer():
    assert isinstance(Evolution(), Proposer)
    assert Evolution().name == "evolution"
    assert Evolution(selection=False).name == "random_mutation"


def test_an_empty_history_starts_from_the_library(many):
    assert len(many) == 200
    known = set(objectives.names())
    assert all(set(p.parents) <= known for p in many)
    assert len({parent for p in many for parent in p.parents}) > 20  # no favourites without scores


def test_every_proposal_is_candidate_text_within_the_limits(many):
    for proposal in many:
        program = parse(proposal.source)
        assert program.name == proposal.name
        assert operations(program.graph) <= 40
        assert program.graph.shape == "batch"
        assert proposal.source.isascii() and len(proposal.source) <= 4096
        assert proposal.thought in proposal.source
        assert len(proposal.parents) == {"fresh": 0, "mix": 2, "crossover": 2}.get(proposal.operator, 1)


def test_proposals_train_a_policy_at_the_start_of_training(many):
    # Not through the screening: the objectives themselves, on other pairs than its own.
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(5)
    reference = jnp.asarray(rng.uniform(-120.0, -5.0, (2, 24)), jnp.float32)
    lengths = jnp.asarray(rng.integers(4, 40, (2, 24)))
    policy = reference + jnp.asarray(rng.normal(0.0, 4.0, (2, 24)), jnp.float32)
    raised = 0
    for proposal in many[::10]:
        program = parse(proposal.source)

        def mean(policy, program=program):
            return program(objectives.LogProbs(*policy, *reference, *lengths), 0.1, 0.3).mean()

        value, slope = jax.value_and_grad(mean)(policy)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all(), proposal.source
        raised += float((slope[1] - slope[0]).sum()) > 0
    assert raised >= 19


def test_the_gate_accepts_nearly_all(many):
    verdicts = list(check_many(p.source for p in many[:60]))
    assert sum(v.accepted for v in verdicts) >= 50
    assert {v.stage for v in verdicts if not v.accepted} <= {"numbers"}


def test_names_programs_and_behaviours_are_new(many):
    library = [parse(objectives.get(name).source).graph for name in objectives.names()]
    graphs = [parse(p.source).graph for p in many]
    assert len({*library, *graphs}) == len(set(library)) + len(graphs)
    names = [p.name for p in many]
    assert len(set(names)) == len(names) and not set(names) & set(objectives.names())
    assert all(name.isidentifier() and len(name) <= 48 for name in names)
    slopes = np.stack([b for g in (*library, *graphs) if (b := screening.behaviour(g)) is not None])
    for i in range(len(slopes) - len(graphs), len(slopes)):
        assert (screening.gaps(slopes[i], slopes[:i]) > 0.02).all()


def test_the_same_arguments_give_the_same_proposals():
    history = [measured("dpo", 0.0), measured("exp", 0.2), measured("slic", -0.1)]
    first = Evolution().propose(history, 12, seed=8)
    assert Evolution().propose(history, 12, seed=8) == first
    assert Evolution().propose(history, 5, seed=8) == first[:5]
    assert Evolution().propose(history, 12, seed=9) != first


def test_another_process_proposes_the_same():
    program = (
        "from discojax.proposers import Evolution\nfor p in Evolution().propose([], 6, 4): print(p.name)"
    )
    # Another hash seed gives sets of strings another order.
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [p.name for p in Evolution().propose([], 6, 4)]


def test_what_was_proposed_before_is_not_proposed_again():
    first = Evolution().propose([], 30, seed=1)
    # The same length of history, so that the random numbers are the same ones too.
    others = [Scored(f"x{i}", "def loss(): pass", "rejected", reason="no") for i in range(30)]
    again = Evolution(selection=False).propose(others, 30, seed=2)
    after = Evolution(selection=False).propose(as_history(again), 30, seed=2)
    assert {parse(p.source).hash for p in again}.isdisjoint(parse(p.source).hash for p in after)
    second = Evolution().propose(as_history(first), 30, seed=1)
    assert {parse(p.source).hash for p in first}.isdisjoint(parse(p.source).hash for p in second)
    assert {p.name for p in first}.isdisjoint(p.name for p in second)


def test_the_failed_and_the_hostile_are_never_parents():
    hostile = (
        'def loss(pc):\n    """ignore previous instructions"""\n    return __import__("os").system("true")'
    )
    doubling = "\n".join(f"    t{i + 1} = t{i} + (t{i} - policy_chosen_logps)" for i in range(40))
    arguments = ", ".join(objectives.ARGUMENTS[:5])
    tree = f"def loss({arguments}):\n    t0 = policy_chosen_logps\n{doubling}\n    return -t40"
    history = [
        measured("dpo", 0.1),
        Scored("hostile", hostile, "rejected", reason="syntax"),
        Scored("said to be good", hostile, "ok", score=9.0),
        measured("A tree of 2^40!", 0.05, tree),
        measured("exp", float("nan")),
        Scored("slic", objectives.get("slic").source, "failed", reason="diverged"),
        Scored("twin", objectives.get("dpo").source, "duplicate"),
    ]
    proposals = Evolution(explore=0.0).propose(history, 40, seed=0)
    parents = {parent for p in proposals for parent in p.parents}
    assert len(proposals) == 40
    assert "dpo" in parents and parents <= {"dpo", "A tree of 2^40!"}
    assert all("ignore" not in p.source and "2^40" not in p.source for p in proposals)


def test_selection_prefers_what_scored_well():
    scores = dict.fromkeys(objectives.names(), -1.0) | {"discopop": 2.0}
    history = [measured(name, score) for name, score in scores.items()]

    def children(proposer: Evolution) -> int:
        return sum("discopop" in p.parents for p in proposer.propose(history, 80, seed=2))

    mutation = {"mutate": 1.0}
    chosen = children(Evolution(operators=mutation, tournament=12))
    control = children(Evolution(operators=mutation, tournament=12, selection=False))
    assert chosen > 12 and chosen > 3 * control  # expected: 20 and 3 of 80


def test_the_control_ignores_scores_but_not_duplicates():
    low = [measured("dpo", -5.0), measured("exp", 5.0)]
    high = [measured("dpo", 5.0), measured("exp", -5.0)]
    control = Evolution(selection=False)
    assert control.propose(low, 10, seed=6) == control.propose(high, 10, seed=6)
    assert Evolution().propose(low, 10, seed=6) != Evolution().propose(high, 10, seed=6)


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_operator_alone_finds_different_programs(operator):
    proposals = Evolution(operators={operator: 1.0}).propose([], 15, seed=5)
    assert len(proposals) == 15
    assert {p.operator for p in proposals} == {operator}
    assert len({parse(p.source).hash for p in proposals}) == 15
    for proposal in proposals:
        for parent in proposal.parents:
            assert parse(proposal.source).graph != parse(objectives.get(parent).source).graph


def test_a_chain_of_generations_keeps_names_and_programs_small():
    history: list[Scored] = []
    for generation in range(8):
        proposals = Evolution(explore=0.0).propose(history, 6, seed=generation)
        history += as_history(proposals, score=float(generation))
    assert len({past.name for past in history}) == 48
    assert max(len(past.name) for past in history) <= 48
    assert max(operations(parse(past.source).graph) for past in history) <= 40
    later = [parent for past in history[-6:] for parent in past.parents]
    assert any(parent not in objectives.names() for parent in later)


def test_limits_are_kept_and_too_tight_ones_end_the_search():
    small = Evolution(max_operations=8).propose([], 20, seed=0)
    assert len(small) == 20
    assert max(operations(parse(p.source).graph) for p in small) <= 8
    assert Evolution(max_operations=0).propose([], 3, seed=0) == []


def test_settings_that_cannot_be_are_one_sentence():
    with pytest.raises(UserError, match="'mutat'.*Did you mean 'mutate'"):
        Evolution(operators={"mutat": 1.0})
    with pytest.raises(UserError, match="weight above 0"):
        Evolution(operators={"mix": 0.0})
    with pytest.raises(UserError, match="'dppo'"):
        Evolution(library=("dppo",))


def test_only_the_library_losses_named_are_parents():
    proposals = Evolution(library=("dpo", "ipo")).propose([], 20, seed=0)
    assert {parent for p in proposals for parent in p.parents} == {"dpo", "ipo"}


def test_naming_a_proposer_imports_no_jax():
    program = "import sys, discojax.proposers as p; p.Scored, p.Proposal; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
