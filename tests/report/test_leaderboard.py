"""The leaderboard says what was measured, and of a failure only that it failed."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from discojax.report.leaderboard import Row, ranked, row, table, to_csv
from discojax.search.statistics import Samples, compare

ROWS = [
    Row("dpo", score=0.12, score_low=0.1, score_high=0.14, reward=0.71, kl=9.9, verdict="baseline", seeds=3),
    Row("gone", "diverged", seeds=3, note="9 of 9 lanes diverged"),
    Row(
        "new [red]loss[/red]",
        score=0.15,
        score_low=0.13,
        score_high=0.17,
        reward=0.74,
        kl=8.25,
        difference=0.03,
        difference_low=0.011,
        difference_high=0.049,
        verdict="better",
        seeds=3,
    ),
    Row("alike", score=0.12, score_low=0.1, score_high=0.14, verdict="no difference shown", seeds=3),
]


def shown(width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(ranked(ROWS), title="discovery"))
    return console.file.getvalue()


def test_order_is_by_score_then_name_and_failures_have_no_rank():
    assert [(r.rank, r.name) for r in ranked(ROWS)] == [
        (1, "new [red]loss[/red]"),
        (2, "alike"),
        (3, "dpo"),
        (None, "gone"),
    ]
    assert ranked(reversed(ROWS)) == ranked(ROWS)


def test_what_a_reader_sees():
    score, difference = "0.150 ± 0.020", "+0.030 ± 0.019"
    lines = shown(160).splitlines()
    best = next(line for line in lines if "new" in line)
    assert "new [red]loss[/red]" in best  # a name is never markup
    assert score in best and difference in best
    assert "8.2" in best and "better" in best
    gone = next(line for line in lines if "gone" in line)
    assert "diverged: 9 of 9 lanes diverged" in gone
    assert "0." not in gone and "nan" not in gone.lower()


@pytest.mark.parametrize("width", [40, 60, 79, 80, 81])
def test_no_letter_of_the_text_below_is_cut_whatever_the_table_needs(width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    words = [f"{chr(97 + i % 26) * (1 + i % 9)}" for i in range(200)]
    console.print(table(ranked(ROWS), caption=" ".join(words)))
    below = console.file.getvalue().split("diverged")[-1].split()
    assert below[-len(words) :] == words


def test_a_narrow_terminal_cuts_no_number():
    narrow = shown(80)
    assert max(map(len, narrow.splitlines())) <= 80
    for number in ("0.150", "0.020", "+0.030", "0.019", "0.740", "8.2", "diverged"):
        assert number in narrow


def test_csv_reads_back_at_full_precision():
    rows = ranked([*ROWS, Row("third", score=1 / 3)])
    back = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [r["name"] for r in back] == [r.name for r in rows]
    assert float(back[0]["score"]) == 1 / 3
    assert back[-1]["score"] == "" and back[-1]["rank"] == "" and back[-1]["status"] == "diverged"


def test_rows_of_a_real_comparison():
    rng = np.random.default_rng(0)
    reward = 0.6 + rng.normal(0, 0.1, (2, 4, 60))
    kl = np.full_like(reward, 5.0)
    base = Samples(reward, kl)
    broken = reward.copy()
    broken[0, 1] = np.nan
    results = compare(
        {
            "dpo": base,
            "up": Samples(reward + 0.1, kl),
            "half": Samples(broken, kl),
            "none": Samples(np.full_like(reward, np.nan), kl),
        },
        base,
        np.full(60, 0.5),
        10.0,
        rng=rng,
        replicates=200,
    )
    rows = {r.name: r for r in (row(c, reward=0.6, kl=5.0) for c in results.values())}
    assert rows["dpo"].verdict == "baseline" and rows["dpo"].difference is None
    assert rows["up"].verdict == "better" and rows["up"].difference_low > 0
    assert rows["up"].score_low <= rows["up"].score <= rows["up"].score_high
    assert rows["half"].note == "1 of 8 lanes diverged" and rows["half"].status == "ok"
    assert rows["none"].status == "diverged" and rows["none"].score is None and rows["none"].reward is None
