"""The checking process: reads requests from its standard input, answers on its standard output.

One JSON object a line. It confines itself first, warms up (imports JAX, compiles the probes), says
so, and then runs all five stages on each text it is sent. It trusts nothing about the text, and
whoever started it trusts nothing about its answers but their meaning: accepted, or why not.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["main", "serve"]

Handler = Callable[[dict[str, Any], Callable[[str], None]], dict[str, Any]]
Chores = Iterator[None]


def readable() -> list[str]:
    """Where Python's own files and this package's lie, and what XLA asks the system while it starts."""
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[1])]
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    return [*python, *libraries, "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"]


def serve(warm: Callable[[], tuple[Handler, Chores]]) -> None:
    """Confines the process, warms up, and answers requests until its input ends.

    Args:
      warm: imports what is needed; gives the handler, and chores to do while nothing is asked. The
        handler is given the request and a function to announce the stage it enters, and gives the
        answer.
    """
    from discojax.candidates.sandbox import confine

    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # whatever prints must not write into the answers

    def say(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    layers = confine(readable())
    handle, chores = warm()
    say({"ready": True, "layers": layers})
    for line in _lines(chores):
        request = json.loads(line)
        # If whoever asked is gone and cannot end a hang, the alarm's default action does.
        signal.setitimer(signal.ITIMER_REAL, 10.0 * float(request["seconds"]))
        answer = handle(request, lambda stage: say({"stage": stage}))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        say(answer)


def _lines(chores: Chores) -> Iterator[bytes]:
    """Lines of standard input; while none is there, a chore at a time."""
    unread = b""
    while True:
        while b"\n" not in unread:
            if not select.select([0], [], [], 0)[0] and next(chores, chores) is None:
                continue  # a chore is done; look again
            chunk = os.read(0, 65536)
            if not chunk:
                return
            unread += chunk
        line, _, unread = unread.partition(b"\n")
        yield line


def _warm() -> tuple[Handler, Chores]:
    from dataclasses import asdict

    from discojax.candidates.errors import CandidateError
    from discojax.candidates.numbers import check_numbers
    from discojax.candidates.objective import parse
    from discojax.candidates.trace import check_trace

    def handle(request: dict[str, Any], enter: Callable[[str], None]) -> dict[str, Any]:
        enter("program")
        try:
            program = parse(request["source"])
            enter("trace")
            check_trace(program.function, program.arguments)
            enter("numbers")
            return {"accepted": True, "measures": asdict(check_numbers(program.graph, program.lines))}
        except CandidateError as error:
            return {"accepted": False, "stage": error.stage, "line": error.line, "reason": error.reason}
        except (MemoryError, RecursionError) as error:
            return {"exhausted": type(error).__name__}

    for text in _TYPICAL:
        answer = handle({"source": text}, lambda stage: None)
        if not answer.get("accepted"):
            raise RuntimeError(f"a known loss is rejected: {answer}")
    return handle, _compile_operators()


def _compile_operators() -> Chores:
    """Runs every operator once on the commonest shapes: JAX compiles each at its first use."""
    import jax.numpy as jnp

    from discojax.candidates.numbers import PAIRS
    from discojax.objectives.operators import OPERATORS

    pairs, one = jnp.full(PAIRS, 0.5, jnp.float32), jnp.float32(0.5)
    for operator in OPERATORS.values():
        mixtures: list[tuple[Any, ...]] = [(pairs, one, one)[: operator.arity]]
        if operator.arity == 2 and not operator.batch:
            mixtures += [(pairs, pairs), (one, pairs)]
        if operator.arity == 3:
            mixtures += [(pairs, pairs, one), (pairs, one, pairs), (pairs, pairs, pairs)]
        for operands in mixtures:
            operator.function(*operands)
            yield


_HEAD = """\
def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    policy = policy_chosen_logps - policy_rejected_logps
    reference = reference_chosen_logps - reference_rejected_logps
    x = beta * (policy - reference)
"""
_TYPICAL = (
    _HEAD + "    return -jax.nn.log_sigmoid(x)\n",
    _HEAD + "    return jax.nn.relu(1 - x) * jnp.where(x > 0, 0.5, 1.0) + jnp.square(jnp.tanh(x) - 1)\n",
    _HEAD + "    w = jax.nn.sigmoid(jnp.mean(x) / (jnp.std(x) + 1))\n"
    "    return w * jax.nn.softplus(-x) + (1 - w) * jnp.exp(-jnp.clip(x, -5.0, 5.0))\n",
)


def main() -> None:
    """Runs the checking process; it ends with its input."""
    serve(_warm)
