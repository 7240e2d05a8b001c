"""An accepted program computes what its author would have got by running the text."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import candidates, objectives
from discojax.objectives import machine
from discojax.objectives.types import ARGUMENTS, LogProbs

PAIRS = 8


def _inputs(seed: int, spread: float) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    reference = -rng.uniform(2.0, 200.0, (2, PAIRS))
    policy = reference + rng.normal(0.0, spread, (2, PAIRS))
    lengths = rng.integers(1, 60, (2, PAIRS))
    rows = [*policy, *reference, 0.1, *lengths, 0.3]
    return {name: jnp.asarray(row, jnp.float32) for name, row in zip(ARGUMENTS, rows, strict=True)}


def _value_and_gradient(function: Callable[..., jax.Array], inputs: dict[str, jax.Array]) -> list[np.ndarray]:
    names = ARGUMENTS[:5]

    def total(*values):
        given = {**inputs, **dict(zip(names, values, strict=True))}
        losses = jnp.broadcast_to(function(**given), (PAIRS,))
        return losses.mean(), losses

    gradients, losses = jax.grad(total, argnums=range(5), has_aux=True)(*(inputs[name] for name in names))
    return [np.asarray(x) for x in (losses, *gradients)]


def _assert_same(got: list[np.ndarray], wanted: list[np.ndarray], what: str) -> None:
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(b).max())), err_msg=what
        )


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, corpus.FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles sooner
def _by_machine(code: machine.Code, inputs: dict[str, jax.Array]) -> list[jax.Array]:
    """As `_value_and_gradient`, by the machine; compiled once for all programs."""

    def total(first, beta):
        logps = LogProbs(*first, inputs["chosen_lengths"], inputs["rejected_lengths"])
        losses = machine.evaluate(code, logps, beta, inputs["progress"])
        return losses.mean(), losses

    first = tuple(inputs[name] for name in ARGUMENTS[:4])
    (gradients, slope), losses = jax.grad(total, argnums=(0, 1), has_aux=True)(first, inputs["beta"])
    return [losses, *gradients, slope]


def _compare(
    program: candidates.Program, function: Callable[..., jax.Array], names: Iterable[str], inputs
) -> None:
    wanted = _value_and_gradient(lambda **x: function(**{name: x[name] for name in names}), inputs)
    direct = _value_and_gradient(lambda **x: program.function(**{n: x[n] for n in program.arguments}), inputs)
    _assert_same(direct, wanted, program.name)
    _assert_same(
        [np.asarray(x) for x in _by_machine(program.code, inputs)], wanted, f"{program.name} by machine"
    )


JAX = [entry for entry in corpus.legal() if entry.category == "legal_jax"]
TORCH = [entry for entry in corpus.legal() if entry.category == "legal_torch"]


@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
def test_programs_agree_with_the_hand_written_functions(spread: float) -> None:
    functions = _module("legal_jax")
    for seed, entry in enumerate(JAX):
        program = candidates.parse(entry.source)
        function = getattr(functions, entry.name)
        _compare(program, function, inspect.signature(function).parameters, _inputs(seed, spread))


@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_library_programs_agree_with_the_library(spread: float) -> None:
    for seed, name in enumerate(objectives.names()):
        objective = objectives.get(name)
        program = candidates.from_function(objective)
        _compare(program, objective.function, objective.arguments, _inputs(seed, spread))


@pytest.mark.parity
@pytest.mark.parametrize("entry", TORCH, ids=lambda entry: entry.name)
def test_pytorch_habits_are_translated_as_pytorch_means_them(entry: corpus.Entry) -> None:
    torch = pytest.importorskip("torch")
    function = getattr(_module("legal_torch"), entry.name)
    program = candidates.parse(entry.source)
    inputs = _inputs(5, 2.0)
    tensors = [torch.tensor(np.asarray(inputs[name]), requires_grad=True) for name in ARGUMENTS[:4]]

    class Trainer:
        beta = 0.1

    bound = (
        (Trainer(), *tensors)
        if "(self" in entry.source or "self," in entry.source.split(")")[0]
        else (*tensors, 0.1)
    )
    losses = function(*bound)
    losses.mean().backward()
    wanted = [losses.detach().numpy(), *(t.grad.numpy() for t in tensors[:2])]
    got = _value_and_gradient(lambda **x: program.function(**{n: x[n] for n in program.arguments}), inputs)[
        :3
    ]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(b).max())))
