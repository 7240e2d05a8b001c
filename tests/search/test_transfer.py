"""Transfer of a run's finalists: what goes along, what must be fresh, and what is said at its end."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from discojax.config import load
from discojax.errors import UserError
from discojax.report import transfer as report
from discojax.search import archive as archives
from discojax.search import discover, transfer
from discojax.search.correlation import rank_correlation
from discojax.search.laboratory import Contender
from discojax.search.opening import given
from discojax.search.records import Evaluation, EvaluationKey
from discojax.search.statistics import Samples, compare
from discojax.search.transfer import Found, Stage, Transferred, assert_fresh, found_by

_spec = importlib.util.spec_from_file_location("small_data", Path(__file__).with_name("small.py"))
assert _spec and _spec.loader
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)


def contender(name: str) -> Contender:
    return dataclasses.replace(given("dpo"), name=name, origin="proposed")


def test_seeds_of_the_search_may_not_report():
    assert_fresh(frozenset({0, 1, 100}), (5000, 5001))
    with pytest.raises(UserError, match="The seeds 1, 100 would report, and the search"):
        assert_fresh(frozenset({0, 1, 100}), (1, 2, 100))


def test_others_go_along_evenly_over_their_ranks():
    others = tuple(contender(f"o{i}") for i in range(9))
    found = Found((contender("best"),), others, {}, frozenset())
    names = [c.name for c in transfer._going(found, ("dpo", "slic"), 6)]
    assert names == ["best", "dpo", "slic", "o0", "o4", "o8"]  # the worst too, or ranks would say nothing
    assert len(transfer._going(found, ("dpo",), 100)) == 11
    assert [c.name for c in transfer._going(found, ("dpo",), 1)] == ["best", "dpo"]  # finalists always


def test_a_baseline_that_is_among_the_others_goes_once():
    found = Found((contender("best"),), (contender("slic"), contender("x")), {}, frozenset())
    assert [c.name for c in transfer._going(found, ("dpo", "slic"), 9)] == ["best", "dpo", "slic", "x"]


def lane(objective: str, beta: float, reward: float | None, kl: float | None, seed: int = 0) -> Evaluation:
    key = EvaluationKey(objective, objective, "imdb", "search", 0, beta, seed, 5, 1e-3)
    return Evaluation(key, "diverged" if reward is None else "ok", reward=reward, kl=kl)


def test_search_scores_are_frontier_areas_of_what_the_archive_keeps():
    lanes = [
        lane("sft", 0.0, 0.5, 0.0), lane("good", 0.1, 0.7, 10.0), lane("good", 1.0, 0.6, 5.0),
        lane("hurt", 0.1, None, None), lane("hurt", 1.0, 0.6, 5.0), lane("dead", 0.1, None, None),
    ]  # fmt: skip
    scores = transfer._archived(load(None), lanes, 0, "imdb", "search")
    assert scores["good"] == pytest.approx(0.1)  # straight from (0, 0.5) to (10, 0.7)
    assert scores["hurt"] == pytest.approx(0.075) and "dead" not in scores and "sft" not in scores


def test_a_run_that_is_not_there_or_not_finished_is_a_sentence(tmp_path):
    config = load(None, [f"run.directory={tmp_path}"])
    with pytest.raises(UserError, match="There is no run in"):
        found_by(config)
    config.run.path.mkdir()
    archives.open_archive(config.run.path / "archive.sqlite", "x").__exit__()
    with pytest.raises(UserError, match="no held-out evaluation yet: go on with it by `discover"):
        found_by(config)


@pytest.fixture
def transferred(tmp_path):
    rng = np.random.default_rng(0)

    def measured(shift):
        reward = 0.5 + shift + np.array([0.05, 0.1])[:, None, None] + 0.02 * rng.normal(size=(2, 3, 40))
        return Samples(reward, np.full((2, 3, 40), 5.0) * np.array([1, 2])[:, None, None])

    stages = []
    for name, shift in (("other seeds", 0.1), ("imdb", 0.0), ("other policy", -0.2)):
        base = measured(0.0)
        samples = {"find": measured(shift), "dpo": base}
        comparisons = compare(samples, base, np.full(40, 0.5), 10.0, rng=rng, replicates=100)
        correlation = rank_correlation([1, 2, 3, 4, 5], [2, 1, 3, 5, 4])
        stages.append(Stage(name, "detail", comparisons, {"find": 0.1, "dpo": 0.08}, correlation))
    searched = {"find": 0.12, "dpo": 0.08}
    return Transferred(tmp_path, tmp_path, ("find",), ("dpo",), searched, tuple(stages))


def test_each_finalist_has_a_verdict_in_every_stage_and_the_correlation_its_interval(transferred):
    text = io.StringIO()
    report.show(transferred, confidence=0.95, console=Console(file=text, width=100))
    shown = text.getvalue()
    for stage in ("search", "other seeds", "imdb", "other policy"):
        assert stage in shown
    assert "+0.80 [" in shown and "-0.12" in shown
    (sentence,) = report.summary(transferred)
    assert sentence == "find against dpo: better in other seeds; worse in other policy."
    kept = json.loads((transferred.folder / "transfer.json").read_text())
    assert [stage["name"] for stage in kept["stages"]] == ["other seeds", "imdb", "other policy"]


@pytest.mark.slow
def test_a_run_transferred_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path / "cache"))
    small.few_reviews(tmp_path, monkeypatch)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    try:
        config = load("quickstart", (
            *small.SETTINGS, f"run.directory={tmp_path}", "search.candidates=2", "search.generations=1",
            "search.library=[dpo, ipo, exp]", "search.rungs=[[1, 3, 64]]", "search.elites=[1, 3, 2]",
            "evaluation.finalists=1", "evaluation.baselines=[slic]", "transfer.objectives=5",
            "transfer.layers=2", "transfer.width=8", "transfer.heads=2",
        ))  # fmt: skip
        discover.run(config)
        found = transfer.transfer(config, {"imdb": config})
        again = transfer.transfer(config, {"imdb": config})
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [s.name for s in found.stages] == ["other seeds", "imdb", "other reward", "other policy"]
    assert len(found.finalists) == 1 and set(found.baselines) == {"dpo", "slic"}
    assert len(found.searched) == 5
    for stage in found.stages:
        assert set(stage.comparisons) == {*found.finalists, *found.baselines}
        assert set(stage.scores) == set(found.searched) and stage.correlation.pairs >= 4
    held, other = found.stages[1], found.stages[2]
    assert held.comparisons["slic"].score != other.comparisons["slic"].score  # the same lanes, another reward
    assert [s.scores for s in again.stages] == [s.scores for s in found.stages]
    with archives.open_archive(tmp_path / "quickstart" / "archive.sqlite") as archive:
        searched = {e.key.seed for e in archives.evaluations(archive)}
    with archives.open_archive(found.folder / "archive.sqlite") as archive:
        lanes = archives.evaluations(archive)
    assert not searched & {e.key.seed for e in lanes}
    assert len(lanes) == 3 * (2 + 5 * 2 * 2)  # three stages train: the untrained policy, then 5 x 2 x 2
