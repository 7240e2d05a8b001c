"""Exported losses, in JAX and PyTorch, against the programs they come from."""

import ast
import importlib.util

import pytest

from discojax import candidates, objectives
from discojax.candidates.torch_printer import TORCH_CALLS, to_torch
from discojax.errors import UserError
from discojax.objectives.operators import OPERATORS
from discojax.report.export import TOLERANCE, export, function_name, verify

NAMES = objectives.names()


def program(name):
    return candidates.from_function(objectives.get(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_library_as_jax_is_verified(name):
    text = export(program(name), "jax")
    ast.parse(text)
    assert max(verify(program(name), text, "jax", seed=1)) <= TOLERANCE


def test_code_that_differs_is_not_handed_over(monkeypatch):
    loss = program("dpo")
    assert max(verify(loss, export(loss, "jax"), "jax")) <= TOLERANCE
    wrong = export(loss, "jax").replace("softplus(-", "softplus(-1.0001 * ")
    assert verify(loss, wrong, "jax").value > 10 * TOLERANCE
    from discojax.report import export as module

    monkeypatch.setattr(module, "to_source", lambda graph, name: module_source(name))
    with pytest.raises(UserError, match="differs from the program by"):
        export(loss, "jax")


def module_source(name):
    return candidates.to_source(program("ipo").graph, name)


def test_latex_is_the_formula():
    text = export(program("discopop"), "latex")
    assert text.startswith("% discopop: a preference loss.")
    assert r"\begin{aligned}" in text


def test_every_operator_has_its_pytorch_form():
    infix = {"negative", "reciprocal", "power", "add", "subtract", "multiply", "divide", "greater"}
    infix |= {"greater_equal", "less", "less_equal", "equal", "not_equal"}
    assert set(OPERATORS) <= set(TORCH_CALLS) | infix


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_text_is_one_function_of_the_arguments_that_are_read(name):
    function = ast.parse(to_torch(program(name).graph, "exported")).body[0]
    assert isinstance(function, ast.FunctionDef)
    read = [a.arg for a in function.args.args]
    assert read[:5] == list(objectives.types.ARGUMENTS[:5])
    assert set(read[5:]) == set(program(name).arguments) - set(read[:5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mix_dpo 3f", "mix_dpo_3f"), ("2x", "loss_2x"), ("class", "loss_class"), ("<b>", "b"), ("ü", "loss")],
)
def test_any_name_becomes_an_identifier(name, expected):
    assert function_name(name) == expected


def test_a_form_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError, match="no form 'pytorch'.*torch"):
        export(program("dpo"), "pytorch")


def test_without_pytorch_nothing_is_exported_to_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="PyTorch is not installed"):
        export(program("dpo"), "torch")


def _of_operator(name):
    """A loss that is an operator of the scaled margin (positive where it must be), and of a constant."""
    node = candidates.apply
    margin = node("multiply", candidates.Argument("beta"), program("dpo").graph)
    inside = node("add", node("square", margin), candidates.Constant(0.5))
    arity = OPERATORS[name].arity
    takes, gives = OPERATORS[name].takes, OPERATORS[name].gives
    truth = node("less", inside, candidates.Constant(1.0))
    number = {"quantile": candidates.Constant(0.3)}.get(name, candidates.Constant(0.7))
    operands = [(truth if kind == "truth" else inside if i == 0 else number) for i, kind in enumerate(takes)]
    graph = node(name, *operands[:arity])
    if gives == "truth":
        graph = node("where", graph, inside, candidates.Constant(2.0))
    return candidates.from_graph(node("add", graph, margin))


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("round", "floor", "ceil")])
def test_every_operator_means_in_pytorch_what_it_means_here(name):
    pytest.importorskip("torch")
    loss = _of_operator(name)
    text = export(loss, "torch", check=False)
    assert max(verify(loss, text, "torch")) <= 5 * TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_the_library_as_pytorch_is_verified(name):
    pytest.importorskip("torch")
    export(program(name), "torch")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["dpo", "simpo", "aqfl"])
def test_a_trainer_is_a_module_that_imports(name, tmp_path):
    pytest.importorskip("trl")
    (tmp_path / "trainer.py").write_text(export(program(name), "trl"))
    spec = importlib.util.spec_from_file_location("trainer", tmp_path / "trainer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from trl import DPOTrainer

    trainer = getattr(module, f"{name.capitalize()}Trainer")
    assert issubclass(trainer, DPOTrainer)
    assert trainer._compute_loss is not DPOTrainer._compute_loss
