"""Judges: what they are asked, how often, and what becomes of replies that are no verdict."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from discojax.errors import UserError
from discojax.tasks.judges import LanguageModelJudge, RewardJudge, parse, question

POSTS = ["the first post", "the second post", "the third post"]
OURS = ["ours one", "ours two", "ours three"]
THEIRS = ["theirs one", "theirs two", "theirs three"]


class Model:
    """A model on a wire: says what `answer(post, a, b)` says, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked, self._lock = answer, [], threading.Lock()

    def __call__(self, text: str) -> str:
        post, a, b = re.fullmatch(
            r".*Text:\n(.*)\n\nSummary A:\n(.*)\n\nSummary B:\n(.*)\n\nAnswer with.*", text, re.DOTALL
        ).groups()
        with self._lock:
            self.asked.append((post, a, b))
        return self.answer(post, a, b)


def judge(answer, tmp_path, model="some-model"):
    asked = Model(answer)
    return LanguageModelJudge(asked, model, root=tmp_path), asked


def says(letter: str) -> str:
    return f"Comparison: it says more.\nPreferred: {letter}"


def test_each_pair_is_seen_once_in_each_order(tmp_path):
    one, model = judge(lambda post, a, b: says("A"), tmp_path)
    verdicts = one.compare(POSTS, OURS, THEIRS)
    expected = {(p, a, b) for p, a, b in zip(POSTS, OURS, THEIRS, strict=True)}
    expected |= {(p, b, a) for p, a, b in expected}
    assert sorted(model.asked) == sorted(expected)  # each once, and nothing else
    np.testing.assert_array_equal(verdicts.win, 0.5)  # a judge that prefers a place prefers nobody
    np.testing.assert_array_equal(verdicts.unparseable + verdicts.unanswered + verdicts.ties, 0)


def test_a_preference_that_holds_in_both_orders_is_a_win(tmp_path):
    one, _ = judge(lambda post, a, b: says("A" if a.startswith("ours") else "B"), tmp_path)
    np.testing.assert_array_equal(one.compare(POSTS, OURS, THEIRS).win, 1.0)
    np.testing.assert_array_equal(one.compare(POSTS, THEIRS, OURS).win, 0.0)


def test_ties_count_a_half_and_are_counted(tmp_path):
    one, _ = judge(lambda post, a, b: says("TIE") if "second" in post else says("A"), tmp_path)
    verdicts = one.compare(POSTS, OURS, THEIRS)
    np.testing.assert_array_equal(verdicts.win, 0.5)
    np.testing.assert_array_equal(verdicts.ties, [0, 2, 0])


def test_nonsense_is_counted_and_is_neither_a_loss_nor_a_zero(tmp_path):
    def answer(post, a, b):
        return "I would rather talk about the weather." if "second" in post else says("A")

    one, _ = judge(answer, tmp_path)
    verdicts = one.compare(POSTS, OURS, THEIRS)
    np.testing.assert_array_equal(np.isnan(verdicts.win), [False, True, False])
    np.testing.assert_array_equal(verdicts.unparseable, [0, 2, 0])


def test_questions_that_fail_are_counted_apart(tmp_path):
    def answer(post, a, b):
        if "third" in post and a.startswith("ours"):
            raise UserError("The server is gone.")
        return says("A")

    one, _ = judge(answer, tmp_path)
    verdicts = one.compare(POSTS, OURS, THEIRS)
    np.testing.assert_array_equal(np.isnan(verdicts.win), [False, False, True])
    np.testing.assert_array_equal(verdicts.unanswered, [0, 0, 1])
    np.testing.assert_array_equal(verdicts.unparseable, 0)


def test_a_judge_that_never_answers_is_one_sentence_and_is_not_asked_for_ever(tmp_path):
    def answer(post, a, b):
        raise UserError("The key is not accepted.")

    one, model = judge(answer, tmp_path)
    posts = [f"post {i}" for i in range(300)]
    with pytest.raises(UserError, match="some-model answered none of 600 questions: The key"):
        one.compare(posts, ["a"] * 300, ["b"] * 300)
    assert len(model.asked) < 40


def test_a_verdict_is_paid_for_once(tmp_path):
    one, model = judge(lambda post, a, b: says("A"), tmp_path)
    first = one.compare(POSTS, OURS, THEIRS)
    again, other = judge(lambda post, a, b: says("B"), tmp_path)
    second = again.compare(POSTS, OURS, THEIRS)
    assert len(model.asked) == 6 and other.asked == []
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    third, another = judge(lambda post, a, b: says("B"), tmp_path, model="another-model")
    third.compare(POSTS, OURS, THEIRS)
    assert len(another.asked) == 6  # another model's verdicts are other verdicts


