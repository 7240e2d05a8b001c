"""Training seeds: no two rounds of a run, and no two runs, may share one."""

from __future__ import annotations

import pytest

from discojax.config import load
from discojax.errors import UserError
from discojax.search import discover, evaluate, rungs, transfer


def test_no_two_rounds_share_a_seed_however_many_seeds_and_rungs_there_are():
    many = [[100, 5, 9]] * 9
    config = load(None, [f"search.rungs={many}", "search.elites=[100, 5, 2]", "evaluation.seeds=400"])
    count = config.evaluation.seeds
    rounds = [rungs.rung_trial(config, number).seeds for number in range(9)]
    rounds += [rungs.elite_trial(config).seeds, rungs.final_trial(config).seeds]
    rounds += [rungs.seeds(config, start, count) for start in (rungs.TRAIN, rungs.REPORT)]
    rounds.append(rungs.seeds(config, rungs.TUNING, 1))
    stages = 6  # other seeds, four tasks, another policy
    for rung in (rungs.TRANSFER + transfer._APART * number for number in range(stages)):
        rounds += [rungs.seeds(config, rung, count), rungs.seeds(config, transfer._tuning(rung), 1)]
    every = [seed for chosen in rounds for seed in chosen]
    assert len(every) == len(set(every)) == 9 * 100 + 100 + 3 * 400 + 1 + stages * 401
    another = load(None, ["run.seed=1"])
    assert max(every) < min(rungs.rung_trial(another, 0).seeds)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"search.rungs={[[1, 2, 3]] * 10}", "search.rungs has 10 entries, and 9 have seeds of their own"),
        ("search.rungs=[[101, 2, 3]]", "at most 100"),
        ("search.elites=[101, 2, 3]", "at most 100"),
        ("evaluation.seeds=401", "at most 400"),
        ("run.seed=200001", "at most 200000"),
    ],
)
def test_more_than_there_are_seeds_for_is_told_when_the_config_is_read(override, message):
    with pytest.raises(UserError, match=message):
        load(None, [override])


def test_seeds_of_the_search_may_not_report():
    rungs.assert_fresh({0, 1, 100}, (5000, 5001))
    with pytest.raises(UserError, match="The seeds 1, 100 would report, and the search"):
        rungs.assert_fresh({0, 1, 100}, (1, 2, 100))


def test_an_overlap_of_seeds_stops_a_run_before_it_begins(tmp_path, monkeypatch):
    config = load(None, [f"run.directory={tmp_path}", "search.elites=[2, 5, 2]"])
    elites = rungs.elite_trial(config).seeds
    assert set(elites) < set(rungs.searched_seeds(config)) > set(rungs.rung_trial(config, 0).seeds)
    monkeypatch.setattr(rungs, "FINAL", elites[-1])
    with pytest.raises(UserError, match=f"The seeds {elites[-1]} would report"):
        discover.run(config)
    monkeypatch.setattr(evaluate, "TUNING", rungs.REPORT + 1)
    with pytest.raises(UserError, match="The seeds 4001 would report"):
        evaluate.evaluate(config, ["dpo"])
    assert not config.run.path.exists()
