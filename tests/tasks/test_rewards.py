import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from discojax.data import reviews
from discojax.errors import UserError
from discojax.tasks import rewards

# Measured on held-out text: .66-.69, .70-.71, .75-.76, .893-.897 (IMDb) and .66-.69, .715-.733,
# .740-.744, .743-.747 (Rotten Tomatoes). The floors leave three standard errors of 1,500 texts.
FLOORS = {
    "imdb": {"8": 0.62, "16": 0.66, "32": 0.71, "full": 0.87},
    "rotten_tomatoes": {"8": 0.62, "16": 0.67, "32": 0.70, "full": 0.70},
}


@pytest.fixture(scope="module")
def data():
    return reviews.load()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def models(data, root):
    return {role: rewards.build(data, role, root=root) for role in rewards.ROLES}


@pytest.fixture(scope="module")
def small(data):
    part = data.take(range(600))
    return rewards.train(part.texts, part.labels, seed=3)


@pytest.mark.parametrize("role", rewards.ROLES)
def test_accuracy_on_held_out_text_is_measured_and_above_its_floor(models, role):
    measured = models[role].metadata["accuracy"]
    for source, floors in FLOORS.items():
        assert measured[source].keys() == floors.keys()
        for length, floor in floors.items():
            assert measured[source][length] > floor, (source, length)


def test_measured_accuracy_is_that_of_the_scores(data, models):
    part = reviews.fold(data, "rotten_tomatoes", "policy").take(range(1000, 1100))
    model = models["reward_report"]
    right = [
        (score > 0.5) == (label == 1)
        for score, label in zip(model.score(part.texts), part.labels, strict=True)
    ]
    assert rewards.accuracy(model, part)["rotten_tomatoes"]["full"] == np.mean(right)


def test_the_three_models_differ_but_agree(data, models):
    """Trained on texts that do not overlap: correlated, as they must be, and not the same."""
    prompts = reviews.fold(data, "imdb", "prompts_report").texts[:500]
    scores = np.corrcoef(
        [model.score([" ".join(text.split()[:32]) for text in prompts]) for model in models.values()]
    )
    off_diagonal = scores[np.triu_indices(3, 1)]
    assert np.all((off_diagonal > 0.5) & (off_diagonal < 0.95))
    assert len({model.sha256 for model in models.values()}) == 3


def test_scores_are_probabilities_of_logits(models):
    texts = ["a wonderful , moving film", "a dull , pointless mess", "the film"]
    model = models["reward_search"]
    score, logit = model.score(texts), model.logit(texts)
    assert score.dtype == logit.dtype == np.float32
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-logit)), rtol=1e-5)
    assert score[0] > 0.85
    assert score[1] < 0.15
    assert model.score([]).shape == (0,)


def test_a_text_that_says_nothing_scores_a_half(models):
    for model in models.values():
        np.testing.assert_array_equal(model.score(["", "  \n", "...", "zzqqxy"]), np.float32(0.5))
        np.testing.assert_array_equal(model.logit([""]), np.float32(0))


def test_a_score_does_not_depend_on_the_other_texts_or_on_case(small):
    texts = ["An excellent film", "the worst", "", "so so"]
    together = small.score(texts)
    np.testing.assert_array_equal(together, np.concatenate([small.score([text]) for text in texts]))
    np.testing.assert_array_equal(together, small.score([text.upper() for text in texts]))


def test_the_formula_is_tf_idf_by_hand(small):
    known = {term: i for i, term in enumerate(small.terms)}
    text = "a great great film !"
    words = text.split()
    counts = {}
    for term in [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]:
        counts[term] = counts.get(term, 0) + 1
    features = {known[t]: (1 + np.log(n)) * small.idf[known[t]] for t, n in counts.items() if t in known}
    assert len(features) >= 5
    norm = np.sqrt(sum(value**2 for value in features.values()))
    expected = sum(value / norm * small.weights[i] for i, value in features.items())
    np.testing.assert_allclose(small.logit([text])[0], expected, rtol=1e-5)


def test_training_is_deterministic_and_the_seed_counts(data, small):
    part = data.take(range(600))
    assert rewards.train(part.texts, part.labels, seed=3).sha256 == small.sha256
    assert rewards.train(part.texts, part.labels, seed=4).sha256 != small.sha256


def test_a_saved_model_is_the_same_model_without_pickle(small, tmp_path):
    rewards.save(tmp_path, small)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".npz"]
    loaded = rewards.load(tmp_path)
    assert loaded.sha256 == small.sha256
    assert dict(loaded.metadata) == json.loads(json.dumps(dict(small.metadata)))
    np.testing.assert_array_equal(loaded.score(["a great film"]), small.score(["a great film"]))


def test_is_trained_again_only_if_an_input_changes_or_the_entry_is_broken(data, tmp_path, monkeypatch):
    part = data.take(range(700))
    first = rewards.build(part, "reward_label", root=tmp_path)
    trained = []
    train = rewards.train
    monkeypatch.setattr(rewards, "train", lambda *args: trained.append(args) or train(*args))
    assert rewards.build(part, "reward_label", root=tmp_path).sha256 == first.sha256
    assert not trained
    (weights,) = tmp_path.glob("reward-label-*/weights.npz")
    content = bytearray(weights.read_bytes())
    content[-200] ^= 1
    weights.write_bytes(content)
    assert rewards.build(part, "reward_label", root=tmp_path).sha256 == first.sha256
    assert len(trained) == 1
    rewards.build(part, "reward_label", seed=1, root=tmp_path)
    rewards.build(data.take(range(650)), "reward_label", root=tmp_path)
    assert len(trained) == 3


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="at least two positive"):
        rewards.train(["good film", "good film"], np.array([1, 1]))
    with pytest.raises(UserError, match="No word occurs in two"):
        rewards.train(["a1", "a2", "a3", "a4"], np.array([1, 1, 0, 0]))
    with pytest.raises(UserError, match="reward_label"):
        rewards.build(data, "policy", root=tmp_path)


def test_five_thousand_short_texts_a_second(data, models):
    texts = [" ".join(text.split()[:32]) for text in data.texts[:4000]]
    model = models["reward_search"]
    model.score(texts[:10])
    best = np.inf
    for _ in range(3):
        start = time.process_time()  # this test is not about who else is on the machine
        model.score(texts)
        best = min(best, time.process_time() - start)
    assert len(texts) / best > 5000


def test_importing_it_imports_neither_jax_nor_sklearn():
    code = (
        "import sys; import discojax.tasks.rewards; "
        "sys.exit(bool({'jax', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
