"""Operators of genetic programming on loss graphs: mutate, crossover, tune, simplify, mix, temper.

Each takes parents and the random state, and returns a new graph with one phrase that says what was
done, or None where the dice found nothing to change. An expression is only ever exchanged for one
of the same type, which is its kind (number or truth) and its shape (per pair or for the batch), so
the child is a program by construction; whether it is a good loss is for others to say.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from discojax.candidates import (
    Apply,
    Argument,
    Constant,
    Node,
    apply,
    replace,
    with_constants,
)
from discojax.candidates.graph import complexity, constants, nodes
from discojax.proposers import grammar
from discojax.proposers.grammar import (
    add,
    constant,
    divide,
    mean,
    multiply,
    pick,
    std,
    stop_gradient,
    subtract,
)

__all__ = ["Change", "crossover", "mix", "mutate", "simplify", "temper", "tune"]


@dataclass(frozen=True)
class Change:
    """A new graph, and what was done in a few words."""

    graph: Node
    what: str


# --- expressions of one type -----------------------------------------------------------------------


def _type(node: Node) -> tuple[str, str]:
    return node.kind, node.shape


def _parts(root: Node) -> list[Node]:
    """Every expression below the root that could be exchanged for another."""
    return [node for node in nodes(root) if node is not root and node.kind + node.shape != "numberscalar"]


def _substitute(root: Node, old: Node, new: Node, rng: random.Random) -> Node:
    """`old` exchanged for `new`, wherever it is used or in one place only, by the toss of a coin."""
    return replace(root, {old: new}) if rng.random() < 0.5 else _in_one_place(root, old, new, rng)


def _in_one_place(root: Node, old: Node, new: Node, rng: random.Random) -> Node:
    above: set[Node] = set()
    for node in nodes(root):  # operands come first
        if isinstance(node, Apply) and any(x == old or x in above for x in node.operands):
            above.add(node)

    def descend(node: Node) -> Node:
        if node == old:
            return new
        assert isinstance(node, Apply)
        places = [i for i, x in enumerate(node.operands) if x == old or x in above]
        place = rng.choice(places)
        operands = list(node.operands)
        operands[place] = descend(operands[place])
        return apply(node.operator, *operands)

    return descend(root)


# --- mutate ----------------------------------------------------------------------------------------

_CLASSES = (
    "sigmoid hard_sigmoid",
    "tanh arctan arcsinh erf soft_sign hard_tanh",
    "softplus relu elu celu selu silu gelu mish",
    "square abs",
    "mean median max min",
    "std std_unbiased var var_unbiased",
    "add subtract",
    "maximum minimum logaddexp",
    "multiply divide",
    "less less_equal",
    "logical_and logical_or",
)
_ALIKE: dict[str, tuple[str, ...]] = {
    name: tuple(other for other in names.split() if other != name)
    for names in _CLASSES
    for name in names.split()
}


def mutate(root: Node, rng: random.Random) -> Change | None:
    """One small change: a subexpression regrown, an operator swapped, a wrapper put in or taken out.

    Raises:
      GraphError: seldom, if the change makes a constant that cannot be represented.
    """
    return pick(rng, [(3.0, _regrow), (3.0, _swap), (3.0, _wrap), (1.0, _hoist)])(root, rng)


def _regrow(root: Node, rng: random.Random) -> Change | None:
    parts = _parts(root)
    if not parts:
        return None
    old = rng.choice(parts)
    if old.kind == "truth":
        new = grammar.comparison(rng)
    else:
        rules: list[tuple[float, Callable[[random.Random], Node]]] = [
            (3.0, grammar.margin if _in_nats(old) else grammar.logit),
            (2.0, grammar.gate),
            (2.0, lambda rng: grammar.base(rng, grammar.logit(rng))),
        ]
        new = (rules[0][1] if _in_nats(old) else pick(rng, rules))(rng)
        if _type(new) != _type(old):  # a gate may be one number for the batch
            return None
    return Change(_substitute(root, old, new, rng), "one expression regrown from the grammar")


@functools.lru_cache(maxsize=8192)  # a graph of 40 nodes may be a tree of 2^40
def _in_nats(node: Node) -> bool:
    """Whether it is a log-probability, or a sum and difference of some: not yet scaled by beta."""
    if isinstance(node, Argument):
        return node.name.endswith("logps")
    return (
        isinstance(node, Apply) and node.operator in ("add", "subtract") and all(map(_in_nats, node.operands))
    )


def _swap(root: Node, rng: random.Random) -> Change | None:
    choices = [node for node in nodes(root) if isinstance(node, Apply) and node.operator in _ALIKE]
    # The log-ratios are what the losses are about: a swapped sign there makes nonsense.
    choices = [node for node in choices if not _in_nats(node)]
    if not choices:
        return None
    old = rng.choice(choices)
    name = rng.choice(_ALIKE[old.operator])
    new = apply(name, *old.operands)
    return Change(_substitute(root, old, new, rng), f"{old.operator} became {name}")


def _bound(rng: random.Random, x: Node) -> Node:
    limit = constant(rng, 0.5, 20.0)
    return apply("minimum", apply("maximum", x, -limit), limit)


def _bend(rng: random.Random, x: Node) -> Node:
    return apply(rng.choice(("tanh", "arcsinh", "soft_sign", "arctan")), x)


def _centre(rng: random.Random, x: Node) -> Node:
    return subtract(x, stop_gradient(mean(x)))


def _standardise(rng: random.Random, x: Node) -> Node:
    return divide(x, stop_gradient(add(std(x), constant(rng, 0.1, 1.0))))


_Wrapper = Callable[[random.Random, Node], Node]
_WRAPPERS: list[tuple[float, str, _Wrapper]] = [
    (3, "scaled", lambda rng, x: multiply(constant(rng, 0.2, 5.0), x)),
    (2, "shifted", lambda rng, x: add(x, rng.choice((1, -1)) * constant(rng, 0.05, 2.0))),
    (2, "weighted by a gate", lambda rng, x: multiply(x, grammar.gate(rng))),
    (1, "bounded", _bound),
    (1, "bent", _bend),
    (1, "freed of its batch mean", _centre),
    (1, "divided by its batch deviation", _standardise),
    (1, "deprived of its gradient", lambda rng, x: stop_gradient(x)),
    (1, "floored", lambda rng, x: apply("maximum", x, -constant(rng, 0.1, 5.0))),
]


def _wrap(root: Node, rng: random.Random) -> Change | None:
    choices = [node for node in (*_parts(root), root) if node.kind == "number"]
    old = rng.choice(choices)
    word, wrapper = pick(rng, [(weight, (word, wrapper)) for weight, word, wrapper in _WRAPPERS])
    if old is root:
        return Change(wrapper(rng, old), f"the loss {word}")
    return Change(_substitute(root, old, wrapper(rng, old), rng), f"one expression {word}")


def _hoist(root: Node, rng: random.Random) -> Change | None:
    choices = [(node, inner) for node in nodes(root) for inner in _parts(node) if _type(inner) == _type(node)]
    choices = [(node, inner) for node, inner in choices if isinstance(inner, Apply) and not _in_nats(node)]
    if not choices:
        return None
    old, inner = rng.choice(choices)
    return Change(replace(root, {old: inner}), "one expression gave way to a part of itself")


# --- crossover -------------------------------------------------------------------------------------


def crossover(receiver: Node, donor: Node, rng: random.Random) -> Change | None:
    """An expression of the receiver exchanged for one of the same type of the donor's.

    Raises:
      GraphError: seldom, if the child would have a constant that cannot be represented.
    """
    places = [node for node in _parts(receiver) if isinstance(node, Apply)]
    if not places:
        return None
    old = rng.choice(places)
    own = set(nodes(receiver))
    given = [
        node
        for node in nodes(donor)
        if isinstance(node, Apply)
        and _type(node) == _type(old)
        and _in_nats(node) == _in_nats(old)
        and node not in own
    ]
    if not given:
        return None
    return Change(
        _substitute(receiver, old, rng.choice(given), rng), "an expression of the other in its place"
    )


# --- tune ------------------------------------------------------------------------------------------


def tune(root: Node, rng: random.Random, spread: float = 0.4) -> Change | None:
    """Constants multiplied by log-normal factors; the program's skeleton stays.

    Args:
      root: the parent.
      rng: the random state.
      spread: the standard deviation of a constant's logarithm.

    Returns:
      None if there is no constant, or if a new one changed the skeleton (a factor of 1 vanishes).

    Raises:
      GraphError: if a constant leaves the representable range.
    """
    old = constants(root)
    if not old:
        return None
    many = rng.random() < 0.3
    chosen = range(len(old)) if many else [rng.randrange(len(old))]
    new = list(old)
    for i in chosen:
        # A zero has no scale of its own; thresholds are of the order of 0.1.
        value = abs(rng.gauss(0.0, 0.1)) if old[i] == 0 else old[i] * rng.lognormvariate(0.0, spread)
        new[i] = float(f"{value:.3g}")
    child = with_constants(root, new)
    if child.skeleton != root.skeleton or child == root:
        return None
    changed = ", ".join(f"{a:g} to {b:g}" for a, b in zip(old, new, strict=True) if a != b)
    return Change(child, f"constants changed: {changed}")


# --- simplify --------------------------------------------------------------------------------------

_DROPPABLE = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "where", "logaddexp")


def simplify(root: Node, rng: random.Random) -> Change | None:
    """A term, a factor, a branch or a wrapper dropped; complexity goes down.

    Raises:
      GraphError: seldom, if what is left cannot be built.
    """
    choices = [(node, part) for node in nodes(root) for part in _remainders(node)]
    if not choices:
        return None
    old, part = rng.choice(choices)
    child = replace(root, {old: part})
    if complexity(child) >= complexity(root):
        return None
    assert isinstance(old, Apply)
    return Change(child, f"one {old.operator} dropped")


def _remainders(node: Node) -> Iterable[Node]:
    """What a node can be cut down to: an operand of its own type."""
    if not isinstance(node, Apply) or _in_nats(node):
        return ()
    operands: Sequence[Node] = [x for x in node.operands if _type(x) == _type(node)]
    if node.operator in _DROPPABLE or len(node.operands) == 1:
        if node.operator == "subtract" and node.operands[1] in operands:
            operands = [*(x for x in operands if x != node.operands[1]), apply("negative", node.operands[1])]
        return [x for x in operands if not isinstance(x, Constant)]
    return ()


# --- mix and temper --------------------------------------------------------------------------------


def mix(one: Node, other: Node, rng: random.Random) -> Change | None:
    """A mixture of two losses: by a constant, by a gate, by training's progress, or a case split.

    Raises:
      GraphError: seldom, if the mixture cannot be built.
    """
    how = pick(rng, [(3.0, "constant"), (5.0, "gate"), (1.0, "case")])
    if how == "constant":
        weight = rng.choice((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
        return Change(grammar.blend(rng, weight, one, other), f"{weight:g} of the first")
    if how == "gate":
        return Change(
            grammar.blend(rng, grammar.gate(rng), one, other), "a gate weighs one against the other"
        )
    return Change(
        apply("where", grammar.comparison(rng), one, other), "the first below a threshold, the other above"
    )


def temper(root: Node, rng: random.Random) -> Change | None:
    """The argument of the loss, or of one part of it, rescaled: sharper or softer.

    Returns:
      None if the loss has no batch of numbers to rescale.

    Raises:
      GraphError: seldom, if a constant leaves the representable range.
    """
    logits = [node for node in nodes(root) if node is not root and _is_logit(node)]
    choices = logits or [node for node in _parts(root) if isinstance(node, Apply) and _in_nats(node)]
    if not choices:
        return None
    old = rng.choice(choices)
    temperature = constant(rng, 0.1, 5.0)
    new = divide(old, temperature)
    return Change(_substitute(root, old, new, rng), f"an argument divided by {temperature:g}")


def _is_logit(node: Node) -> bool:
    return (
        isinstance(node, Apply)
        and node.operator == "multiply"
        and grammar.BETA in node.operands
        and node.shape == "batch"
    )
