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
    rounds += [rungs.seeds(config, start, count) for start in (discover._TRAIN, evaluate._REPORT)]
    rounds.append(rungs.seeds(config, evaluate._TUNING, 1))
    stages = 6  # other seeds, four tasks, another policy
    for rung in (transfer._RUNG + transfer._APART * number for number in range(stages)):
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
