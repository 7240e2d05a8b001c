"""A random grammar of preference losses: how the known ones are built, with the dice thrown anew.

Every known loss is a *margin* of log-probabilities (nats), scaled by beta to a *logit* (no unit),
put through a *base* loss that falls as the logit grows; several are blended by a *gate* in (0, 1).
The rules below are those words. Each takes the random state and returns a graph node: nothing here
is text, and nothing is run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from discojax.candidates import Argument, Node, apply

__all__ = [
    "BETA",
    "DESCRIPTIONS",
    "base",
    "blend",
    "comparison",
    "constant",
    "gate",
    "logit",
    "loss",
    "margin",
    "pick",
    "statistic",
]

T = TypeVar("T")

# The operators of the language, to write expressions with.
add, subtract, multiply, divide = (partial(apply, name) for name in ("add", "subtract", "multiply", "divide"))
negative, absolute, square, sqrt = (partial(apply, name) for name in ("negative", "abs", "square", "sqrt"))
reciprocal, exp, mean, std = (partial(apply, name) for name in ("reciprocal", "exp", "mean", "std"))
sigmoid, softplus, relu = (partial(apply, name) for name in ("sigmoid", "softplus", "relu"))
stop_gradient = partial(apply, "stop_gradient")

_POLICY_CHOSEN = Argument("policy_chosen_logps")
_POLICY_REJECTED = Argument("policy_rejected_logps")
BETA = Argument("beta")
_PROGRESS = Argument("progress")
# As the library writes them, so that crossover meets the same subexpressions.
CHOSEN = subtract(_POLICY_CHOSEN, Argument("reference_chosen_logps"))
REJECTED = subtract(_POLICY_REJECTED, Argument("reference_rejected_logps"))
LOG_RATIO = subtract(CHOSEN, REJECTED)
LOGIT = multiply(BETA, LOG_RATIO)
_CHOSEN_LENGTH = apply("maximum", Argument("chosen_lengths"), 1.0)
_REJECTED_LENGTH = apply("maximum", Argument("rejected_lengths"), 1.0)
_POLICY_MARGIN = subtract(_POLICY_CHOSEN, _POLICY_REJECTED)


def pick(rng: random.Random, weighted: Sequence[tuple[float, T]]) -> T:
    """One of the values, with probability in proportion to its weight."""
    return rng.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


def constant(rng: random.Random, low: float, high: float) -> float:
    """A positive number, log-uniform, of two significant digits: one that a person would write."""
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}")


def _per_token(chosen: Node, rejected: Node) -> Node:
    return subtract(divide(chosen, _CHOSEN_LENGTH), divide(rejected, _REJECTED_LENGTH))


def _centred(rng: random.Random, x: Node) -> Node:
    # The batch's mean without its gradient, as a moving baseline: its gradient would cancel x's.
    return subtract(x, multiply(constant(rng, 0.1, 0.9), stop_gradient(mean(x))))


def margin(rng: random.Random) -> Node:
    """How much more the policy likes the chosen completion, in nats; `[batch]`."""
    return pick(rng, _MARGINS)(rng)


_MARGINS: list[tuple[float, Callable[[random.Random], Node]]] = [
    (10, lambda rng: LOG_RATIO),
    (2, lambda rng: multiply(constant(rng, 5.0, 40.0), _per_token(CHOSEN, REJECTED))),
    (1, lambda rng: multiply(constant(rng, 5.0, 40.0), _per_token(_POLICY_CHOSEN, _POLICY_REJECTED))),
    (1, lambda rng: _POLICY_MARGIN),
    (2, lambda rng: subtract(multiply(constant(rng, 0.5, 2.0), CHOSEN), REJECTED)),
    (1.5, lambda rng: _centred(rng, LOG_RATIO)),
]


def logit(rng: random.Random) -> Node:
    """A margin scaled by beta, perhaps shifted, tempered or bent; `[batch]`, no unit."""
    x = multiply(BETA, margin(rng))
    return pick(rng, _BENDS)(rng, x)


def _saturate(rng: random.Random, x: Node) -> Node:
    scale = constant(rng, 1.0, 8.0)
    squash = rng.choice(("tanh", "arcsinh", "soft_sign", "arctan"))
    return multiply(scale, apply(squash, divide(x, scale)))


_BENDS: list[tuple[float, Callable[[random.Random, Node], Node]]] = [
    (8, lambda rng, x: x),
    (2, lambda rng, x: divide(x, constant(rng, 0.1, 3.0))),
    (2, lambda rng, x: subtract(x, constant(rng, 0.05, 1.5))),
    (1.5, _saturate),
    (0.7, lambda rng, x: multiply(x, add(1.0, multiply(constant(rng, 0.2, 2.0), _PROGRESS)))),
    (0.7, lambda rng, x: divide(x, add(constant(rng, 0.2, 1.0), std(x)))),
]


def _smooth_hinge(rng: random.Random, u: Node) -> Node:
    sharpness = constant(rng, 0.2, 4.0)
    return divide(softplus(multiply(sharpness, subtract(1.0, u))), sharpness)


def _polynomial_tail(rng: random.Random, u: Node) -> Node:
    # Squareplus: like softplus, with a tail that falls as 1/u.
    return multiply(0.5, subtract(sqrt(add(square(u), constant(rng, 0.5, 4.0))), u))


def _clipped_exponential(rng: random.Random, u: Node) -> Node:
    return exp(apply("minimum", negative(u), constant(rng, 2.0, 20.0)))


def _huber(rng: random.Random, u: Node) -> Node:
    off = subtract(u, constant(rng, 0.3, 2.0))
    return subtract(sqrt(add(1.0, square(off))), 1.0)


def _focal(rng: random.Random, u: Node) -> Node:
    weight = apply("power", sigmoid(negative(u)), constant(rng, 0.3, 2.0))
    return multiply(weight, softplus(negative(u)))


def base(rng: random.Random, u: Node) -> Node:
    """A loss of the logit `u` that falls where `u` is small; `[batch]`."""
    return pick(rng, _BASES)(rng, u)


_BASES: list[tuple[float, Callable[[random.Random, Node], Node]]] = [
    (4, lambda rng, u: softplus(negative(u))),
    (2, lambda rng, u: relu(subtract(constant(rng, 0.3, 3.0), u))),
    (2, _clipped_exponential),
    (2, lambda rng, u: square(subtract(u, constant(rng, 0.1, 3.0)))),
    (1.5, lambda rng, u: square(relu(subtract(constant(rng, 0.3, 3.0), u)))),
    (1.5, lambda rng, u: sigmoid(negative(u))),
    (1.5, _smooth_hinge),
    (1.5, _polynomial_tail),
    (1, _huber),
    (1, _focal),
    (1, lambda rng, u: negative(apply("tanh", u))),
    (0.7, lambda rng, u: negative(apply("arctan", u))),
    (0.7, lambda rng, u: apply("elu", negative(u))),
    (0.7, lambda rng, u: apply("logaddexp", negative(u), -constant(rng, 0.3, 3.0))),
    (0.5, lambda rng, u: apply("mish", negative(u))),
    (0.5, lambda rng, u: negative(apply("arcsinh", u))),
]


def statistic(rng: random.Random) -> Node:
    """One number for the batch; no gradient runs through it more often than not."""
    name = rng.choice(("mean", "mean", "median", "std", "var"))
    x = apply(name, LOGIT if rng.random() < 0.7 else LOG_RATIO)
    return stop_gradient(x) if rng.random() < 0.7 else x


def gate(rng: random.Random) -> Node:
    """A weight in (0, 1), per pair or for the batch: how sure, how far, how late."""
    return pick(rng, _GATES)(rng)


def _z_score(rng: random.Random) -> Node:
    centred = subtract(LOG_RATIO, mean(LOG_RATIO))
    return sigmoid(divide(centred, add(constant(rng, 0.1, 2.0), std(LOG_RATIO))))


def _confidence(rng: random.Random) -> Node:
    return reciprocal(add(1.0, absolute(divide(LOGIT, constant(rng, 0.1, 2.0)))))


_GATES: list[tuple[float, Callable[[random.Random], Node]]] = [
    (4, lambda rng: sigmoid(divide(logit(rng), constant(rng, 0.05, 2.0)))),
    (2, lambda rng: sigmoid(subtract(LOGIT, statistic(rng)))),
    (2, _z_score),
    (1.5, _confidence),
    (1, lambda rng: exp(negative(square(divide(LOGIT, constant(rng, 0.3, 3.0)))))),
    (1, lambda rng: sigmoid(multiply(BETA, _POLICY_MARGIN))),
    (1, lambda rng: sigmoid(apply("var", divide(LOGIT, constant(rng, 0.05, 1.0))))),
    (1, lambda rng: _PROGRESS),
]


def comparison(rng: random.Random) -> Node:
    """A truth value per pair."""
    left = pick(rng, [(4.0, LOGIT), (2.0, LOG_RATIO), (1.0, CHOSEN), (1.0, _POLICY_MARGIN)])
    right = statistic(rng) if rng.random() < 0.3 else rng.choice((0.0, 0.0, 0.5, 1.0, -0.5))
    return apply("less", left, right)


def blend(rng: random.Random, weight: Node | float, a: Node, b: Node) -> Node:
    """`weight * a + (1 - weight) * b`; a gate's own gradient is stopped half of the time."""
    if isinstance(weight, float):
        rest: Node | float = float(f"{1 - weight:.3g}")
    else:
        weight = stop_gradient(weight) if rng.random() < 0.5 else weight
        rest = subtract(1.0, weight)
    return add(multiply(weight, a), multiply(rest, b))


