"""The objective machine: a loss as data, so that a new loss compiles nothing.

A program is a list of instructions over registers of `[batch]` float32 values. The compiled step
of the population takes it as an *argument*: arrays of integers and constants. Giving a lane
another loss is writing other integers; the model is never compiled again.

Register file, `[REGISTERS, batch]`: the inputs (`ARGUMENTS`, scalars broadcast), then the
constants, then one register an instruction, written once. That makes the tape for the exact
reverse-mode derivative simply the registers themselves (`_backward`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from discojax.objectives.operators import OPERATORS
from discojax.objectives.types import ARGUMENTS, LogProbs

__all__ = ["MAX_CONSTANTS", "MAX_INSTRUCTIONS", "Code", "encode", "evaluate"]

MAX_CONSTANTS = 40
MAX_INSTRUCTIONS = 128
_Array = Array | np.ndarray  # as `encode` leaves it, or on a device
_FIRST_CONSTANT = len(ARGUMENTS)
_FIRST_RESULT = _FIRST_CONSTANT + MAX_CONSTANTS


class Code(NamedTuple):
    """A program for the machine, a pytree of small arrays. A leading `[lanes]` axis may be added.

    Attributes:
      operators: index into `OPERATORS` of each instruction.
      operands: the registers each reads; unused operands read register 0.
      constants: the program's constants, which may be tuned or vmapped over.
      length: how many instructions are in use.
      result: the register that holds the loss.
    """

    operators: Int[_Array, " instructions"]
    operands: Int[_Array, "instructions 3"]
    constants: Float[_Array, " constants"]
    length: Int[_Array, ""]
    result: Int[_Array, ""]


def encode(instructions: list[tuple[str, tuple[str | int | float, ...]]], result: str | int | float) -> Code:
    """Packs instructions into `Code`.

    Args:
      instructions: `(operator, operands)` in order of execution. An operand is an argument's name
        (str), the index of an earlier instruction (int), or a constant (float).
      result: the same, for the value to return.

    Raises:
      ValueError: if there are more instructions or constants than the machine holds.
    """
    constants: list[float] = []

    def register(operand: str | int | float) -> int:
        if isinstance(operand, str):
            return ARGUMENTS.index(operand)
        if isinstance(operand, int):
            return _FIRST_RESULT + operand
        if operand not in constants:
            constants.append(operand)
        return _FIRST_CONSTANT + constants.index(operand)

    names = list(OPERATORS)
    operators = np.zeros(MAX_INSTRUCTIONS, np.int32)
    operands = np.zeros((MAX_INSTRUCTIONS, 3), np.int32)
    if len(instructions) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(instructions)} operations, at most {MAX_INSTRUCTIONS} fit")
    for row, (name, arguments) in enumerate(instructions):
        operators[row] = names.index(name)
        for column, operand in enumerate(arguments):
            operands[row, column] = register(operand)
    output = register(result)
    if len(constants) > MAX_CONSTANTS:
        raise ValueError(f"{len(constants)} different constants, at most {MAX_CONSTANTS} fit")
    padded = np.zeros(MAX_CONSTANTS, np.float32)
    padded[: len(constants)] = constants
    return Code(
        operators, operands, padded, np.array(len(instructions), np.int32), np.array(output, np.int32)
    )


def evaluate(
    code: Code, logps: LogProbs, beta: Float[Array, ""], progress: Float[Array, ""] | float = 0.0
) -> Float[Array, " batch"]:
    """The loss of each pair, `[batch]` float32, differentiable in `logps` and `code.constants`.

    Agrees with calling the objective directly, value and gradient. Nothing depends on the
    program but the values of `code`, so a jitted caller serves every objective.
    """
    (batch,) = logps.policy_chosen.shape
    rows = [*logps[:4], beta, *logps[4:], progress]
    inputs = jnp.stack([jnp.broadcast_to(jnp.asarray(x, jnp.float32), (batch,)) for x in rows])
    return _run(Code(*map(jnp.asarray, code)), inputs)


def _branches(batch: int):
    """For `lax.switch`: every operator on registers, and every operator's pullback."""

    def forward(operator):
        def apply(a, b, c):
            return jnp.broadcast_to(operator.function(*(a, b, c)[: operator.arity]), (batch,))

        return apply

    def pullback(apply):
        return lambda a, b, c, cotangent: jax.vjp(apply, a, b, c)[1](cotangent)

    functions = [forward(operator) for operator in OPERATORS.values()]
    return functions, [pullback(function) for function in functions]


def _execute(code: Code, inputs: Float[Array, "inputs batch"]) -> Float[Array, "registers batch"]:
    batch = inputs.shape[-1]
    functions, _ = _branches(batch)
    constants = jnp.broadcast_to(code.constants[:, None], (MAX_CONSTANTS, batch))
    results = jnp.zeros((MAX_INSTRUCTIONS, batch), jnp.float32)
    registers = jnp.concatenate([inputs, constants, results])

    def instruction(i, registers):
        a, b, c = (registers[code.operands[i, k]] for k in range(3))
        return registers.at[_FIRST_RESULT + i].set(jax.lax.switch(code.operators[i], functions, a, b, c))

    return jax.lax.fori_loop(0, code.length, instruction, registers)


@jax.custom_vjp
def _run(code: Code, inputs: Float[Array, "inputs batch"]) -> Float[Array, " batch"]:
    return _execute(code, inputs)[code.result]


def _forward(code: Code, inputs: Float[Array, "inputs batch"]):
    registers = _execute(code, inputs)
    return registers[code.result], (code, registers)


def _backward(saved, cotangent: Float[Array, " batch"]):
    # The instructions in reverse, each adding its pullback to its operands' cotangents. An operand
    # that an operator does not take reads register 0, and its pullback is exactly zero.
    code, registers = saved
    _, pullbacks = _branches(registers.shape[-1])
    cotangents = jnp.zeros_like(registers).at[code.result].set(cotangent)

    def instruction(k, cotangents):
        i = code.length - 1 - k
        operands = [code.operands[i, j] for j in range(3)]
        values = [registers[operand] for operand in operands]
        given = cotangents[_FIRST_RESULT + i]
        for operand, pulled in zip(
            operands, jax.lax.switch(code.operators[i], pullbacks, *values, given), strict=True
        ):
            cotangents = cotangents.at[operand].add(pulled)
        return cotangents

    cotangents = jax.lax.fori_loop(0, code.length, instruction, cotangents)
    constants = cotangents[_FIRST_CONSTANT:_FIRST_RESULT].sum(-1)

    def none(x):
        return np.zeros(jnp.shape(x), jax.dtypes.float0)

    no_gradient = Code(
        none(code.operators), none(code.operands), constants, none(code.length), none(code.result)
    )
    return no_gradient, cotangents[:_FIRST_CONSTANT]


_run.defvjp(_forward, _backward)
