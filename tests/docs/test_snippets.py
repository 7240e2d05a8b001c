"""Every shell and Python block of the README and of docs/ runs, or is shown to be one that could."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pages import PAGES, ROOT, Block, blocks, commands, inline, launched, looks_like_a_command, quiet

from discojax import launch
from discojax.command_line import config_file, objectives_of, read
from discojax.config import load
from discojax.errors import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
MARKERS = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
OTHERS = {"cd", "export", "git", "mkdir", "ollama", "ruff", "mypy", "lint-imports", "jupyter", "sphinx-build"}
"""Programs that are not ours, whose arguments cannot be checked here."""


def read_page(page: Path) -> list[Block]:
    return blocks(page.read_text(encoding="utf-8"))


def with_blocks(*how: str) -> list[Path]:
    return [page for page in PAGES if any(block.how in how for block in read_page(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_page(page: Path, folder: Path, *how: str) -> str:
    """Runs a page's blocks that are to be run so, in `folder`; gives what they printed."""
    steps = []
    for block in read_page(page):
        if block.how == "file":
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.how in how:
            text = block.text if block.language == "python" else quiet(block)
            steps.append((block.language, text, f"{name_of(page)}:{block.line}"))
    programs = folder / "bin"
    programs.mkdir()
    for program in ("python", "python3"):
        (programs / program).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (programs / program).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_page.py"))],
        input=json.dumps(steps), capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("page", with_blocks("now"), ids=name_of)