def test_a_reply_that_was_cut_or_withheld_is_asked_for_again_and_settings_are_part_of_a_verdict(tmp_path):
    cut, _ = judge(lambda post, a, b: "" if "first" in post else "Comparison: it", tmp_path)
    assert cut.compare(POSTS, OURS, THEIRS).unparseable.sum() == 6
    one, model = judge(lambda post, a, b: says("A"), tmp_path)
    assert np.isfinite(one.compare(POSTS, OURS, THEIRS).win).all() and len(model.asked) == 6
    other, another = judge(lambda post, a, b: says("B"), tmp_path)
    replace(other, settings="thinking").compare(POSTS, OURS, THEIRS)
    assert len(another.asked) == 6


def test_replies_that_never_came_are_asked_for_again(tmp_path):
    one, _ = judge(lambda post, a, b: says("A"), tmp_path)
    failing, _ = judge(
        lambda post, a, b: says("A") if "first" in post else (_ for _ in ()).throw(UserError("No.")), tmp_path
    )
    assert np.isnan(failing.compare(POSTS, OURS, THEIRS).win).sum() == 2
    assert np.isfinite(one.compare(POSTS, OURS, THEIRS).win).all()


def test_equal_completions_are_a_tie_and_cost_nothing(tmp_path):
    one, model = judge(lambda post, a, b: says("A"), tmp_path)
    verdicts = one.compare(POSTS, OURS, [OURS[0], *THEIRS[1:]])
    assert verdicts.win[0] == 0.5 and verdicts.ties[0] == 2
    assert len(model.asked) == 4


def test_an_empty_completion_is_shown_as_such(tmp_path):
    one, model = judge(lambda post, a, b: says("B" if a == "(empty)" else "A"), tmp_path)
    verdicts = one.compare(POSTS[:1], [""], THEIRS[:1])
    assert verdicts.win[0] == 0.0 and len(model.asked) == 2


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (says("A"), 1.0), (says("B"), 0.0), (says("TIE"), 0.5), (says("tie."), 0.5),
        ("**Preferred:** B", 0.0), ("Preferred: Summary A", 1.0), ("A", 1.0), ("It is B that\nB", 0.0),
        ("", None), ("I prefer both.", None), ("Preferred: C", None), ("Preferred: A\nPreferred: B", None),
        ("Comparison: A is preferred. A is short.", None), ("Comparison: none.\nPreferred: A or B", None),
        ("Preferred: A (it is concise)", 1.0), ("Preferred: B, because A rambles.", 0.0),
        ("Preferred: A because it is short", 1.0), ("Preferred: TIE (both are short)", 0.5),
        ("Preferred: A (a more precise one)", 1.0), ("**Preferred:** Summary B - shorter", 0.0),
        ("Preferred: A, and clearly so.", 1.0), ("Preferred: A\nB is too long.", 1.0),
        ("Preferred: <A, B or TIE>", None), ("Preferred: A, or B", None), ("Preferred: A/B", None),
        ("Preferred: A, and Summary B", None), ("Preferred: a good one", None),
        ("Preferred: A, because.\nPreferred: B, because.", None),
    ],
)  # fmt: skip
def test_what_is_a_verdict(reply, verdict):
    assert parse(reply) == verdict


def test_the_question_holds_both_summaries_in_their_places():
    text = question("a post", "one", "two")
    assert text.index("a post") < text.index("Summary A:\none") < text.index("Summary B:\ntwo")


def test_a_reward_judges_by_its_scores_and_says_that_it_is_a_proxy():
    scores = {"ours one": 1.0, "ours two": 0.2, "ours three": np.nan, "theirs one": 0.5, "theirs two": 0.2,
              "theirs three": 0.0}  # fmt: skip
    one = RewardJudge(lambda prompts, texts: np.array([scores[text] for text in texts]))
    verdicts = one.compare(POSTS, OURS, THEIRS)
    np.testing.assert_array_equal(verdicts.win, [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(verdicts.ties, [0, 2, 0])
    np.testing.assert_array_equal(verdicts.unparseable, [0, 0, 2])
    assert one.proxy and "proxy" in one.name
