"""Programs as the report shows them: formulas in MathML, and the curves of all of them at once."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from discojax.candidates import Program
from discojax.objectives import machine
from discojax.objectives.types import LogProbs

__all__ = ["curves", "formula"]


def formula(program: Program) -> list[tuple[str, str]]:
    """Both sides of each line of the formula, as MathML without its `math` element.

    Nothing in it is text of the proposer's: a program knows its arguments by their place.
    """
    lines = program.latex.splitlines()[1:-1]
    return [tuple(map(_mathml, line.removesuffix(r" \\").split(" &= ", 1))) for line in lines]  # type: ignore[misc]


@functools.cache  # candidates have most of their lines in common
def _mathml(latex: str) -> str:
    from latex2mathml.converter import convert_to_element

    (row,) = convert_to_element(latex)
    for element in row.iter():  # it writes letters as entities, which is for who does not escape
        element.text = html.unescape(element.text or "") or None
    return ElementTree.tostring(row, encoding="unicode")


@functools.cache
def _compiled():
    def one(code: Any, margins: Float[Any, " points"], beta: Float[Any, ""]):
        reference = jnp.full(margins.shape, -40.0, jnp.float32)
        lengths = jnp.full(margins.shape, 20, jnp.int32)

        def losses(margins):
            logps = LogProbs(
                reference + margins / 2, reference - margins / 2, reference, reference, lengths, lengths
            )
            return machine.evaluate(code, logps, beta)

        values, pull = jax.vjp(losses, margins)
        return values, pull(jnp.ones_like(values))[0]

    def every(codes, margins, beta):
        return jax.lax.map(lambda code: one(code, margins, beta), codes)

    # Quick to compile rather than quick to run: it is called once for each hundred programs.
    return jax.jit(every, compiler_options={"xla_backend_optimization_level": 0})


_CHUNK = 128  # programs to a call, so that there is one shape to compile


def _called(codes: Any, margins: Float[np.ndarray, " points"], beta: float) -> list[np.ndarray]:
    with jax.default_device(_device()):
        return [np.asarray(x) for x in _compiled()(codes, margins, np.float32(beta))]


@functools.cache
def _device() -> jax.Device:
    """A processor of this machine: an accelerator is the run's."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told not to have any
        return jax.local_devices()[0]


def curves(
    programs: Sequence[Program], beta: float, margins: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, "programs points"], Float[np.ndarray, "programs points"]]:
    """The loss of each program and its derivative at the margins, as `objectives.curve` has them.

    The programs are data to one compiled function, so a thousand take no longer than a few. A loss with
    batch statistics sees all the margins as one batch.

    Args:
      programs: what to draw.
      beta: the penalty's strength.
      margins: in nats, as many as in every call.
    """
    values, slopes = (np.zeros((len(programs), len(margins)), np.float32) for _ in range(2))
    for start in range(0, len(programs), _CHUNK):
        some = [program.code for program in programs[start : start + _CHUNK]]
        padded = some + some[:1] * (_CHUNK - len(some))
        codes = jax.tree.map(lambda *x: np.stack(x), *padded)
        end = start + len(some)
        values[start:end], slopes[start:end] = (x[: len(some)] for x in _called(codes, margins, beta))
    return values, slopes
