"""The benchmarks' one command makes its one table."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_makes_one_table(repository, tmp_path):
    table = tmp_path / "table.md"
    words = ["--quick", "--only", "swap,head,report", "--save", str(table)]
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    heading, rule, *lines, _, facts = table.read_text(encoding="utf-8").strip().splitlines()
    assert heading == "| what | ours | peer | ratio | in |" and set(rule) == set("|-")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 5 for row in rows)
    named = {row[0]: row for row in rows}
    expected = "a new objective in a lane against compiling", "from being accepted", "against dense"
    for what in (*expected, "report of 20 candidates"):
        assert any(what in name for name in named), what
    for row in rows:
        assert all(float(cell.replace(",", "")) > 0 for cell in row[1:4] if cell[:1].isdigit()), row
        assert any(cell[:1].isdigit() for cell in row[1:4]), row
    assert "jax" in facts and "Python" in facts


def test_a_part_that_is_not_there_is_named_with_the_nearest(repository):
    command = [sys.executable, "-m", "benchmarks", "--only", "swop"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and "There is no part 'swop'" in done.stderr and "swap" in done.stderr
