"""Exported losses, in JAX and PyTorch, against the programs they come from."""

import ast
import builtins
import dataclasses
import importlib.util
import shlex

import pytest
from runs import write_run

from discojax import candidates, objectives
from discojax.candidates.torch_printer import TORCH_CALLS, to_torch
from discojax.errors import UserError
from discojax.launch import main
from discojax.objectives.operators import OPERATORS
from discojax.places import taking_along
from discojax.report.export import TOLERANCE, export, function_name, verify
from discojax.search import archive as archives

NAMES = objectives.names()
COARSE = f"""def loss({", ".join(objectives.types.ARGUMENTS[:5])}):
    chosen_log_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_log_ratio = policy_rejected_logps - reference_rejected_logps
    t3 = beta * (rejected_log_ratio - 1.8 * chosen_log_ratio)
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    t6 = jax.lax.stop_gradient(1.0 / (logits / 4.1 / 0.17 + 1.0))
    return jax.nn.softplus(t3 + 1.0) * t6 + jnp.square(-0.57 - t3) * (1.0 - t6)
"""


def program(name):
    return candidates.from_function(objectives.get(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_library_as_jax_is_verified(name):
    text = export(program(name), "jax")
    ast.parse(text)
    assert verify(program(name), text, "jax", seed=1).holds


def test_code_that_differs_is_not_handed_over(monkeypatch):
    loss = program("dpo")
    assert verify(loss, export(loss, "jax"), "jax").holds
    wrong = export(loss, "jax").replace("softplus(-", "softplus(-1.0001 * ")
    found = verify(loss, wrong, "jax")
    assert min(found.value, found.gradient, found.single) > 10 * TOLERANCE and not found.holds
    from discojax.report import export as module

    monkeypatch.setattr(module, "to_source", lambda graph, name: module_source(name))
    with pytest.raises(UserError, match="differs from the program by"):
        export(loss, "jax")


def module_source(name):
    return candidates.to_source(program("ipo").graph, name)


def test_an_objective_of_a_run_is_exported_by_its_name(tmp_path, capsys):
    folder = write_run(tmp_path / "some runs" / "one", proposed=4, scored=False).run.path
    with archives.open_archive(folder / "archive.sqlite") as archive:
        attempts = {attempt.name: attempt for attempt in archives.attempts(archive)}
    for attempt in [*[a for a in attempts.values() if a.status == "accepted"][-2:], attempts["dpo"]]:
        command = taking_along(attempt.name, folder).replace("--to torch", "--to jax")
        assert main(shlex.split(command)[3:]) == 0
        assert capsys.readouterr().out == export(candidates.parse(attempt.source, attempt.name), "jax")
    assert main(["export", "dpp", "--run", str(folder)]) == 2
    assert "has no objective 'dpp'. Did you mean 'dpo'?" in capsys.readouterr().err
    assert main(["export", "broken", "--run", str(folder)]) == 2
    assert "never became a program; it was rejected: not finite at margin 0." in capsys.readouterr().err


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
    [
        ("mix_dpo 3f", "mix_dpo_3f"), ("2x", "loss_2x"), ("class", "loss_class"), ("<b>", "b"),
        ("loss", "loss_loss"), ("ü", "loss_loss"), ("jax", "loss_jax"),
    ],
)  # fmt: skip
def test_any_name_becomes_an_identifier(name, expected):
    assert function_name(name) == expected


def _bound(text):
    """Every name that a module gives a meaning to; what is within its functions is their own."""
    found = []
    for part in ast.parse(text).body:
        for node in [part] if isinstance(part, ast.FunctionDef) else ast.walk(part):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.append(node.id)
            elif isinstance(node, ast.alias):
                found.append(node.asname or node.name.partition(".")[0])
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append(node.name)
    return found


@pytest.mark.parametrize("to", ["jax", "torch", "trl"])
def test_the_name_of_a_loss_means_nothing_else_in_the_file(to):
    loss = program("aqfl")
    others = set(_bound(export(loss, to, check=False))) | set(dir(builtins))
    assert {"jax", "torch", "trl"} & others
    for name in others:
        text = export(dataclasses.replace(loss, name=name), to, check=False)
        assert _bound(text).count(function_name(name)) == 1, name


@pytest.mark.parametrize("name", ["jax", "jnp", "loss"])
def test_a_loss_called_as_a_module_is_exported(name):
    assert f"def loss_{name}(" in export(dataclasses.replace(program("dpo"), name=name), "jax")


@pytest.mark.parity
def test_a_loss_that_float32_is_too_coarse_for_is_exported():
    """One that evolution made: JAX in float32 is itself 1e-5 off, and PyTorch the other way."""
    pytest.importorskip("torch")
    loss = candidates.parse(COARSE, "coarse")
    found = verify(loss, export(loss, "torch", check=False), "torch")
    assert found.rounding > TOLERANCE and found.single > TOLERANCE
    export(loss, "torch")
    wrong = export(loss, "torch", check=False).replace("return ", "return 1.00001 * ")
    assert not verify(loss, wrong, "torch").holds


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
    assert verify(loss, text, "torch").holds


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
    assert trainer.compute_loss is not DPOTrainer.compute_loss


@pytest.mark.parity
@pytest.mark.parametrize(
    ("setting", "value"),
    [("ld_alpha", 0.5), ("use_weighting", True), ("f_divergence_type", "forward_kl"), ("loss_type", "ipo")],
)
def test_a_trainer_refuses_what_it_would_ignore(setting, value, trainer, tmp_path):
    from trl import DPOConfig

    arguments = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{setting: value})
    with pytest.raises(ValueError, match=f"`{setting}` is for TRL's own losses: leave it at"):
        trainer("a model", args=arguments)


@pytest.mark.parity
def test_a_trainer_refuses_a_trl_that_it_was_not_written_for(trainer, monkeypatch):
    monkeypatch.setattr("trl.__version__", "1.9.2")
    with pytest.raises(ImportError, match=r"needs TRL 1\.16 or newer, and 1\.9\.2 is installed"):
        trainer("a model")


@pytest.fixture
def trainer(tmp_path):
    pytest.importorskip("trl")
    (tmp_path / "exported.py").write_text(export(program("dpo"), "trl", check=False))
    spec = importlib.util.spec_from_file_location("exported", tmp_path / "exported.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DpoTrainer


def test_a_loss_of_the_batch_says_which_batch_that_is():
    assert "per_device_train_batch_size" in export(program("kto_pair"), "trl", check=False)
    assert "per_device_train_batch_size" not in export(program("dpo"), "trl", check=False)
