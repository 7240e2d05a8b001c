"""Each notebook runs; and what is committed of it is whole, small and leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
    "Repository"
]
TINY = {"layers": 1, "width": 32, "heads": 4, "vocab_size": 512, "max_length": 32}
SETTINGS = [
    "policy.layers=1", "policy.width=32", "policy.vocab_size=512", "sft.steps=20", "task.pairs=64",
    "population.lanes=4", "evaluation.seeds=2", "evaluation.steps=4", "evaluation.prompts=16",
    "search.betas=[0.5]",
]  # fmt: skip
FAST: dict[str, dict[str, Any]] = {
    "quickstart": {
        "overrides": [
            *SETTINGS, "search.candidates=3", "search.generations=1", "search.library=[dpo, ipo]",
            "search.rungs=[[1, 4, 2]]", "search.elites=[1, 4, 2]", "evaluation.search_prompts=16",
        ]
    },
    "bring_your_own_loss": {"overrides": SETTINGS},
    "discopop_anatomy": {"policy": TINY, "sft_steps": 20, "pairs": 64, "held_out": 16, "chunks": 2,
                         "seeds": 1},
    "tpu_population": {"policy": TINY, "sft_steps": 20, "pairs": 64, "chunks": 2},
}  # fmt: skip
"""In place of each notebook's own parameters, so that it takes a minute."""


def read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs the extra test")
    notebook = read(path)
    # As Papermill does it: a cell after the one with the tag sets them anew.
    (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    given = FAST[path.stem]
    for name in given:
        assert re.search(rf"^[\w, ]*\b{name}\b[\w, ]* = ", notebook.cells[at].source, re.MULTILINE)
    injected = read(path).cells[at]
    injected.source = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    injected.id = "injected-parameters"
    notebook.cells.insert(at + 1, injected)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises with the cell and its traceback


def test_each_has_parameters_to_run_it_with() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(FAST)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_what_is_committed_ran_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 300_000
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_badge_install_cell_and_links(path: Path) -> None:
    notebook = read(path)
    place = REPOSITORY.removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}"
    assert f"]({badge})" in notebook.cells[0].source
    install = notebook.cells[1].source
    assert f"git+{REPOSITORY}" in install and 'find_spec("discojax") is None' in install
    for cell in notebook.cells:
        for target in (
            re.findall(r"\]\((?!https?:)([^)#]+)", cell.source) if cell.cell_type == "markdown" else ()
        ):
            assert (path.parent / target).is_file(), target


def test_the_extras_of_the_install_cell_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for path in NOTEBOOKS:
        asked = re.findall(r'"\[(\w+)\]"', read(path).cells[1].source)
        assert asked and set(asked) <= set(extras)


def test_readme_and_site_know_every_notebook_and_one_address() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/notebooks.md"):
        text = page.read_text(encoding="utf-8")
        assert all(f"notebooks/{path.name}" in text for path in NOTEBOOKS)
    place = REPOSITORY.removeprefix("https://github.com/")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"github(?:\.com)?/([\w-]+/discojax)\b", text)
        assert found and set(found) == {place}


@pytest.mark.parametrize(
    ("driver", "tpu", "extra"),
    [
        ("550.54.15", False, "[cuda12]"),
        ("580.65.06", False, "[cuda]"),
        ("", True, "[tpu]"),
        ("NVIDIA-SMI has failed", False, ""),
    ],
)
def test_the_install_cell_takes_what_the_driver_can_run(
    driver: str, tpu: bool, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n[ $# = 2 ] && echo '{driver}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    if tpu:
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not extra or extra.strip("[]") in extras
    for path in NOTEBOOKS:
        (source,) = [cell.source for cell in read(path).cells if "%pip" in cell.source]
        names: dict[str, Any] = {}
        exec(re.sub("%pip.*", "pass", source), names)
        assert names["extra"] == extra, path.name
