"""A whole discovery, small: what it scores, that it repeats itself, and that a stop loses nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from discojax import objectives
from discojax.config import Config, load
from discojax.errors import UserError
from discojax.report import summary
from discojax.search import archive as archives
from discojax.search import brackets, discover, laboratory

SMALL = (
    "policy.vocab_size=512", "policy.width=16", "policy.layers=1", "policy.heads=2", "sft.steps=30",
    "task.pairs=48", "task.completions=2", "population.lanes=4", "population.batch=8", "population.chunk=3",
    "search.candidates=3", "search.generations=2", "search.library=[dpo, ipo, exp]",
    "search.rungs=[[1, 4, 64], [1, 5, 2]]", "search.elites=[2, 5, 2]",
    "evaluation.prompts=12", "evaluation.search_prompts=12", "evaluation.seeds=2", "evaluation.steps=4",
    "evaluation.finalists=1", "evaluation.bootstrap=50", "evaluation.baselines=[dpo, slic]",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("few_reviews")


def config(folder, *overrides: str) -> Config:
    return load("quickstart", (*SMALL, f"run.directory={folder}", *overrides))


def scores(outcome: discover.Outcome) -> dict[str, tuple[float, float]]:
    return {name: (c.score.value, c.difference.value) for name, c in outcome.comparisons.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_reviews):
    settings = config(tmp_path_factory.mktemp("runs"))
    return settings, discover.run(settings)


def test_everything_is_scored_and_archived_once(finished):
    settings, outcome = finished
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        attempts = archives.attempts(archive)
        evaluations = archives.evaluations(archive)
    library = [a.name for a in attempts if a.operator == "library"]
    accepted = [a.name for a in attempts if a.operator != "library" and a.status == "accepted"]
    assert library == ["dpo", "slic", "ipo", "exp"] and len(accepted) == 3 == outcome.accepted
    first = [e for e in evaluations if e.key.rung == 0 and e.key.objective != laboratory.SFT]
    assert len(first) == 2 * (4 + 3)  # two betas, one seed
    assert {e.key.objective for e in first} == {*library, *accepted}
    assert len({e.key for e in evaluations}) == len(evaluations)
    assert outcome.scored == 7 and outcome.trial.task == "imdb" and outcome.trial.split == "report"
    assert {c.name for c in outcome.contenders} >= {"dpo", "slic"} and len(outcome.contenders) == 3
    assert any(c.origin == "proposed" for c in outcome.contenders)


def test_rounds_have_their_own_seeds_and_prompts(finished):
    settings, _ = finished
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        keys = [e.key for e in archives.evaluations(archive)]
    seeds = {rung: {k.seed for k in keys if k.rung == rung} for rung in {k.rung for k in keys}}
    assert len(seeds) == 4 and sum(map(len, seeds.values())) == len(set.union(*seeds.values()))
    assert {(k.rung, k.task, k.split) for k in keys} == {
        (0, "rotten_tomatoes", "search"), (1, "rotten_tomatoes", "search"),
        (2, "rotten_tomatoes", "select"), (1000, "imdb", "report"),
    }  # fmt: skip


def test_elites_were_measured_again_before_they_were_believed(finished):
    settings, outcome = finished
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        again = {e.key.objective for e in archives.evaluations(archive, split="select")}
        raced = {e.key.objective for e in archives.evaluations(archive, rung=1)}
    assert {c.name for c in outcome.contenders if c.origin == "proposed"} <= again <= raced
    elites = again - {"dpo", laboratory.SFT}
    library = {name for name in elites if name in objectives.names()}
    assert len(library) == 2 == len(elites - library)  # neither takes the other's places


def test_lanes_of_no_steps_are_the_sft_policy(finished):
    settings, _ = finished
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        untrained = archives.evaluations(archive, objective=laboratory.SFT)
        trained = archives.evaluations(archive, objective="dpo")
    assert untrained and all(e.kl == pytest.approx(0.0, abs=1e-6) for e in untrained)
    assert all(e.kl > 1e-6 for e in trained)


def test_the_metrics_are_json_lines_and_account_for_every_lane_step(finished):
    settings, _ = finished
    rows = [json.loads(line) for line in (settings.run.path / "metrics.jsonl").read_text().splitlines()]
    lanes = [row for row in rows if row["kind"] == "lane"]
    useful = sum(row["useful"] for row in rows if row["kind"] == "progress")
    assert useful == sum(row["train_steps"] for row in lanes) == sum(row["steps"] for row in lanes)
    assert all(0 <= row["train_accuracy"] <= 1 for row in lanes if row["train_steps"])


def test_the_leaderboard_and_its_files(finished, capsys):
    settings, outcome = finished
    board = summary.show(outcome, kl_budget=10.0, confidence=0.95)
    printed = capsys.readouterr().out
    folder = settings.run.path
    assert {row.name for row in board} == {c.name for c in outcome.contenders}
    for file in ("leaderboard.csv", "frontier.png", "curves.png", "results.json"):
        assert (folder / file).stat().st_size > 0 and str(folder / file) in printed.replace("\n", "")
    results = json.loads((folder / "results.json").read_text())
    assert results["objectives"]["dpo"]["verdict"] == "baseline"
    assert results["scored"] == 7


def test_the_same_seed_gives_the_same_leaderboard(finished, tmp_path):
    _, outcome = finished
    assert scores(discover.run(config(tmp_path))) == scores(outcome)


@pytest.mark.parametrize(
    "lanes", [12, pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(finished, tmp_path, monkeypatch, lanes):
    settings, outcome = finished
    stopped = config(tmp_path)
    add = archives.add_evaluations
    count = 0

    def add_until_stopped(archive, new):
        nonlocal count
        count += 1
        if count > lanes:
            raise KeyboardInterrupt
        add(archive, new)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "add_evaluations", add_until_stopped)
        with pytest.raises(KeyboardInterrupt):
            discover.run(stopped)
    again = discover.run(stopped, resume=True)
    assert scores(again) == scores(outcome)
    with archives.open_archive(stopped.run.path / "archive.sqlite") as archive:
        resumed = archives.evaluations(archive)
        attempts = archives.attempts(archive)
        assert [event["kind"] for event in archives.events(archive)] == ["resumed"]
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        assert {e.key for e in resumed} == {e.key for e in archives.evaluations(archive)}
        assert len(resumed) == len(archives.evaluations(archive))
        fresh = archives.attempts(archive)
    keep = ("number", "name", "status", "source", "hash", "parents", "generation")
    assert [[getattr(a, k) for k in keep] for a in attempts] == [[getattr(a, k) for k in keep] for a in fresh]


def test_a_finished_run_resumed_trains_nothing(finished, monkeypatch):
    settings, outcome = finished
    for module in (laboratory, brackets):
        monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("a lane was trained again"))
    assert scores(discover.run(settings, resume=True)) == scores(outcome)


def test_a_run_is_never_overwritten_nor_mixed_with_another(finished):
    settings, _ = finished
    with pytest.raises(UserError, match="--resume"):
        discover.run(settings)
    other = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, seeds=3))
    with pytest.raises(UserError, match="config"):
        discover.run(other, resume=True)
    assert discover.claim(settings).run.name == "quickstart-2"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="run.directory"):
        discover.run(config(tmp_path / "file"))


def test_a_misspelt_baseline_is_told_before_any_work(tmp_path):
    with pytest.raises(UserError, match="discopop"):
        discover.run(config(tmp_path, "evaluation.baselines=[discopopp]"))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_reviews):
    """A training of a loss of the library and of a file."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "mine.py"
    file.write_text(
        "def mine(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,"
        " reference_rejected_logps, beta):\n"
        "    m = (policy_chosen_logps - reference_chosen_logps)"
        " - (policy_rejected_logps - reference_rejected_logps)\n"
        "    return 2.0 * jax.nn.softplus(-beta * m)\n"
    )
    names = ["ipo", str(file)]
    return names, discover.train(config(folder), names)


def test_train_compares_names_and_files(trained):
    _, outcome = trained
    assert [c.name for c in outcome.contenders] == ["dpo", "ipo", "mine"]
    assert outcome.comparisons["mine"].lanes == 4
    # Twice DPO's loss has twice its gradient, which Adam does not see: the same policies.
    mine, dpo = outcome.measured.samples["mine"], outcome.measured.samples["dpo"]
    np.testing.assert_allclose(mine.kl, dpo.kl, rtol=0.05, atol=1e-3)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(trained, tmp_path, monkeypatch):
    names, outcome = trained
    add, done = archives.add_evaluations, []

    def add_and_stop(archive, new):
        add(archive, new)
        done.append(new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "add_evaluations", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            discover.train(config(tmp_path), names)
    again = discover.train(config(tmp_path), names, resume=True)
    assert done and scores(again) == scores(outcome)
    for name, samples in outcome.measured.samples.items():
        np.testing.assert_array_equal(again.measured.samples[name].reward, samples.reward)
    with pytest.raises(UserError, match="is a run of train"):
        discover.run(config(tmp_path), resume=True)


def test_train_says_why_a_file_is_refused(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("import os\n")
    with pytest.raises(UserError, match="syntax"):
        discover.train(config(tmp_path), [str(file)])
