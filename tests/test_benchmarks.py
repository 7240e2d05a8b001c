"""The benchmarks' one command makes its one table."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from flax import nnx

from benchmarks import measuring, utilisation
from benchmarks.steps import PAIRS, PROMPT, TOKENS
from discojax.policies.logprobs import pair_logps


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_makes_one_table(repository, tmp_path):
    table = tmp_path / "table.md"
    words = ["--quick", "--only", "swap,head,replay,report", "--save", str(table)]
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
    for what in (*expected, "40 proposals through gate and archive", "report of 20 candidates"):
        assert any(what in name for name in named), what
    for row in rows:
        assert all(float(cell.replace(",", "")) > 0 for cell in row[1:4] if cell[:1].isdigit()), row
        assert any(cell[:1].isdigit() for cell in row[1:4]), row
    assert "jax" in facts and "Python" in facts


def test_a_part_that_is_not_there_is_named_with_the_nearest(repository):
    command = [sys.executable, "-m", "benchmarks", "--only", "swop"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and "There is no part 'swop'" in done.stderr and "swap" in done.stderr


def test_utilisation_counts_what_a_step_computes():
    """The compiler's count of the step's own gradient, without loops: a pair's prompt is read once."""
    graph, params = measuring.policy()
    pairs = measuring.synthetic_pairs(measuring.TINY_GPT2, pairs=PAIRS, prompt=PROMPT, tokens=TOKENS)

    def total(params):
        logps = pair_logps(
            nnx.merge(graph, params), *pairs[:5], tokens=TOKENS, prompts=PROMPT, block=2 * PAIRS * TOKENS
        )
        return (logps**2).sum()

    compiler = jax.jit(jax.grad(total)).lower(params).compile().cost_analysis()["flops"]
    # Beyond our count: norms, activations, softmax, and attention of which no half is left out.
    assert 1.0 <= compiler / utilisation.needed_flops(measuring.TINY_GPT2) < 1.06


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312), ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197),
        ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918),
        ("TPU v4 lite", None), ("TPU v5 of tomorrow", None), ("NVIDIA L4", None),
    ],
)  # fmt: skip
def test_the_peak_is_the_devices_own_or_there_is_none(kind, peak, monkeypatch):
    device = SimpleNamespace(device_kind=kind, platform="tpu" if kind.startswith("TPU") else "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 2)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    row = utilisation._utilisation("a step", 1e14)
    if peak is None:
        assert row.ratio is None and row.peer == "" and kind in row.note
    else:
        assert row.ratio == pytest.approx(1e14 / (2 * peak * 1e12)) and "bf16" in row.note


def test_on_a_cpu_the_peak_is_a_product_of_its_own():
    row = utilisation._utilisation("a step", 1e9)
    assert row.ratio > 0 and "product here" in row.note
