"""Names, aliases, settings, and the text of every loss as a candidate."""

import ast
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from discojax import objectives
from discojax.errors import UserError
from discojax.objectives import registry

TRL_LOSS_TYPES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


def test_names_are_unique_and_every_trl_loss_type_is_known():
    names = objectives.names()
    assert len(names) == len(set(names)) >= 29
    assert all(objectives.get(name).name in names for name in TRL_LOSS_TYPES)


@pytest.mark.parametrize(("alias", "name"), [("sigmoid", "dpo"), ("hinge", "slic"), ("lrml", "discopop")])
def test_aliases(alias, name):
    assert objectives.get(alias) is objectives.get(name)
    assert alias in objectives.get(name).aliases
    assert alias not in objectives.names()


@pytest.mark.parametrize("name", objectives.names())
def test_every_loss_is_documented(name):
    objective = objectives.get(name)
    assert objective.name == name
    assert objective.formula
    assert "arXiv" in objective.reference or name == "sft"
    assert objective.arguments[:5] == objectives.ARGUMENTS[:5]
    # and shows an example, which pytest runs with the other doctests
    docstring = getattr(objective.function, "func", objective.function).__doc__
    assert f"{name}(" in docstring.partition(">>>")[2]


def test_a_setting_makes_a_named_variant():
    variant = objectives.get("discopop", tau=0.1)
    assert variant.name == "discopop(tau=0.1)" and variant.settings == {"tau": 0.1}
    assert "    tau = 0.1\n" in variant.source
    assert objectives.get(variant.name) is variant
    assert hash(variant) != hash(objectives.get("discopop"))


def test_the_default_setting_is_not_a_variant():
    assert objectives.get("discopop", tau=0.05) is objectives.get("discopop")
    assert objectives.get("discopop( tau = 0.05 )") is objectives.get("discopop")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("discopob", {}, "There is no loss 'discopob'. Did you mean 'discopop'?"),
        ("hindge", {}, "Did you mean 'hinge'?"),
        ("zzzzzz", {}, "There is no loss 'zzzzzz'. `losses` lists"),
        ("discopop", {"tua": 0.1}, "'discopop' has no setting 'tua'; it takes tau. Did you mean 'tau'?"),
        ("slic", {"tau": 0.1}, "'slic' has no setting 'tau'; it has none."),
        ("discopop", {"tau": 0.0}, r"tau of loss 'discopop' must be a number in \(0, 1\], not 0.0"),
        ("discopop", {"tau": float("nan")}, "not nan"),
        ("dbaql", {"tau": float("inf")}, "not inf"),
        ("dpo", {"label_smoothing": -0.1}, r"\[0, 0.5\]"),
        ("robust", {"label_smoothing": 0.5}, r"\[0, 0.5\), not 0.5"),
        ("exo_pair", {"label_smoothing": 0}, r"\(0, 0.5\), not 0"),
        ("dpo", {"label_smoothing": "0.1"}, "not '0.1'"),
        ("dpo", {"label_smoothing": True}, "not True"),
        ("discopop(tau)", {}, r"'tau' in loss 'discopop\(tau\)' is not a setting"),
        ("discopop(tau=x)", {}, "'tau=x' in loss"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(name, settings, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        objectives.get(name, **settings)


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def squared(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    return jnp.square(beta * (policy_chosen_logps - policy_rejected_logps))


def test_register(clean_registry):
    mine = objectives.Objective("mine", squared, aliases=("my_own",))
    assert objectives.register(mine) is mine
    assert objectives.get("mine") is objectives.get("my_own") is mine
    assert objectives.names()[-1] == "mine"
    again = dataclasses.replace(mine, formula="x²")
    objectives.register(again)  # a notebook cell run twice
    assert objectives.get("my_own") is again
    with pytest.raises(UserError, match="has no settings"):
        objectives.get("mine", tau=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "dpo"}, "'dpo' already means a known loss"),
        ({"name": "sigmoid"}, "'sigmoid' already means"),
        ({"aliases": ("hinge",)}, "'hinge' already means"),
        ({"name": "my loss"}, "cannot be called 'my loss'"),
    ],
)
def test_library_names_cannot_be_taken(changes, message, clean_registry):
    objective = dataclasses.replace(objectives.Objective("mine", squared), **changes)
    with pytest.raises(UserError, match=message):
        objectives.register(objective)


VARIANTS = [*objectives.names(), "dpo(label_smoothing=0.2)", "discopop(tau=0.3)", "simpo(gamma=1.5)"]


@pytest.mark.parametrize("name", VARIANTS)
def test_source_is_in_the_candidate_language(name):
    source = objectives.get(name).source
    assert source.isascii() and len(source) < 4096
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert tuple(argument.arg for argument in function.args.args) == objectives.get(name).arguments
    assert not (function.decorator_list or function.args.defaults or function.args.kwonlyargs)
    docstring, *assignments, last = function.body
    assert isinstance(docstring, ast.Expr) and isinstance(last, ast.Return)
    assert all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) for s in assignments)
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in calls:
        module, _, operator = ast.unparse(call.func).rpartition(".")
        assert module in {"jnp", "jax.nn", "jax.lax"} and operator in objectives.OPERATORS
        assert all(keyword.arg == "ddof" for keyword in call.keywords)
    attributes = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
    dotted = {id(part) for call in calls for part in ast.walk(call.func)}
    assert all(id(attribute) in dotted for attribute in attributes)


@pytest.mark.parametrize("name", VARIANTS)
def test_source_computes_what_the_function_does(name, golden_rows):
    objective = objectives.get(name)
    namespace = {"jax": jax, "jnp": jnp}
    exec(objective.source, namespace)  # the library's own text
    from_text = dataclasses.replace(objective, function=namespace[objective.source.split("(")[0][4:]])
    np.testing.assert_array_equal(from_text(golden_rows, 0.1), objective(golden_rows, 0.1))


def test_importing_the_package_imports_no_jax():
    code = "import sys, discojax.objectives; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_exists():
    for name in objectives.__all__:
        assert getattr(objectives, name) is not None
    with pytest.raises(AttributeError, match="attribute.*nothing"):
        objectives.nothing  # noqa: B018


def test_the_decorator_refuses_a_setting_without_a_range():
    def loss(policy_chosen_logps, *, tau=0.1): ...

    with pytest.raises(TypeError, match="every setting needs a range"):
        objectives.objective(formula="", reference="")(loss)
    assert "loss" not in objectives.names()
