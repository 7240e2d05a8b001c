"""The judge that a config names: where it is asked, with whose key, and what is said where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from discojax.config import load
from discojax.errors import UserError
from discojax.search import judging
from discojax.search.display import display
from discojax.search.evaluate import evaluate
from discojax.search.trials import Trial
from discojax.search.tuning import Choice
from discojax.tasks.own_rewards import identify, overlapping
from discojax.tasks.types import Prompts

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")


class Known:
    """What a client was made with; nothing is sent."""

    name, model = "server", "model"

    def __init__(self, made):
        self.made, self.base_url = made, made.get("base_url") or ""
        self.options = {"thinking": made.get("thinking")}

    def probe(self):
        self.made["probed"] = True


@pytest.mark.parametrize(
    ("proposer", "judge", "shared"),
    [
        ("gemini", "openai:qwen3", False),  # Gemini's address and key are nothing to another server
        ("openai", "gemini:flash", False),
        ("openai", "openai:qwen3", True),
        ("evolution", "openai:qwen3", True),  # no server proposes, so these can only be the judge's
    ],
)
def test_a_judge_of_another_server_does_not_take_the_proposers_address_and_key(
    proposer, judge, shared, monkeypatch
):
    made = {}
    monkeypatch.setattr(
        judging, "connect", lambda server, model, **given: made.update(given, server=server) or Known(made)
    )
    config = load(None, [
        f"search.proposer={proposer}", f"evaluation.judge='{judge}'", "proposer.base_url='http://there/v1'",
        "proposer.key_variable=MY_KEY",
    ])  # fmt: skip
    assert judging.make_judge(config) is not None
    assert made["server"] == judge.partition(":")[0] and made["probed"]
    expected = ("http://there/v1", "MY_KEY") if shared else (None, None)
    assert (made["base_url"], made["key_variable"]) == expected


def test_verdicts_are_kept_by_all_that_decides_them(monkeypatch):
    monkeypatch.setattr(judging, "connect", lambda server, model, **given: Known(given))
    judge = "evaluation.judge='openai:qwen3'"

    def settings(*changes):
        return judging.make_judge(load(None, [judge, *changes])).settings

    changed = [
        "proposer.base_url='http://there/v1'", "proposer.thinking=high", "proposer.output_tokens=777",
        "task.marker='TL;DR:'",
    ]  # fmt: skip
    assert len({settings(), *map(settings, changed)}) == 1 + len(changed)
    assert settings() == settings("proposer.timeout=7")


@pytest.mark.parametrize(("reward", "opponents"), [("rouge", ["sft"]), ("words:score", ["human", "sft"])])
def test_rouge_does_not_compare_with_what_it_is_measured_from(reward, opponents):
    """The human's own overlap with the human's is 1, and every rate against it 0."""
    config = load(None, ["evaluation.bootstrap=20", "evaluation.judged=8"])
    prompts = Prompts.of([(1, i) for i in range(8)], 2, 0)
    human = [f"a good film of {i} and more" for i in range(8)]
    task = SimpleNamespace(
        references={"report": human}, prompts={"report": prompts},
        asked=lambda split: [str(i) for i in range(8)],
        rewards={"report": identify(reward)},
        reward={"report": lambda prompts, texts: np.asarray([overlap_of(p, t) for p, t in
                                                              zip(prompts, texts, strict=True)])},
    )  # fmt: skip

    def overlap_of(prompt, text):
        return overlapping({prompt: human[int(prompt)]})([prompt], [text])[0]

    trial = Trial(4000, "preferences", "report", 1, (0.1,), (1, 2), 8)
    texts = np.asarray(["a good film"] * 4 + ["no"] * 4)
    found = {
        (name, beta, seed): SimpleNamespace(
            status="ok", per_prompt={"completion": texts[:: 1 if name == "dpo" else -1]}
        )
        for name, beta in (("sft", 0.0), ("dpo", 0.1))
        for seed in trial.seeds
    }
    with display() as screen:
        rates = judging.win_rates(config, task, None, found, {"dpo": Choice(1e-3, 0.1)}, trial, screen)
    assert list(dict.fromkeys(rate.opponent for rate in rates)) == opponents
    assert rates[-1].rate.value == 0.5


@pytest.mark.parametrize(
    ("judge", "variable"),
    [("gemini:gemini-flash-latest", "GEMINI_API_KEY"), ("openai:gpt", "OPENAI_API_KEY")],
)
def test_a_judge_without_a_key_is_told_before_anything_is_trained(judge, variable, tmp_path, monkeypatch):
    pytest.importorskip("google.genai" if judge.startswith("gemini") else "openai")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    config = load(None, [f"run.directory={tmp_path}", f"evaluation.judge='{judge}'"])
    with pytest.raises(UserError, match=variable):
        evaluate(config, ["dpo"])
    assert not config.run.path.exists()