def test_a_page_runs(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, "now")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", with_blocks("slow"), ids=name_of)
def test_a_page_runs_with_its_slow_blocks(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, "now", "slow")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_there_is(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Also of the blocks that run: names, options, settings, files and extras."""
    monkeypatch.chdir(tmp_path)
    for saved in (block for other in PAGES for block in read_page(other) if block.how == "file"):
        (tmp_path / saved.file).parent.mkdir(exist_ok=True)
        (tmp_path / saved.file).write_text(saved.text, encoding="utf-8")
    for words in commands_of(page):
        check_command(words, pytestconfig)


def commands_of(page: Path) -> list[list[str]]:
    """Of its shell blocks, and those that a sentence names in passing."""
    text = page.read_text(encoding="utf-8")
    told = [quiet(block) for block in read_page(page) if block.language == "bash"]
    return [words for each in (*told, *inline(text)) for words in commands(each)]


def check_command(words: list[str], pytestconfig: pytest.Config) -> None:
    said = shlex.join(words)
    program = Path(words[0]).name
    if (given := launched(words)) is not None:
        check_launch(given or ["discover"])
    elif program in launch._COMMANDS and not (program == "export" and "=" in words[1]):  # the shell's own
        check_launch(words)
    elif program == "pip":
        check_pip(words[1:])
    elif program in ("python", "python3") and words[1:3] == ["-m", "pytest"]:
        check_pytest(words[3:], pytestconfig)
    elif program == "pytest":
        check_pytest(words[1:], pytestconfig)
    elif program in ("python", "python3"):
        if words[1] == "-m":
            assert words[2] == "venv" or words[2].startswith("benchmarks"), said
        else:
            assert (ROOT / words[1]).is_file(), said
    else:
        assert program in OTHERS, f"nothing is known of how to check: {said}"


def check_launch(given: list[str]) -> None:
    if given[:1] in (["--help"], ["--version"]) or (given[0] in launch._COMMANDS and "--help" in given):
        return
    command, options = read(given, launch._COMMANDS)
    load(config_file(options), options.overrides)
    objectives_of(getattr(options, "objectives", None))
    if command.handler is launch.check and options.arguments[0] != "-":
        assert Path(options.arguments[0]).is_file(), f"no block is saved as {options.arguments[0]}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        if word.startswith("-"):
            assert word in ("-e", "-q", "--no-deps"), word
            continue
        local = re.fullmatch(r"\.(\[.*\])?", word)
        wanted = Requirement(f"discojax{local[1] or ''}" if local else word)
        if wanted.name == "discojax":
            assert wanted.extras <= EXTRAS, wanted.extras - EXTRAS


def check_pytest(words: list[str], pytestconfig: pytest.Config) -> None:
    options = pytestconfig._parser.parse(words)  # pytest's own, with the plugins there are
    assert set(re.findall(r"\w+", options.markexpr)) <= MARKERS | {"not", "and", "or"}
    for path in options.file_or_dir:
        assert (ROOT / path.partition("::")[0]).exists(), path


def test_scripts_take_the_arguments_that_the_pages_give_them() -> None:
    """The real parsers of the benchmarks and tools, stopped where they have read their arguments."""
    found = {}
    for page in PAGES:
        for words in commands_of(page):
            python = Path(words[0]).name in ("python", "python3") and launched(words) is None
            if python and (words[1] != "-m" or words[2].startswith("benchmarks")):
                found[f"{name_of(page)}: {shlex.join(words)}"] = words[1:]
    assert len(found) > 5
    # One that takes none says so below, and is given none.
    bare = {said: words for said, words in found.items() if len(words) == 1}
    asked = {said: words for said, words in found.items() if said not in bare}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stop_at_arguments.py"))],
        input=json.dumps(list(asked.values())), capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    problems = dict(zip(asked, json.loads(done.stdout.splitlines()[-1]), strict=True))
    assert not {said: problem for said, problem in problems.items() if problem}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_hides_in_text_that_is_not_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    run = {line for block in read_page(page) for line in block.text.splitlines()}
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    hidden = [line for block in fenced for line in block.splitlines() if looks_like_a_command(line)]
    assert not set(hidden) - run


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            if anchor and there.suffix == ".md":
                heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
                assert anchor in slugs, target


# The rules above see what they forbid.


def test_a_block_nobody_knows_how_to_run_is_an_error() -> None:
    for page in ("```ruby\nputs 1\n```", "<!-- run: never -->\n```bash\nls\n```",
                 "<!-- run: parse -->\n```python\n1\n```", "<!-- run -->\n```bash\nls\n```"):  # fmt: skip
        with pytest.raises(ValueError, match="line"):
            blocks(page)
    assert looks_like_a_command("python -m discojax.launch") and not looks_like_a_command("pythonic")


def test_what_a_comment_says_is_done() -> None:
    text = "python -m discojax.launch train \\\n  x=1\n"
    page = f"<!-- run: slow with a.b=1 'c=[1, 2]' -->\n\n```bash\n{text}```\n"
    (block,) = blocks(page)
    assert block.how == "slow" and "train" in quiet(block) and quiet(block).count("\n") == 1
    (words,) = commands(quiet(block))
    assert launched(words) == ["train", "x=1", "a.b=1", "c=[1, 2]"]
    assert commands("A=1 pip install 'x[y]' && cd z  # w | v") == [["pip", "install", "x[y]"], ["cd", "z"]]


@pytest.mark.parametrize(
    "command",
    [
        "python -m discojax.launch discover run.sed=1",
        "python -m discojax.launch discover --nonsense",
        "python -m discojax.launch train --objectives dop",
        "python -m discojax.launch check nowhere.py",
        "python -m discojax.launch --config nowhere",
        "pip install -e '.[nowhere]'",
        "python -m pytest tests/nowhere.py",
        "python -m pytest -m quick",
        "python benchmarks/nowhere.py",
        "nowhere --help",
    ],
)
def test_a_command_that_there_is_not_is_seen(command: str, pytestconfig: pytest.Config) -> None:
    with pytest.raises((AssertionError, UserError)):
        check_command(shlex.split(command), pytestconfig)


def test_a_script_that_does_not_take_its_arguments_is_seen() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stop_at_arguments.py"))],
        input=json.dumps([["-m", "benchmarks", "--quick"], ["-m", "benchmarks", "--nonsense"]]),
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    good, bad = json.loads(done.stdout.splitlines()[-1])
    assert good is None and "--nonsense" in bad