def _regulariser(rng: random.Random) -> Node:
    chosen, rejected = multiply(BETA, CHOSEN), multiply(BETA, REJECTED)
    per_token = divide(_POLICY_CHOSEN, _CHOSEN_LENGTH)
    term = pick(
        rng,
        [
            (2.0, negative(per_token)),
            (2.0, relu(negative(chosen))),  # DPO-Positive: the chosen must not become rarer
            (1.5, square(LOGIT)),
            (1.0, square(add(chosen, rejected))),
            (1.0, softplus(rejected)),
        ],
    )
    return multiply(constant(rng, 0.01, 1.0), term)


def _separate(rng: random.Random) -> Node:
    chosen, rejected = multiply(BETA, CHOSEN), multiply(BETA, REJECTED)
    weight = constant(rng, 0.3, 1.0)
    return add(base(rng, chosen), multiply(weight, base(rng, negative(rejected))))


def _gated(rng: random.Random) -> Node:
    u = logit(rng)
    return blend(rng, gate(rng), base(rng, u), base(rng, u if rng.random() < 0.7 else logit(rng)))


def _mixed(rng: random.Random) -> Node:
    return blend(rng, constant(rng, 0.1, 0.9), base(rng, logit(rng)), base(rng, logit(rng)))


def _split(rng: random.Random) -> Node:
    u = logit(rng)
    below = multiply(constant(rng, 0.3, 3.0), base(rng, u))
    return apply("where", comparison(rng), below, base(rng, u))


