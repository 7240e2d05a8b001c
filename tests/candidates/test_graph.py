"""Graphs: typed, canonical, hashed, changed only by making new ones."""

from __future__ import annotations

import dataclasses

import corpus
import pytest

from discojax import candidates
from discojax.candidates import (
    Apply,
    Argument,
    Constant,
    GraphError,
    apply,
    as_number,
    as_truth,
    from_graph,
    parse,
    replace,
    rewrite,
    with_constants,
)
from discojax.candidates import graph as graphs

PC, PR, RC = (Argument(name) for name in graphs.ARGUMENTS[:3])
BETA = Argument("beta")
MEAN = apply("mean", PC)
LESS = apply("less", PC, PR)
MARGIN = apply("subtract", PC, PR)
SAME = apply("subtract", apply("exp", PC), apply("exp", PC))  # 0 or nan, and neither has a sign


@pytest.mark.parametrize(
    ("operator", "operands", "message"),
    [
        ("no_such", (PC,), "no operator"),
        ("exp", (PC, PR), "takes 1 operands, got 2"),
        ("add", (PC,), "takes 2 operands, got 1"),
        ("exp", (apply("less", PC, PR),), "takes a number where a truth is given"),
        ("logical_not", (PC,), "takes a truth where a number is given"),
        ("where", (PC, PR, RC), "takes a truth"),
        ("softmax", (BETA,), "the same for all pairs"),
        ("quantile", (PC, PR), "one level"),
        ("multiply", (1e9, 1e9), "outside"),
        ("divide", (1.0, 0.0), "not a number"),
        ("log", (-1.0,), "not a number"),
    ],
)
def test_ill_typed_graphs_cannot_be_built(operator: str, operands: tuple, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        apply(operator, *operands)


@pytest.mark.parametrize("value", [1e11, -1e300, float("inf"), float("nan"), 1e-40])
def test_constants_are_bounded(value: float) -> None:
    with pytest.raises(GraphError):
        Constant(value)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(GraphError, match="no argument"):
        Argument("secret")


def test_kinds_and_shapes_follow_the_operators() -> None:
    less = apply("less", PC, MEAN)
    assert (less.kind, less.shape) == ("truth", "batch")
    assert (MEAN.kind, MEAN.shape) == ("number", "scalar")
    assert apply("multiply", BETA, MEAN).shape == "scalar"
    assert apply("multiply", BETA, PC).shape == "batch"
    assert apply("sort", PC).shape == "batch"


def test_nodes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PC.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("operator", ["mean", "max", "min", "median", "sum", "logsumexp"])
def test_the_statistic_of_one_value_is_that_value(operator: str) -> None:
    # The machine broadcasts scalars to [batch], so a sum that reached it would count the pairs.
    assert apply(operator, BETA) == BETA
    assert apply(operator, MEAN) == MEAN


@pytest.mark.parametrize("operator", ["var", "var_unbiased", "std", "std_unbiased"])
def test_one_value_does_not_vary(operator: str) -> None:
    assert apply(operator, BETA) == Constant(0.0)


EQUAL = [
    (apply("add", PC, PR), apply("add", PR, PC)),
    (apply("multiply", PC, PC), apply("square", PC)),
    (apply("power", PC, 2.0), apply("square", PC)),
    (apply("power", PC, 3.0), apply("multiply", apply("square", PC), PC)),
    (apply("power", PC, 0.5), apply("sqrt", PC)),
    (apply("power", PC, -1.0), apply("divide", 1.0, PC)),
    (apply("power", PC, 1.0), PC),
    (apply("divide", PC, 4.0), apply("multiply", PC, 0.25)),
    (apply("subtract", PC, 2.0), apply("add", -2.0, PC)),
    (apply("subtract", PR, PC), apply("negative", apply("subtract", PC, PR))),
    (apply("multiply", BETA, apply("subtract", PR, PC)), apply("negative", apply("multiply", BETA, MARGIN))),
    (apply("multiply", PC, -1.0), apply("negative", PC)),
    (apply("divide", PC, -0.05), apply("negative", apply("divide", PC, 0.05))),
    (apply("add", PC, PC), apply("multiply", 2.0, PC)),
    (apply("square", apply("negative", PC)), apply("square", PC)),
    (apply("greater", PC, PR), apply("less", PR, PC)),
    (apply("less", apply("negative", PC), 1.0), apply("greater", PC, -1.0)),
    (apply("logical_not", apply("equal", PC, PR)), apply("not_equal", PC, PR)),
    (apply("where", apply("logical_not", LESS), PC, PR), apply("where", LESS, PR, PC)),
    (apply("where", apply("less", PC, PR), RC, RC), RC),
    (apply("log_sigmoid", PC), apply("negative", apply("softplus", apply("negative", PC)))),
    (apply("logaddexp", 0.0, PC), apply("softplus", PC)),
    (apply("mean", apply("negative", PC)), apply("negative", apply("mean", PC))),
    (apply("add", PC, 0.0), PC),
    (apply("multiply", PC, 0.0), Constant(0.0)),
    (apply("subtract", PC, PC), Constant(0.0)),
    (apply("negative", SAME), SAME),
    (as_truth(as_number(apply("less", PC, PR))), apply("less", PC, PR)),
    (Constant(-0.0), Constant(0.0)),
    (Constant(0.1), Constant(0.1 + 1e-12)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_programs_are_equal_nodes(one: candidates.Node, other: candidates.Node) -> None:
    assert one == other
    assert one.digest == other.digest
    assert hash(one) == hash(other)


DIFFERENT = [
    (apply("subtract", PC, PR), apply("subtract", PR, PC)),
    (apply("divide", PC, PR), apply("divide", PR, PC)),
    (apply("relu", PC), apply("maximum", PC, 0.0)),  # their slopes at 0 are 0 and 1/2
    (apply("multiply", apply("exp", PC), 0.0), Constant(0.0)),  # nan where exp overflows
    (apply("add", apply("add", PC, PR), RC), apply("add", PC, apply("add", PR, RC))),  # in float32
    (apply("std", PC), apply("std_unbiased", PC)),
    (Constant(1.0), Constant(1.0, "truth")),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_not_exactly_equal_stays_different(one: candidates.Node, other: candidates.Node) -> None:
    assert one != other


def test_the_hash_is_stable_across_machines_and_versions() -> None:
    program = parse(corpus.body("return -jax.nn.log_sigmoid(x)"))
    assert program.hash == "f72c51ff075ac441c800945e98067aa035d34036769d03eaa1583ce9f17f3d3f"


def test_shared_parts_cost_nothing() -> None:
    x = PC
    for _ in range(60):
        x = apply("add", apply("exp", x), apply("square", x))  # as a tree it has 2^60 nodes
    assert graphs.operations(x) == 180
    with pytest.raises(GraphError, match="180 operations"):
        graphs.check_size(x)


def test_constants_are_those_of_the_code_and_can_be_set() -> None:
    program = parse(corpus.body("return 0.9 * jax.nn.softplus(-x) + 0.1 * jnp.clip(x - 0.9, -2.0, 0.7)"))
    assert program.constants == tuple(float(str(c)) for c in program.code.constants[: len(program.constants)])
    assert set(program.constants) == {0.9, -0.9, 0.1, -2.0, 0.7}
    doubled = program.with_constants([2 * c for c in program.constants])
    assert doubled.constants == tuple(2 * c for c in program.constants)
    assert doubled.with_constants(program.constants) == program
    assert parse(doubled.source) == doubled
    with pytest.raises(GraphError, match="5 constants, got 1 values"):
        with_constants(program.graph, [1.0])


def test_replace_and_rewrite_rebuild_canonically() -> None:
    x = apply("subtract", PC, PR)
    loss = apply("softplus", apply("negative", x))
    assert replace(loss, {PR: RC}) == apply("softplus", apply("negative", apply("subtract", PC, RC)))
    assert replace(loss, {x: apply("negative", PC)}) == apply("softplus", PC)

    def harder(node: candidates.Node) -> candidates.Node | None:
        return (
            apply("relu", *node.operands) if isinstance(node, Apply) and node.operator == "softplus" else None
        )

    assert rewrite(loss, harder) == apply("relu", apply("negative", x))
    assert rewrite(loss, lambda node: None) is loss


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (apply("less", PC, PR), "not a comparison"),
        (apply("exp", BETA), "does not depend on the policy"),
        (RC, "does not depend on the policy"),
    ],
)
def test_a_graph_that_is_no_loss_is_no_program(graph: candidates.Node, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_graph(graph)


def test_a_mean_is_the_loss_of_each_pair() -> None:
    inner = apply("softplus", PC)
    assert from_graph(apply("mean", inner)).graph == inner
    assert from_graph(apply("negative", apply("mean", inner))).graph == apply("negative", inner)
    assert from_graph(apply("max", inner)).graph == apply("max", inner), "another statistic is broadcast"


def test_batch_coupling_and_minimum_batch() -> None:
    assert not from_graph(PC).batch_coupled
    assert from_graph(apply("subtract", PC, MEAN)).batch_coupled
    assert from_graph(apply("subtract", PC, MEAN)).minimum_batch == 1
    assert from_graph(apply("subtract", PC, apply("std_unbiased", PC))).minimum_batch == 2


def test_complexity_counts_operators_and_constants_once() -> None:
    x = apply("multiply", PC, 3.0)
    assert graphs.complexity(apply("add", apply("exp", x), x)) == 4


def test_programs_compare_by_what_they_compute() -> None:
    one, other = (parse(corpus.body(f"return {e}"), name) for e, name in (("-x", "a"), ("0 - x", "b")))
    assert one == other
    assert len({one, other}) == 1
    assert one.name == "a"


def test_library_objectives_keep_their_papers() -> None:
    from discojax import objectives

    objective = objectives.get("dbaql")
    program = candidates.from_function(objective)
    assert (program.name, program.formula, program.reference) == (
        "dbaql",
        objective.formula,
        objective.reference,
    )
    assert program.minimum_batch == objective.minimum_batch == 2
    assert program.batch_coupled
