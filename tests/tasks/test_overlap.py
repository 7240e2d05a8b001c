"""ROUGE against values worked out by hand, and the model of what tells a person's summary."""

import numpy as np
import pytest

from discojax.errors import UserError
from discojax.tasks import overlap


def test_rouge_is_its_definition():
    found = overlap.rouge(["the cat sat on the mat"], ["the cat was on the mat"])
    assert found["rouge1"][0] == pytest.approx(2 * 5 / 12)
    assert found["rouge2"][0] == pytest.approx(2 * 3 / 10)  # the cat, on the, the mat
    assert found["rougeL"][0] == pytest.approx(2 * 5 / 12)
    # Order matters to the longest common subsequence alone.
    found = overlap.rouge(["mat the on"], ["on the mat"])
    assert found["rouge1"][0] == 1.0 and found["rouge2"][0] == 0.0
    assert found["rougeL"][0] == pytest.approx(1 / 3)


def test_rouge_of_nothing_is_zero_and_repeating_a_word_does_not_help():
    found = overlap.rouge(["", "the the the the"], ["a word", "the end"])
    assert found["rouge1"].tolist() == [0.0, pytest.approx(2 * 1 / 6)]
    assert all(values[0] == 0.0 for values in found.values())


@pytest.fixture(scope="module")
def corpus():
    """Human summaries take up their post; sampled ones are words of other posts."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(80)]
    bodies = [" ".join(rng.choice(words, 20)) for _ in range(120)]
    human = [" ".join(rng.choice(body.split(), 6, replace=False)) + "." for body in bodies]
    sampled = [" ".join(rng.choice(words, 6)) for _ in bodies]
    return bodies, human, sampled


def test_the_model_tells_who_wrote_a_summary_and_says_how_well(corpus):
    bodies, human, sampled = corpus
    model = overlap.train(bodies, human, sampled)
    assert model.metadata["accuracy"] > 0.8
    ours, theirs = model.score(bodies, human), model.score(bodies, sampled)
    assert ours.dtype == np.float32 and theirs.min() >= 0 and ours.max() <= 1
    assert ours.mean() > theirs.mean() + 0.3
    # It reads the post: the same summaries of other posts are no good.
    assert model.score(bodies[1:] + bodies[:1], human).mean() < ours.mean() - 0.1
    assert np.isfinite(model.logit(bodies[:1], [""])).all()


def test_it_is_kept_whole(corpus, tmp_path):
    bodies, human, sampled = corpus
    model = overlap.train(bodies, human, sampled)
    overlap.save(tmp_path, model)
    again = overlap.load(tmp_path, list)
    assert again.sha256 == model.sha256 and again.metadata == model.metadata
    np.testing.assert_array_equal(again.score(bodies, human), model.score(bodies, human))


def test_too_few_posts_are_a_sentence():
    with pytest.raises(UserError, match="at least 10 posts, not 2"):
        overlap.train(["a", "b"], ["a", "b"], ["c", "d"])