def _weighted(rng: random.Random) -> Node:
    weight = stop_gradient(gate(rng)) if rng.random() < 0.6 else gate(rng)
    return multiply(add(constant(rng, 0.1, 1.0), weight), base(rng, logit(rng)))


_LOSSES: list[tuple[float, str, Callable[[random.Random], Node]]] = [
    (2.5, "plain", lambda rng: base(rng, logit(rng))),
    (3, "gated", _gated),
    (1.5, "mixed", _mixed),
    (1.5, "anchored", lambda rng: add(base(rng, logit(rng)), _regulariser(rng))),
    (1.5, "weighted", _weighted),
    (1, "separate", _separate),
    (1, "split", _split),
]


DESCRIPTIONS = {
    "plain": "a base loss of the margin",
    "gated": "two base losses, blended by a gate",
    "mixed": "two base losses in fixed shares",
    "anchored": "a base loss of the margin with a regulariser",
    "weighted": "a base loss whose pairs are weighted by a gate",
    "separate": "a base loss of each completion's own log-ratio",
    "split": "one base loss below a threshold and another above",
}
"""What the word that `loss` returns means."""


def loss(rng: random.Random) -> tuple[str, Node]:
    """A whole loss, `[batch]`, and a word of `DESCRIPTIONS` for how it is built.

    Raises:
      GraphError: seldom, if the dice make an expression that cannot be built.
    """
    word, rule = pick(rng, [(weight, (word, rule)) for weight, word, rule in _LOSSES])
    return word, rule(rng)
