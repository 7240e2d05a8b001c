"""The judge that a config names: where it is asked, with whose key, and what is said where there is none."""

from __future__ import annotations

import pytest

from discojax.config import load
from discojax.errors import UserError
from discojax.search import judging
from discojax.search.evaluate import evaluate

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")


class Known:
    """What a client was made with; nothing is sent."""

    def __init__(self, made):
        self.made = made

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
