"""Stage 5, numbers: what a program computes where training will take it.

Everything runs through `machine.evaluate`, compiled once for a fixed set of probes: a program is
data there, so a check compiles nothing. The direct evaluation of the graph, operation by
operation, must agree with it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from discojax.candidates.blame import blame
from discojax.candidates.errors import CandidateError
from discojax.candidates.graph import Node
from discojax.candidates.lowering import interpret, lower
from discojax.objectives import machine
from discojax.objectives.machine import Code
from discojax.objectives.types import ARGUMENTS, LogProbs

__all__ = ["PAIRS", "SETTINGS", "Measures", "Probes", "check_numbers", "evaluate_probes", "probes"]

SETTINGS, PAIRS = 12, 16
_AT_START = slice(0, 3)  # policy equals reference
_REALISTIC = slice(0, 9)
_EXTREME = slice(9, 12)
_BETAS = (0.05, 0.1, 0.5, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 0.05, 0.1, 1.0)
_PROGRESS = (0.0, 0.5, 1.0) * 4
_DEAD = 1e-6  # relative to the loss; rounding alone makes slopes of 1e-7
_STEPS, _STEP_SIZE = 24, 0.4
_LEAST_RISE = 0.12


class Probes(NamedTuple):
    """Inputs of the probe program: 12 settings of 16 pairs."""

    logps: LogProbs
    beta: Float[np.ndarray, " settings"]
    progress: Float[np.ndarray, " settings"]


@dataclass(frozen=True)
class Measures:
    """What the numbers stage scores without rejecting.

    Attributes:
      extreme_finite: the share of pairs with finite value and gradient at |log-ratio| up to 2,000.
      toy_rise: by how much preference accuracy rose on the tabular toy, -1 to 1.
      largest_gradient: the largest slope in any policy log-probability over realistic pairs.
    """

    extreme_finite: float
    toy_rise: float
    largest_gradient: float


@functools.cache
def probes() -> Probes:
    """Log-probabilities of 0 to -500 at margins of 0, up to 50 and up to 2,000, always the same."""
    rng = np.random.default_rng(20240612)
    shape = (SETTINGS, PAIRS)
    # Multiples of 1/8, so that at margin 0 every way of subtracting gives exactly 0.
    reference = -np.exp(rng.uniform(np.log(2.0), np.log(400.0), (2, *shape)))
    reference = np.round(reference * 8) / 8
    spread = np.repeat(
        [0.0, 0.5, 3.0, 10.0, 30.0, 50.0, 50.0, 300.0, 2000.0, 2000.0], [3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    )
    margin = rng.uniform(-1.0, 1.0, shape) * spread[:, None]
    margin[8, :2], margin[10:, 0], margin[10:, 1] = (50.0, -50.0), -2000.0, 2000.0
    shift = rng.uniform(-0.3, 0.3, shape) * spread[:, None]
    # Half the margin on either side, and log-probabilities no greater than -0.5.
    chosen = np.minimum(reference[0] + shift + margin / 2, -0.5)
    rejected = np.minimum(reference[1] + shift - margin / 2, -0.5)
    at_start = spread[:, None] == 0
    chosen = np.where(at_start, reference[0], chosen)
    rejected = np.where(at_start, reference[1], rejected)
    # Keep the margin exact where the clamp moved a log-probability.
    reference[0] = np.where(at_start, reference[0], chosen - shift - margin / 2)
    reference[1] = np.where(at_start, reference[1], rejected - shift + margin / 2)
    length = np.maximum(1, np.round(-reference / rng.uniform(0.5, 3.0, (2, *shape)))).astype(np.int32)
    logps: Any = [x.astype(np.float32) for x in (chosen, rejected, *reference)]  # NumPy stands for JAX here
    return Probes(
        LogProbs(*logps, *length),
        np.asarray(_BETAS, np.float32),
        np.asarray(_PROGRESS, np.float32),
    )


@functools.cache
def _compiled():
    def one(code: Code, logps: LogProbs, beta, progress):
        def losses(chosen, rejected):
            values = machine.evaluate(
                code, logps._replace(policy_chosen=chosen, policy_rejected=rejected), beta, progress
            )
            return values.mean(), values

        gradient, values = jax.grad(losses, argnums=(0, 1), has_aux=True)(
            logps.policy_chosen, logps.policy_rejected
        )
        return values, *gradient

    everywhere = jax.vmap(one, in_axes=(None, 0, 0, 0))
    floats, ints = (jax.ShapeDtypeStruct((SETTINGS, PAIRS), dtype) for dtype in (jnp.float32, jnp.int32))
    each = jax.ShapeDtypeStruct((SETTINGS,), jnp.float32)
    code = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), machine.encode([], "beta")
    )
    shapes: Any = (floats, floats, floats, floats, ints, ints)
    logps = LogProbs(*shapes)
    # Quick to compile rather than quick to run: 16 pairs are run through it some 30 times a check.
    options: Any = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
    return jax.jit(everywhere).lower(code, logps, each, each).compile(compiler_options=options)


def evaluate_probes(code: Code, given: Probes) -> Float[np.ndarray, "three settings pairs"]:
    """Values, and the gradient of their mean over the pairs in the two policy log-probabilities."""
    return np.stack([np.asarray(x) for x in _compiled()(code, *given)])


def check_numbers(graph: Node, lines: Mapping[Node, int] | None = None) -> Measures:
    """Stage 5: finite where training starts and goes, alive, reproducible, and able to teach.

    Args:
      graph: the program.
      lines: source lines of its nodes, for messages.

    Raises:
      CandidateError: at stage "numbers".
    """
    lines = lines or {}
    code, given = lower(graph), probes()
    results = evaluate_probes(code, given)
    if results.tobytes() != evaluate_probes(code, given).tobytes():
        raise CandidateError("numbers", None, "two evaluations of the same inputs differ")
    finite = np.isfinite(results)
    for rows, where in (
        (_AT_START, "at margin 0, where training starts"),
        (_REALISTIC, "at realistic log-probs"),
    ):
        bad = np.argwhere(~finite[:, rows].all(axis=(0, 2)))
        if len(bad):
            row = int(bad[0, 0])
            what = "the loss" if not finite[0, row].all() else "the gradient"
            line, reason = blame(graph, lines, _inputs(given, row), what, where)
            raise CandidateError("numbers", line, reason)
    gradient = np.abs(results[1:, _REALISTIC]) * PAIRS
    if gradient.max() <= _DEAD * np.abs(results[0, _REALISTIC]).max():
        raise CandidateError(
            "numbers", None, "the gradient in the policy's log-probabilities is zero everywhere"
        )
    _check_direct(graph, given, results[0])
    before, after = _train_toy(code)
    if after - before < _LEAST_RISE:
        raise CandidateError(
            "numbers", None,
            "training a small table on it does not raise preference accuracy "
            f"({before:.2f} to {after:.2f} at best); is the sign reversed?",
        )  # fmt: skip
    return Measures(float(finite[:, _EXTREME].all(axis=0).mean()), after - before, float(gradient.max()))


def _inputs(given: Probes, row: int) -> dict[str, np.ndarray]:
    logps = [x[row].astype(np.float32) for x in given.logps]
    return dict(zip(ARGUMENTS, (*logps[:4], given.beta[row], *logps[4:], given.progress[row]), strict=True))


def _check_direct(graph: Node, given: Probes, machine_values: Float[np.ndarray, "settings pairs"]) -> None:
    for row in (0, 6):
        direct = np.asarray(interpret(graph, {k: jnp.asarray(v) for k, v in _inputs(given, row).items()}))
        off = np.abs(direct - machine_values[row]).max()
        if not off <= 1e-4 * (1.0 + np.abs(direct).max()):
            raise CandidateError(
                "numbers", None,
                f"ill-conditioned: two ways of evaluating it in float32 differ by {off:.1e}; avoid"
                "  differences of huge numbers",
            )  # fmt: skip


# --- the tabular toy -------------------------------------------------------------------------------

_PROMPTS, _ANSWERS = 4, 4
_BETTER = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])  # of each prompt's answers, best first


def _train_toy(code: Code) -> tuple[float, float]:
    """Trains 12 softmax tables of 4 prompts and 4 answers by the loss; 16 pairs, 24 steps.

    Steps are normalised, since beta and the loss's own scale trade off. The policy starts at the
    reference, a little off it, or far off: the published DiscoPOP loss first lowers small margins
    and teaches only from the spread that a shared policy has. Accuracy is that of the log-ratios
    or, for reference-free losses, of the policy.

    Returns:
      the mean accuracy before and after, from the start and of the kind where it rose most.
    """
    rng = np.random.default_rng(7)
    # Half of the tables mirror the others, so that accuracy starts at 1/2 exactly.
    reference, noise = (
        np.concatenate([x, -x]) for x in rng.normal(0.0, 1.0, (2, SETTINGS // 2, _PROMPTS, _ANSWERS))
    )
    table = reference + np.array([0.0, 3.0, 15.0] * 4)[:, None, None] * noise
    beta = np.repeat([0.05, 0.1, 0.5, 1.0], 3).astype(np.float32)
    lengths = np.full((SETTINGS, PAIRS), 10, np.int32)
    reference_chosen, reference_rejected = _pairs(_log_softmax(reference))

    def accuracies(policy_chosen, policy_rejected):
        policy = policy_chosen - policy_rejected
        ratio = policy - (reference_chosen - reference_rejected)
        # A margin within 1 nat counts in part: losses with a kink at 0 only tremble there.
        return np.stack([np.clip(0.5 + x / 2, 0, 1).mean(axis=1).reshape(4, 3) for x in (ratio, policy)])

    start = accuracies(*_pairs(_log_softmax(table)))
    for step in range(_STEPS):
        logp = _log_softmax(table)
        chosen, rejected = _pairs(logp)
        given: Any = (chosen, rejected, reference_chosen, reference_rejected, lengths, lengths)
        progress = np.full(SETTINGS, step / _STEPS, np.float32)
        _, by_chosen, by_rejected = evaluate_probes(code, Probes(LogProbs(*given), beta, progress))
        gradient = _to_table(logp, by_chosen, by_rejected)
        size = np.sqrt(np.square(gradient).mean(axis=(1, 2), keepdims=True))
        with np.errstate(all="ignore"):
            update = np.where(np.isfinite(size) & (size > 0), gradient / size, 0.0)
        table = table - _STEP_SIZE * update
    end = accuracies(*_pairs(_log_softmax(table)))
    # Every beta counts as a seed: [kind of accuracy, beta, start] -> the best kind and start.
    rises = (end - start).mean(axis=1)
    best = np.unravel_index(rises.argmax(), rises.shape)
    return float(start.mean(axis=1)[best]), float(end.mean(axis=1)[best])


def _log_softmax(table: np.ndarray) -> np.ndarray:
    table = table - table.max(axis=-1, keepdims=True)
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))


def _pairs(logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = logp[:, :, _BETTER].astype(np.float32)  # [settings, prompts, 4 pairs, 2]
    return both[..., 0].reshape(SETTINGS, PAIRS), both[..., 1].reshape(SETTINGS, PAIRS)


def _to_table(logp: np.ndarray, by_chosen: np.ndarray, by_rejected: np.ndarray) -> np.ndarray:
    """The gradient in the table, from the gradient in the pairs' log-probabilities."""
    by_logp = np.zeros_like(logp)
    for pair, (better, worse) in enumerate(_BETTER):
        by_logp[:, :, better] += by_chosen.reshape(SETTINGS, _PROMPTS, -1)[:, :, pair]
        by_logp[:, :, worse] += by_rejected.reshape(SETTINGS, _PROMPTS, -1)[:, :, pair]
    return by_logp - np.exp(logp) * by_logp.sum(axis=-1, keepdims=True)
