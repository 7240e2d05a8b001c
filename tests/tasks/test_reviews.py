import csv
import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from discojax.data import reviews as source
from discojax.data import tokenizer
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.sft import SftConfig
from discojax.tasks import reviews
from discojax.tasks.types import Prompts, TaskConfig, assert_disjoint

CONFIG = TaskConfig(
    policy=DecoderConfig(vocab_size=320, layers=1, width=16, heads=2, max_length=12),
    sft=SftConfig(steps=10, batch=8),
    prompt_tokens=5,
    completion_tokens=6,
    pairs=20,
)


@pytest.fixture(scope="module", autouse=True)
def few_reviews(tmp_path_factory):
    """The package's own file, cut to its first reviews: building takes seconds."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    counts: Counter[str] = Counter()
    with source._installed().open(encoding="utf-8", newline="") as given, path.open("w", newline="") as kept:
        rows = csv.DictReader(given)
        writer = csv.DictWriter(kept, ["text", "label", "source"])
        writer.writeheader()
        for row in rows:
            counts[row["source"], row["label"]] += 1
            if counts[row["source"], row["label"]] <= 250:
                writer.writerow({**row, "text": row["text"][:600]})
    assert len(counts) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_installed", lambda: path)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(root):
    """Both tasks, and what was reported while they were built."""
    told: list[tuple[str, int, int]] = []
    tasks = {
        name: reviews.build(name, CONFIG, root=root, report=lambda *step: told.append(step))
        for name in ("rotten_tomatoes", "imdb")
    }
    return tasks, told


@pytest.fixture(scope="module")
def task(built):
    return built[0]["rotten_tomatoes"]


def rows(prompts):
    return [tuple(row[:length]) for row, length in zip(prompts.ids.tolist(), prompts.lengths, strict=True)]


def training_prompts(task):
    lengths = task.pairs.prompt_length
    return [tuple(row[:n]) for row, n in zip(task.pairs.chosen_ids.tolist(), lengths, strict=True)]


def test_a_second_build_reads_the_cache_and_is_the_same(built, root):
    entries = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    told: list[str] = []
    again = reviews.build("imdb", CONFIG, root=root, report=lambda what, done, total: told.append(what))
    first = built[0]["imdb"]
    assert again.identity == first.identity and again.facts == first.facts
    for one, other in zip(
        jax.tree.leaves((again.params, again.pairs)),
        jax.tree.leaves((first.params, first.pairs)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert set(told) == {"reviews", "tokenizer", "reward models"}  # neither trained nor sampled
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == entries


def test_built_again_from_nothing_it_is_the_same(task, tmp_path):
    assert reviews.build("rotten_tomatoes", CONFIG, root=tmp_path).identity == task.identity


def test_the_two_tasks_share_a_policy_and_differ_in_the_rest(built):
    one, other = built[0].values()
    for ours, theirs in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.identity != other.identity
    assert not np.array_equal(one.pairs.chosen_ids, other.pairs.chosen_ids)


def test_no_prompt_is_in_two_splits_or_in_training_whatever_its_source(built):
    found: Counter[tuple[int, ...]] = Counter()
    for task in built[0].values():
        assert set(task.prompts) == set(reviews.SPLITS)
        for prompts in task.prompts.values():
            assert len(prompts.lengths) > 5
            found.update(rows(prompts))
        found.update(training_prompts(task))
    assert max(found.values()) == 1


def test_prompts_are_openings_of_reviews_of_their_own_fold(built):
    texts = source.load()
    roles = {"search": "prompts_search", "select": "prompts_select", "report": "prompts_report"}
    for name, task in built[0].items():
        for split, role in roles.items():
            encoded = tokenizer.encode_batch(task.tokenizer, source.fold(texts, name, role).texts)
            openings = {tuple(ids[:n]) for ids in encoded for n in range(2, 6)}
            assert all(row[1:] in openings for row in rows(task.prompts[split]))


def test_a_prompt_begins_with_bos_once_and_has_two_to_five_tokens_more(built):
    for task in built[0].values():
        for prompt in [row for prompts in task.prompts.values() for row in rows(prompts)]:
            assert prompt[0] == tokenizer.BOS and prompt.count(tokenizer.BOS) == 1
            assert 2 <= len(prompt) - 1 <= 5
            assert tokenizer.EOS not in prompt and tokenizer.PAD not in prompt
        lengths = {len(row) - 1 for prompts in task.prompts.values() for row in rows(prompts)}
        assert lengths == {2, 3, 4, 5}


def test_pairs_are_as_many_as_asked_for_with_bos_once_and_a_reference(built):
    for task in built[0].values():
        pairs = task.pairs
        assert len(pairs.prompt_length) == 20 == task.facts["pairs"]
        for ids in (pairs.chosen_ids, pairs.rejected_ids):
            assert ids.shape == (20, 12)
            assert (ids[:, 0] == tokenizer.BOS).all() and ((ids == tokenizer.BOS).sum(1) == 1).all()
        assert ((pairs.chosen_ids != pairs.rejected_ids).sum(1) > 0).all()
        for logps in (pairs.reference_chosen, pairs.reference_rejected):
            assert logps.shape == (20,) and (logps < 0).all() and np.isfinite(logps).all()


def test_the_rewards_that_label_search_and_report_are_three(task, root):
    from discojax.tasks import rewards

    texts = source.load()
    models = {role: rewards.build(texts, role, root=root) for role in rewards.ROLES}
    assert len({model.sha256 for model in models.values()}) == 3
    sentences = ["a wonderful film with a moving story", "the worst and most boring film", "it has a plot"]
    scores = {role: model.score(sentences) for role, model in models.items()}
    for split, role in reviews.SPLITS.items():
        assert role != "reward_label"
        np.testing.assert_array_equal(task.reward[split]([""] * 3, sentences), scores[role])
    assert not np.allclose(scores["reward_search"], scores["reward_report"])


def test_what_is_built_is_reported(built):
    told = built[1]
    assert all(0 <= done <= total for _, done, total in told)
    finished = {what for what, done, total in told if done == total}
    assert {"reviews", "tokenizer", "reward models", "reference log-probabilities"} <= finished
    assert {"preference pairs (rotten_tomatoes)", "preference pairs (imdb)"} <= finished
    assert any(what.startswith("policy (loss") for what in finished)


def test_the_facts_are_those_of_the_task(task):
    assert task.facts["parameters"] == sum(x.size for x in jax.tree.leaves(task.params))
    assert 3 < task.facts["supervised loss"] < np.log(320) + 0.1
    assert task.facts["prompts"] == {split: len(p.lengths) for split, p in task.prompts.items()}
    assert task.facts["pairs left out"] >= 0
    assert set(task.facts["rewards"]) == {"reward_label", "reward_search", "reward_report"}


def test_decoding_leaves_special_tokens_out(task):
    ids = tokenizer.encode(task.tokenizer, "a fine film")
    assert task.decode([[tokenizer.BOS, *ids, tokenizer.EOS, tokenizer.PAD]]) == ["a fine film"]


def test_an_unknown_task_is_named_with_the_nearest(root):
    with pytest.raises(UserError, match="No task is called 'imbd'.* Did you mean 'imdb'"):
        reviews.build("imbd", CONFIG, root=root)


def test_prompts_and_completions_that_do_not_fit_are_refused_with_the_settings_to_change(root):
    config = dataclasses.replace(CONFIG, completion_tokens=7)
    with pytest.raises(UserError, match=r"13 tokens do not fit .* 12 positions: raise policy.max_length"):
        reviews.build("rotten_tomatoes", config, root=root)


def test_held_out_pairs_share_no_prompt_with_training_or_measuring(root):
    config = dataclasses.replace(CONFIG, held_out_pairs=5)
    task = reviews.build("imdb", config, root=root)
    pairs = task.held_out
    assert pairs is not None and 1 <= len(pairs.prompt_length) <= 5
    lengths = pairs.prompt_length
    held = {tuple(row[:n]) for row, n in zip(pairs.chosen_ids.tolist(), lengths, strict=True)}
    assert len(held) == len(lengths)
    measured = {row for prompts in task.prompts.values() for row in prompts.rows()}
    assert not held & (measured | set(training_prompts(task)))
    assert pairs.reference_chosen is not None and np.isfinite(pairs.reference_chosen).all()
    with pytest.raises(UserError, match=r"too few to take 5000 held-out pairs .* evaluation.held_out_pairs"):
        reviews.build("imdb", dataclasses.replace(CONFIG, held_out_pairs=5000), root=root)


def test_an_overlap_between_what_searches_and_what_reports_is_an_error(built):
    task, other = built[0]["rotten_tomatoes"], built[0]["imdb"]
    assert_disjoint([task], [other])
    assert_disjoint([], [task])
    leaking = dataclasses.replace(task, prompts={**task.prompts, "search": other.prompts["report"]})
    with pytest.raises(UserError, match="imdb reports on .* prompts that rotten_tomatoes trains or searches"):
        assert_disjoint([leaking], [other])
    trained = Prompts(task.pairs.chosen_ids, task.pairs.prompt_length)
    with pytest.raises(UserError, match="that rotten_tomatoes trains or searches on"):
        assert_disjoint([], [dataclasses.replace(task, prompts={**task.prompts, "report": trained})])
    for name in ("label", "search", "select"):
        same = dataclasses.replace(task, rewards={**task.rewards, name: other.rewards["report"]})
        with pytest.raises(UserError, match="is one that rotten_tomatoes labels or searches with"):
            assert_disjoint([same], [other])


def test_no_prompt_is_reported_on_twice(built):
    task = built[0]["imdb"]
    twice = Prompts(*(np.concatenate([x, x[:3]]) for x in task.prompts["report"]))
    with pytest.raises(UserError, match="repeats 3 of its 'report' prompts"):
        assert_disjoint([], [dataclasses.replace(task, prompts={**task.prompts, "report": twice})])
