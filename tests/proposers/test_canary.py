"""A whole discovery with a canary for a key, searched for in all that it leaves and in its children."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clients import CANARY, KEY_NAMES, installed
from server import Server
from test_keys import FORMS

SMALL = (
    "policy.vocab_size=512", "policy.width=16", "policy.layers=1", "policy.heads=2", "sft.steps=30",
    "task.pairs=32", "task.completions=2", "population.lanes=4", "population.batch=8", "population.chunk=3",
    "search.candidates=4", "search.generations=1", "search.betas=[0.1]", "search.library=[dpo]",
    "search.rungs=[[1, 2, 64]]",
    "evaluation.prompts=12", "evaluation.search_prompts=12", "evaluation.seeds=2", "evaluation.steps=2",
    "evaluation.finalists=1", "evaluation.bootstrap=50", "evaluation.baselines=[dpo]",
    "proposer.candidates=2", "proposer.failures=3", "proposer.attempts=2", "proposer.timeout=20",
)  # fmt: skip


def environments(parent: int) -> dict[str, bytes]:
    """By its number, what the system says of every process that descends from one, but itself."""
    seen = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            ancestors, pid = [], int(entry.name)
            while pid > 1:
                ancestors.append(pid)
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent in ancestors[1:]:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                seen[entry.name] = command + b"\0" + (entry / "environ").read_bytes()
    return seen


def discover(folder: Path, *overrides: str) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    """Exit code, all files and outputs it leaves, and the environments of its children."""
    command = [sys.executable, "-m", "discojax.launch", "discover", *SMALL, *overrides]
    command += [f"run.directory={folder / 'runs'}"]
    caches = {"DISCOJAX_CACHE": str(folder / "cache"), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache/xla")}
    wandb = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"), str(folder / "wandb"))
    environment = {**os.environ, **caches, **wandb, "WANDB_MODE": "offline", "JAX_PLATFORMS": "cpu"}
    children: dict[str, bytes] = {}
    with open(folder / "stdout", "ab") as out, open(folder / "stderr", "ab") as err:
        run = subprocess.Popen(
            command, stdout=out, stderr=err, env={**environment, **dict.fromkeys(KEY_NAMES, CANARY)}
        )
        try:
            while run.poll() is None:
                children |= environments(run.pid)  # the last look: before its exec, a child copies the run
                time.sleep(0.2)
        finally:
            run.kill()
    left = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return run.returncode, left, children


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not installed("openai"), reason="openai is not installed")
@pytest.mark.skipif(not installed("google.genai"), reason="google.genai is not installed")
@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed")
def test_a_discovery_leaves_no_key_anywhere(server: Server, tmp_path: Path) -> None:
    server.state.key = CANARY
    server.state.script = ["ok", "echo_key", "echo_key", "prose", "wrong_schema", "echo_key", "ok"]
    gemini = ("search.proposer=gemini", f"proposer.base_url={server.url}", "run.wandb=losses")
    code, _, children = discover(tmp_path, *gemini)
    assert code == 0, (tmp_path / "stderr").read_text()
    # Then a key that is no longer good ends the run in one sentence, which does not hold it either.
    server.state.key = "another"
    openai = ("search.proposer=openai", f"proposer.base_url={server.url}/v1", "proposer.models=[gpt-oss-20b]")
    code, left, more = discover(tmp_path, *openai, "run.name=expired")
    assert code == 2 and b"missing, wrong or expired" in left["stderr"] and b"(key removed)" in left["stderr"]
    for command in (b"candidates.worker", b"wandb-core"):
        assert any(command in content for content in children.values()), command
    for name, content in {**left, **children, **more}.items():
        for form in FORMS:
            assert form not in content, name
    with sqlite3.connect(tmp_path / "runs" / "quickstart" / "archive.sqlite") as archive:
        written = "\n".join(archive.iterdump())
    assert CANARY not in written and "gpt-oss" not in written
    assert "gemini-flash-latest-001" in written  # what answered
