"""The rules of the house that no single module can keep: imports, sizes, laziness, no execution of text."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "discojax").rglob("*.py"))
HEAVY = ("jax", "flax", "transformers", "sklearn", "scipy", "matplotlib", "pandas", "torch")


def imported_by(statement: str) -> set[str]:
    """The top-level modules loaded after `statement` in a fresh Python."""
    code = (
        f"import json, sys\n{statement}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imports_run_one_way() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* kept, 0 broken", done.stdout), done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import discojax",
        "import discojax.launch",
        "import discojax.config",
        "import discojax.objectives",
        "from discojax.launch import main; assert main(['--help']) == 0",
        "from discojax.launch import main; assert main(['discover', '--config', 'no such file']) == 2",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    assert not imported_by(statement) & set(HEAVY)


def test_the_flags_of_the_backend_are_set_before_jax_is_imported() -> None:
    assert "jax" not in imported_by("from discojax.population.backend import configure_backend")


def test_every_public_name_of_the_package_can_be_had() -> None:
    import discojax

    for name in dir(discojax):
        assert getattr(discojax, name) is not None
    with pytest.raises(AttributeError, match="attribute.*nonsense"):
        discojax.nonsense  # noqa: B018


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_tells_one_story(module: Path) -> None:
    lines = module.read_text(encoding="utf-8").count("\n")
    assert lines < 400, f"{lines} lines: split it"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_ever_executed(module: Path) -> None:
    forbidden = {"exec", "eval", "__import__"}
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            assert node.id not in forbidden, f"line {node.lineno}: {node.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named = f"{node.value.id}.{node.attr}"
            assert named not in {"builtins.exec", "builtins.eval", "pickle.loads", "pickle.load"}, node.lineno
            assert not named.startswith("yaml.") or node.attr not in {"load", "unsafe_load", "full_load"}


def test_the_rule_above_sees_what_it_forbids() -> None:
    nodes = ast.walk(ast.parse("run = exec\nrun('1')\nbuiltins.eval('1')"))
    assert any(isinstance(node, ast.Name) and node.id == "exec" for node in nodes)


def readme_commands() -> dict[str, str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.+)\n```", text))


def test_the_readme_has_its_commands_each_on_one_line() -> None:
    commands = readme_commands()
    assert list(commands) == ["run", "tests", "slow", "tpu"]
    for name in ("run", "tests"):
        assert commands[name].startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
    assert commands["run"].endswith(".venv/bin/python -m discojax.launch")


def test_ci_reads_its_commands_from_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    function = re.search(r"^readme\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    assert function, "the function of .ci/run that reads the README"
    assert "tests=$(readme tests)" in script and 'inside 3.11 "$tests"' in script
    for name, command in readme_commands().items():
        shell = f"{function[0]}\nreadme {name}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.strip() == command


def test_the_readme_lists_the_commands_there_are() -> None:
    from discojax.launch import _COMMANDS

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Commands")[1].split("##")[0]
    listed = {
        word
        for row in re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE)
        for word in re.findall(r"`(\w+)", row)
    }
    assert listed == set(_COMMANDS)


def test_the_readme_lists_the_extras_there_are() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Extras")[1].split("\n## ")[0]
    listed = [
        word
        for row in re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE)
        for word in re.findall(r"`([\w-]+)`", row)
    ]
    assert sorted(listed) == sorted(extras)
