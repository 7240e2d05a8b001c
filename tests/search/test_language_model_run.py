"""A whole discovery in which a language model proposes, by the command line, and its replay without one.

The server is a scripted one on this machine; everything else is the real thing.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from discojax.proposers.replay import recorded

pytest.importorskip("google.genai")
sys.path.insert(0, str(Path(__file__).parents[1] / "proposers"))

from server import Server

SMALL = (
    "policy.vocab_size=512", "policy.width=16", "policy.layers=1", "policy.heads=2", "sft.steps=30",
    "task.pairs=32", "task.completions=2", "population.lanes=4", "population.batch=8", "population.chunk=3",
    "search.candidates=6", "search.generations=2", "search.betas=[0.1]", "search.library=[dpo, ipo, slic]",
    "search.rungs=[[1, 2, 64]]", "search.elites=[1, 3, 2]",
    "evaluation.prompts=12", "evaluation.search_prompts=12", "evaluation.seeds=2", "evaluation.steps=2",
    "evaluation.finalists=1", "evaluation.bootstrap=50", "evaluation.baselines=[dpo]",
    "proposer.candidates=2", "proposer.attempts=4", "proposer.output_tokens=1000",
)  # fmt: skip
HEAD = (
    "def loss(policy_chosen_logps, policy_rejected_logps,"
    " reference_chosen_logps, reference_rejected_logps, beta):\n"
    "    m = beta * ((policy_chosen_logps - policy_rejected_logps)"
    " - (reference_chosen_logps - reference_rejected_logps))\n"
)
BODIES = itertools.cycle(
    (
        "return jax.nn.softplus(0.8 - 2.0 * m)",
        "return 3.0 * jax.nn.softplus(-m)",  # DPO's, three times as large
        "return jnp.square(m - 1.3) + jax.nn.relu(-m)",
        "return [m for _ in range(3)]",  # refused, and mended
        "return jnp.exp(-m) + jax.nn.softplus(-3.0 * m)",
        "return jax.nn.softplus(0.8 - 2.0 * m)",  # the first again
        "return jax.nn.relu(0.4 - m) + 0.3 * jnp.tanh(-m)",
        "return jnp.log(m)",  # refused, and mended
        "return jax.nn.softplus(0.1 - 0.3 * m)",
    )
)


def answer(body: dict[str, Any], number: int) -> str:
    """Two losses; where one is to be mended, one that passes."""
    asked = body["contents"][-1]["parts"][0]["text"]
    if "refused" in asked.split("\n")[0]:
        scale = 1.0 + (len(json.dumps(body)) % 97) / 50
        code = HEAD + f"    return jax.nn.softplus({scale:.2f} - m) + jnp.tanh(-{scale:.2f} * m)\n"
        return json.dumps({"thought": "No list.", "name": "mended", "code": code})
    two = [{"thought": "Try.", "name": "tried", "code": f"{HEAD}    {next(BODIES)}\n"} for _ in range(2)]
    return json.dumps({"candidates": two} if '"candidates"' in json.dumps(body) else two[0])


def discover(folder: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "discojax.launch", "discover", *SMALL, *overrides]
    environment = {**os.environ, "DISCOJAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, f"run.directory={folder / 'runs'}"],
        capture_output=True,
        text=True,
        env={**environment, "GEMINI_API_KEY": "any"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(archive: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(archive) as connection:
        return connection.execute(query).fetchall()


ATTEMPTS = (
    "SELECT number, generation, name, operator, status, parents, thought, source, hash, stage, reason,"
    " model, model_version, request, prompt_hash, raw_reply, seed FROM attempts ORDER BY number"
)
SCORES = (
    "SELECT objective, task, rung, beta, seed, steps, status, reward, kl, length FROM scores"
    " ORDER BY objective, task, rung, seed"
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_discovery_by_a_language_model_and_its_replay_without_one(tmp_path):
    with Server() as server:
        server.state.answer = answer
        server.state.script = ["ok", "rate_limited:0.1", "thinking_only", "ok", "safety", "unavailable"]
        shown = discover(
            tmp_path, "search.proposer=gemini", f"proposer.base_url={server.url}", "run.name=asked"
        )
        sent = len(server.state.generations)
    folder = tmp_path / "runs" / "asked"
    archive = folder / "archive.sqlite"
    assert "It made" in shown and "leaderboard" in shown

    statuses = dict(
        rows(archive, "SELECT status, count(*) FROM attempts WHERE operator != 'library' GROUP BY 1")
    )
    assert statuses["accepted"] == 6 and statuses["duplicate"] >= 2 and statuses["unanswered"] == 1
    reasons = [
        reason for (reason,) in rows(archive, "SELECT reason FROM attempts WHERE status = 'duplicate'")
    ]
    assert any("the same program as tried" in reason for reason in reasons)
    assert any("the same slopes as dpo" in reason for reason in reasons)
    assert rows(archive, "SELECT count(*) FROM attempts WHERE operator LIKE '%+repair'")[0][0] >= 1
    # Every proposal is of a request that is kept, and what they cost is what the requests cost.
    made = "FROM attempts WHERE operator != 'library'"
    assert rows(archive, f"SELECT count(*) {made} AND request NOT IN (SELECT hash FROM requests)") == [(0,)]
    (of_attempts,) = rows(archive, f"SELECT sum(tokens_in), sum(tokens_out), round(total(cost), 9) {made}")
    (of_requests,) = rows(
        archive, "SELECT sum(tokens_in), sum(tokens_out), round(total(dollars), 9) FROM spending"
    )
    assert of_attempts == of_requests and of_requests[2] > 0
    purposes = {purpose for (purpose,) in rows(archive, "SELECT DISTINCT purpose FROM requests")}
    assert purposes == {"propose", "repair", "more_tokens"}
    (kept,) = rows(archive, "SELECT count(*) FROM requests")[0]
    assert kept == sent - 2  # the two that failed were sent again, and are not paid for
    lines = [json.loads(line) for line in (folder / "transcripts/transcript.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "exchange" for line in lines) == kept

    # Offline: the same candidates, verdicts and scores. The transcript has the same as the archive.
    assert recorded(folder / "transcripts/transcript.jsonl") == recorded(folder)
    discover(tmp_path, "search.proposer=replay", f"proposer.path={folder}", "run.name=again")
    replayed = tmp_path / "runs" / "again" / "archive.sqlite"
    assert rows(replayed, ATTEMPTS) == rows(archive, ATTEMPTS)
    assert rows(replayed, SCORES) == rows(archive, SCORES)
    assert rows(replayed, "SELECT count(*) FROM requests") == [(0,)]
