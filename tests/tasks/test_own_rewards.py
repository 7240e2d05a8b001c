"""Rewards that users bring: a function, a classifier, and every way in which they can be wrong."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from discojax.data import tokenizer
from discojax.errors import UserError
from discojax.policies.encoder import Encoder, EncoderConfig
from discojax.tasks.own_rewards import counted, entry_point, own_reward

MODULE = """
def score(prompts, completions):
    return [len(prompt) + 10 * len(completion) for prompt, completion in zip(prompts, completions)]

def short(prompts, completions):
    return [1.0]

def holes(prompts, completions):
    return [float("nan")] * len(prompts)

def fails(prompts, completions):
    raise KeyError("weights")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"reward_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return name


def test_a_function_of_a_module_in_the_current_folder(module):
    reward = own_reward(f"{module}:score")
    np.testing.assert_array_equal(reward(["ab", ""], ["c", "de"]), [12, 20])
    assert reward([], []).shape == (0,)
    assert np.isnan(own_reward(f"{module}:holes")(["a"], ["b"])).all()  # counted by whoever asks


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("scor", r"has no function 'scor'. Did you mean 'score'"),
        ("number", "has no function 'number'"),
        ("", "has no function ''"),
    ],
)
def test_a_function_that_there_is_not(module, function, message):
    with pytest.raises(UserError, match=message):
        entry_point(module, function)


def test_modules_that_cannot_be_had(module, tmp_path):
    with pytest.raises(UserError, match="There is no Python module 'no_such_module_at_all'"):
        own_reward("no_such_module_at_all:score")
    (tmp_path / f"{module}_broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match="cannot be imported .ZeroDivisionError"):
        own_reward(f"{module}_broken:score")
    (tmp_path / f"{module}_needs.py").write_text("import no_such_dependency")
    with pytest.raises(UserError, match="cannot be imported .No module named 'no_such_dependency'"):
        own_reward(f"{module}_needs:score")


def test_a_function_that_fails_or_gives_other_than_one_number_a_text(module):
    with pytest.raises(UserError, match=r"fails failed .KeyError: 'weights'"):
        own_reward(f"{module}:fails")(["a"], ["b"])
    with pytest.raises(UserError, match=r"must give 2 numbers, one a completion, and gave .* shape \(1,\)"):
        own_reward(f"{module}:short")(["a", "b"], ["c", "d"])


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small encoder with random weights, and a tokenizer beside it."""
    from discojax.policies import pretrained

    words = tokenizer.train(["a fine film", "a dull film that never ends"], 280)
    words.save(str(tmp_path / "tokenizer.json"))
    config = EncoderConfig(vocab_size=280, layers=1, width=16, heads=2, hidden=32, max_length=40)
    encoder = Encoder(config, rngs=nnx.Rngs(0))

    def load(_):
        labels = {"0": "NEGATIVE", "1": "POSITIVE"}
        return SimpleNamespace(policy=encoder, hf_config={"id2label": labels}, source=tmp_path)

    monkeypatch.setattr(pretrained, "load", load)
    return encoder, words


def test_a_classifier_scores_whole_texts_whatever_is_beside_them(model):
    encoder, words = model
    reward = own_reward("some/model")
    prompts = ["a fine", "a", "a dull", "a"] * 10
    completions = [" film", " film that never ends", "", " fine film" * 30] * 10
    values = reward(prompts, completions)
    assert values.shape == (40,) and ((values > 0) & (values < 1)).all()
    alone = [reward([p], [c])[0] for p, c in zip(prompts[:4], completions[:4], strict=True)]
    np.testing.assert_allclose(values[:4], alone, atol=1e-5)
    ids = words.encode("a fine film").ids
    logits = np.asarray(encoder(np.asarray([ids], np.int32), np.asarray([len(ids)], np.int32)))[0]
    expected = np.exp(logits[1]) / np.exp(logits).sum()
    assert values[0] == pytest.approx(expected, rel=1e-4)


def test_a_text_too_long_for_a_classifier_keeps_what_is_scored_and_is_counted(model):
    _, words = model
    counts: dict[str, int] = {}
    reward = counted(own_reward("some/model"), counts)
    prompt = "a dull film that never ends " * 30
    assert len(words.encode(prompt).ids) > 2 * 40
    values = reward([prompt, prompt, "a"], [" a fine film", " a dull film", " fine film"])
    assert abs(values[0] - values[1]) > 1e-6  # what differs is the completion
    tail = words.decode(words.encode(f"{prompt} a fine film").ids[-40:])
    assert values[0] == pytest.approx(reward([""], [tail])[0], abs=1e-5)
    assert counts == {"texts scored": 4, "of them cut": 2}
