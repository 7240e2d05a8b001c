"""The paper's experiments from the command line, by their configs, on stand-ins for what the hub has."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from discojax.config import load
from discojax.launch import main
from discojax.search import archive as archives

pytest.importorskip("transformers")
pytest.importorskip("tensorflow_datasets")

HERE = Path(__file__).parent


def _module(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


standins = _module("standins", HERE / "tasks" / "standins.py")

FEW = (
    "population.lanes=4", "population.batch=8", "population.accumulate=2", "population.dtype=float32",
    "population.chunk=2", "population.mesh={lane: 0, data: 1, model: 1}", "evaluation.seeds=2",
    "evaluation.steps=2", "evaluation.prompts=8", "evaluation.search_prompts=4",
    "evaluation.held_out_pairs=6", "evaluation.bootstrap=20", "evaluation.judged=4",
    "task.held_out_prompts=0.3",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cache"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISCOJAX_CACHE", folder)
        for name, value in zip(names, (folder, 0.1), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The three experiments' models, as the hub would have them."""
    root = tmp_path_factory.mktemp("hub")
    standins.policy(root / "zephyr", standins.GEMMA, chat=True)
    return root


def run(command, config, folder, *overrides):
    assert main([command, "--config", config, *FEW, f"run.directory={folder}", *overrides]) == 0
    (made,) = folder.iterdir()
    return made


def halves(count):
    """Real sentences as (beginning, rest, another's rest)."""
    rows = [text.split() for text in standins.texts(3 * count) if len(text.split()) > 8]
    return [(" ".join(a[:3]), " " + " ".join(a[3:8]), " " + " ".join(b[3:8])) for a, b in pairwise(rows)][
        :count
    ]


def lanes(folder):
    with archives.open_archive(folder / "archive.sqlite") as archive:
        return archives.evaluations(archive), archives.get_meta(archive, "tasks")["preferences"]


@pytest.fixture(scope="module")
def answering():
    sys.path.insert(0, str(HERE / "proposers"))
    pytest.importorskip("openai")
    server = _module("server_of_judges", HERE / "proposers" / "server.py")

    def answer(body, number):
        asked = body["messages"][-1]["content"]
        a, b = re.findall(r"(?:Summary|Reply) [AB]:\n(.*?)\n\n", asked, re.DOTALL)
        return f"Comparison: one is longer.\nPreferred: {'A' if len(a) > len(b) else 'B'}"

    with server.Server(answer=answer) as running:
        yield running
    sys.path.remove(str(HERE / "proposers"))


@pytest.mark.slow
def test_tldr_is_judged_on_posts_with_their_own_summaries_in_one_format(
    home, answering, tmp_path, monkeypatch
):
    """Correct prompts: every training pair has its own post, in the form that is measured with."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    pairs = tmp_path / "comparisons.jsonl"
    rows = [
        {"prompt": f"TITLE: {p}\nPOST: {p} {g}", "chosen": f"TL;DR:{g}", "rejected": f"TL;DR: {b}"}
        for p, g, b in halves(60)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "no summaries"}]))
    posts = tmp_path / "posts.jsonl"
    posts.write_text(
        "".join(
            json.dumps({"prompt": f"POST: {p} {b}\nTL;DR:", "label": g}) + "\n" for p, g, b in halves(90)[60:]
        )
    )
    made = run(
        "evaluate", "tldr_paper", tmp_path / "runs", f"policy.pretrained={home / 'zephyr'}",
        f"task.data={pairs}", f"task.prompts={posts}", "task.prompt_tokens=60", "task.completion_tokens=16",
        "evaluation.judge=openai:qwen3:8b", f"proposer.base_url={answering.url}/v1",
        "policy.lora={rank: 2, alpha: 4, targets: [query, value]}", "--objectives", "discopop",
    )  # fmt: skip
    _, facts = lanes(made)
    assert facts["style"] == "chat" and facts["rows left out"] == 1
    assert facts["named"] == ["comparisons.jsonl, line 61: no chosen"]
    assert 0 < facts["parameters"] < facts["frozen parameters"]  # adapters over one base
    asked = [e.body["messages"][-1]["content"] for e in answering.state.generations]
    shown = {re.search(r"Text:\n(.*?)\n\nSummary A", one, re.DOTALL)[1] for one in asked}
    assert len(shown) == 4  # posts judged, each once in each order and against each opponent
    assert all(one.startswith("POST: ") and "TL;DR" not in one for one in shown)
    written = {json.loads(line)["label"].strip() for line in posts.read_text().splitlines()}
    assert any(text in one for text in written for one in asked)
    rates = (made / "winrates.csv").read_text()
    assert "human" in rates and "openai:qwen3:8b" in rates


def test_the_configs_have_the_papers_settings():
    imdb, tldr, discovery = (load(f"{name}_paper") for name in ("imdb", "tldr", "discovery"))
    assert imdb.policy.pretrained == "lvwerra/gpt2-imdb" and imdb.population.learning_rate == 5e-5
    assert imdb.evaluation.reward == "siebert/sentiment-roberta-large-english"
    assert imdb.search.betas == (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    assert (imdb.task.completion_tokens, imdb.task.temperature, imdb.evaluation.prompts) == (60, 1.0, 1000)
    for config in (tldr, discovery):
        assert config.policy.pretrained == "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1"
        assert (config.search.betas, config.population.learning_rate) == ((0.05,), 5e-7)
    for config, pairs, epochs in ((imdb, 20_000, 3), (tldr, 9253, 2), (discovery, 6750, 2)):
        assert config.population.batch == 128 and config.task.pairs == pairs
        trained = pairs * (1 - config.task.held_out_prompts)
        assert config.evaluation.steps == pytest.approx(epochs * trained / 128, rel=0.02)
    assert tldr.task.marker == "\n\nTL;DR:" and discovery.task.data == "hf:argilla/dpo-mix-7k"
