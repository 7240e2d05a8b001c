"""The page of figures at scale says what its script prints, and the script's arithmetic is right."""

import json
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.scale import Assumed, bill, tables
from discojax.config import load

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_has_the_tables_that_the_script_prints():
    text = PAGE.read_text(encoding="utf-8")
    for table in tables(json.loads(scale.FILE.read_text())).split("\n\n"):
        assert table in text
    for setting in scale.SEARCH:
        assert f"`{setting}`" in text


def test_the_page_says_what_the_prices_and_the_host_are():
    kept, text = json.loads(scale.FILE.read_text()), PAGE.read_text(encoding="utf-8")
    for plan in kept["plans"].values():
        assert (
            f"${plan['chip']['dollars_an_hour']:.2f} an hour: Google's list price of {plan['prices_of']}"
            in text
        )
        assert plan["chips"] == 256 and plan["accelerator_type"] == scale.SLICE and plan["fits"]
    assert f"{1e6 * kept['host']['text']:.0f} µs of a core for a completion" in text
    assert f"{1e3 * kept['host']['gate']:.0f} ms of a core for a candidate" in text


def test_a_small_search_comes_to_what_is_counted_by_hand():
    words = [
        "search.candidates=20", "search.generations=2", "search.library=[dpo,ipo]", "search.betas=[0.1,0.5]",
        "search.rungs=[[1,10,64],[2,30,3]]", "search.elites=[3,50,4]", "evaluation.finalists=1",
        "evaluation.baselines=[dpo]", "evaluation.seeds=2", "evaluation.steps=5",
        "evaluation.search_prompts=10", "evaluation.prompts=100", "proposer.prompt_tokens=10000",
    ]  # fmt: skip
    plan = {
        "lanes": 40, "seconds_a_step": {"step": 2.0}, "tokens": {"prompt": 5, "completion": 4}, "batch": 8,
        "chips": 16, "chip": {"dollars_an_hour": 1.5},
    }  # fmt: skip
    host = {"gate": 0.5, "text": 0.01, "measurement": 100.0}
    found = bill(load(None, words), plan, host, Assumed(accepted=0.5, reply=1000, answer=60.0))

    # Brackets of 2, 10 and 10: each trains 10 steps; 2, 3 and 3 of them 30 on two seeds; then 4 elites,
    # the library's other loss and the baseline, and two finalists. Two betas each.
    first, second, elites, final = 22 * 2, 8 * 2 * 2, 6 * 2 * 3, 2 * 2 * 2
    assert found.jobs == first + second + elites + final
    assert found.lane_steps == first * 10 + second * 30 + elites * 50 + final * 5
    assert found.tokens == found.lane_steps * 8 * (5 + 2 * 3)
    assert found.full == 20 / 40  # ten candidates at two betas, on forty lanes
    assert found.train == pytest.approx(found.lane_steps / 40 * 2.0 / 0.5)
    texts = (first + second + elites) * 10 + final * 100
    assert found.measure == pytest.approx(texts * 8 / (8 * 11) / 40 * 2.0 / 0.5)
    assert found.chips == pytest.approx((found.train + found.measure) / 3600 * 16 * 1.5)
    assert (found.requests, found.prompt, found.reply) == (10, 100_000, 10_000)  # forty proposals, four each
    assert found.model == pytest.approx(0.1 * 1.5 + 0.01 * 9.0)
    assert found.share == pytest.approx(found.model / (found.model + found.chips))
    assert (found.answers, found.gate, found.rewards) == (600.0, 20.0, pytest.approx(texts * 0.01))
    assert found.archive == found.jobs * 100.0
