"""Transfer of a run's finalists: what goes along, what must be fresh, and what is said at its end."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import small
from rich.console import Console

from discojax import candidates, launch
from discojax.config import dump, load
from discojax.errors import UserError
from discojax.report import transfer as report
from discojax.search import archive as archives
from discojax.search import discover, proposals, transfer
from discojax.search.correlation import rank_correlation
from discojax.search.opening import given
from discojax.search.records import Attempt, Evaluation, EvaluationKey
from discojax.search.rungs import final_trial, rung_trial
from discojax.search.statistics import Samples, compare
from discojax.search.transfer import Found, Stage, Transferred, found_by
from discojax.search.trials import Contender


def contender(name: str) -> Contender:
    return dataclasses.replace(given("dpo"), name=name, origin="proposed")


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


def finished_run(config, *attempts) -> None:
    """An archive with the library's dpo and these attempts, as (number, name, constant), all held out."""
    first, final = rung_trial(config, 0), final_trial(config)
    ok = {"reward": np.full(4, 0.5, np.float32), "kl": np.ones(4, np.float32)}
    keys = [("sft", "sft", 0.0)]
    config.run.path.mkdir(parents=True)
    with archives.open_archive(config.run.path / "archive.sqlite", "x") as archive:
        proposals.admit_library(archive, ["dpo"])
        for number, name, constant in attempts:
            source = SOURCE.format(name=name, constant=constant)
            program = candidates.compile(source, name)
            keys += [(program.hash, name, beta) for beta in config.search.betas]
            archives.add_attempts(archive, [Attempt(
                number=number, generation=1, name=name, operator="constant", status="accepted",
                source=source, hash=program.hash, proposer="evolution",
            )])  # fmt: skip
        archives.add_evaluations(archive, [
            Evaluation(
                EvaluationKey(digest, name, trial.task, trial.split, trial.rung, beta, seed, 5, 1e-3),
                "ok", reward=0.5, kl=1.0, length=3.0, per_prompt=ok,
            )
            for trial in (first, final) for seed in trial.seeds for digest, name, beta in keys
        ])  # fmt: skip


SOURCE = """def {name}(policy_chosen_logps, policy_rejected_logps):
    return jnp.maximum(0.0, {constant} - 0.1 * (policy_chosen_logps - policy_rejected_logps))
"""


def test_rivals_of_a_control_are_no_finalists(tmp_path):
    config = load(None, [f"run.directory={tmp_path}"])
    finished_run(config, (1, "own", 1.5), (archives.NUMBERS + 1, "random_rival", 2.5))
    found = found_by(config)
    assert [c.name for c in found.finalists] == ["own"]
    assert "random_rival" not in {c.name for c in found.others}


def test_a_run_whose_only_finalist_is_a_controls_has_nothing_to_transfer(tmp_path):
    config = load(None, [f"run.directory={tmp_path}"])
    finished_run(config, (archives.NUMBERS + 1, "random_rival", 2.5))
    with pytest.raises(UserError, match="nothing of its own to transfer"):
        found_by(config)


def test_a_reward_that_every_task_would_ignore_is_refused(tmp_path, capsys):
    config = load(None, [f"run.directory={tmp_path}"])
    finished_run(config, (1, "own", 1.5))
    (config.run.path / "config.yaml").write_text(dump(config))
    assert launch.main(["transfer", str(config.run.path), "evaluation.reward='own:score'"]) == 2
    assert "evaluation.reward ('own:score') is for `evaluate`" in capsys.readouterr().err


def test_rewards_of_ones_own_do_not_go_along_to_packaged_tasks():
    config = load(None, ["task.reward=rouge", "evaluation.reward='own:score'"])
    stages = transfer._stages(config, {"preferences": config, "imdb": config})
    assert {task: (c.task.reward, c.evaluation.reward) for _, _, c, task in stages} == {
        "rotten_tomatoes": ("", ""), "preferences": ("rouge", "own:score"), "imdb": ("", "")
    }  # fmt: skip


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
    return Transferred(
        tmp_path, tmp_path, ("find",), ("dpo",), searched, tuple(stages), stages[0].comparisons
    )  # fmt: skip


def test_each_finalist_has_a_verdict_in_every_stage_and_the_correlation_its_interval(transferred):
    text = io.StringIO()
    report.show(transferred, confidence=0.95, console=Console(file=text, width=100))
    shown = text.getvalue()
    for stage in ("search", "other seeds", "imdb", "other policy"):
        assert stage in shown
    assert "+0.80 [" in shown and "-0.12" in shown
    (row,) = (line for line in shown.splitlines() if line.lstrip().startswith("search"))
    assert re.search(r"\+0\.\d{3} \[[+-]0\.\d{3}, \+0\.\d{3}\]", row) and "better" not in row
    (sentence,) = report.summary(transferred)
    assert sentence == "find against dpo: better in other seeds; worse in other policy."
    kept = json.loads((transferred.folder / "transfer.json").read_text())
    assert [stage["name"] for stage in kept["stages"]] == ["other seeds", "imdb", "other policy"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_transferred_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path / "cache"))
    small.few_reviews(tmp_path, monkeypatch)
    small.few_documents(monkeypatch)
    settings = [
        *small.SETTINGS, f"run.directory={tmp_path}", "policy.vocab_size=1500", "search.candidates=2",
        "search.generations=1", "search.library=[dpo, ipo, exp]", "search.rungs=[[1, 3, 64]]",
        "search.elites=[1, 3, 2]", "evaluation.finalists=1", "evaluation.baselines=[slic]",
        "transfer.objectives=5", "transfer.layers=2", "transfer.width=8", "transfer.heads=2",
    ]  # fmt: skip
    config = load("quickstart", settings)
    discover.run(config)
    source, folder = tmp_path / "quickstart", tmp_path / "quickstart-transfer"
    results = []
    for _ in range(2):
        assert launch.main(["transfer", str(source), *settings]) == 0
        results.append(json.loads((folder / "transfer.json").read_text()))
    found, again = results
    names = [stage["name"] for stage in found["stages"]]
    assert names == ["other seeds", "imdb", "other reward", "tldr", "other policy"]
    for name in found["finalists"]:
        assert found["search"][name]["score"]["value"] == pytest.approx(found["searched"][name], abs=1e-5)
    assert len(found["finalists"]) == 1 and set(found["baselines"]) == {"dpo", "slic"}
    assert len(found["searched"]) == 5
    for stage in found["stages"]:
        assert set(stage["comparisons"]) == {*found["finalists"], *found["baselines"]}
        assert set(stage["scores"]) == set(found["searched"])
        assert stage["correlation"][-1] >= 4  # pairs
    held, other = found["stages"][1:3]  # the same lanes, another reward
    assert held["comparisons"]["slic"]["score"] != other["comparisons"]["slic"]["score"]
    assert again == found
    with archives.open_archive(source / "archive.sqlite") as archive:
        searched = {e.key.seed for e in archives.evaluations(archive)}
    with archives.open_archive(folder / "archive.sqlite") as archive:
        lanes = archives.evaluations(archive)
    assert not searched & {e.key.seed for e in lanes}
    assert {e.key.task for e in lanes} == {"rotten_tomatoes", "imdb", "tldr"}
    assert len(lanes) == 4 * (2 + 5 * 2 * 2)  # four stages train: the untrained policy, then 5 x 2 x 2
