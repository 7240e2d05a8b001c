"""The report: whatever state a run is in there is a page, and it says what the archive says."""

import base64
import gzip
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from runs import CONTROLS, LIBRARY, write_run

from discojax import candidates, objectives
from discojax.data import cache
from discojax.errors import UserError
from discojax.launch import main
from discojax.objectives import curve
from discojax.population.margins import MARGIN_EDGES
from discojax.report import drawings, formulas, gather, page, portraits
from discojax.search import archive as archives
from discojax.search import schema
from discojax.search.rungs import BASELINE, final_trial, rung_trial
from discojax.search.statistics import interval


def data_of(html):
    blob = re.search(r'id="data">([^<]*)</script>', html).group(1)
    return json.loads(gzip.decompress(base64.b64decode(blob)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "finished"
    config = write_run(folder)
    return config, page.write(config).read_text()


def test_it_is_one_file_that_asks_for_nothing(finished):
    _, html = finished
    assert len(html.encode()) < 5 * 2**20
    body = html[: html.index('<script type="text/plain"')]
    assert not re.search(r'(src|href)="(?!#)', body) and "@import" not in body and "url(" not in body
    assert "default-src 'none'" in body


def test_what_was_run_is_said(finished):
    config, html = finished
    trials = rung_trial(config, 0), rung_trial(config, 1), final_trial(config)
    seeds = {trial.rung: sorted({str(min(trial.seeds)), str(max(trial.seeds))}, key=int) for trial in trials}
    trained = "; ".join(f"rung {rung}: {' to '.join(ends)}" for rung, ends in seeds.items())
    for text in (
        "searched on rotten_tomatoes",
        "1,121,024 parameters",
        "no request was paid for",
        "evolution",
        "1 rejected",
        "1 unanswered",
        "numpy",
        "Configuration",
        f"lanes: {config.population.lanes}",
        "cpu (1 × cpu)",
        f"run {config.run.seed}, task {config.task.seed}; of lanes: {trained}",
    ):
        assert text in html, text


def test_the_leaderboard_is_that_of_the_run(finished):
    config, _ = finished
    run = gather.gather(config.run.path, config)
    rounds = {rung: page.boards.board(found, config) for rung, found in run.evaluations.items()}
    held_out = rounds[1000]
    assert held_out.task == config.task.held_out and held_out.comparisons[BASELINE].verdict == "baseline"
    rewards = {
        (e.key.objective, e.key.beta, e.key.seed): e.per_prompt["reward"] for e in run.evaluations[1000]
    }
    best = held_out.rows[0]
    mine = [np.mean([rewards[best.name, beta, seed] for seed in held_out.seeds]) for beta in held_out.betas]
    np.testing.assert_allclose(best.reward, max(mine), atol=1e-6)


def test_the_controls_are_beside_the_search_that_they_are_of(finished):
    config, html = finished
    section = re.search(r'<section id="controls">.*?</section>', html, re.DOTALL).group()
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    ]
    names = ["search", "random mutation", "best of n", "tuned baselines"]
    assert [row[0] for row in rows] == ["arm", *names]
    assert [row[3] for row in rows[1:]] == ["found", "mutant", "lone", "none trained"]
    low, high = interval(CONTROLS[1].lead, config.evaluation.confidence)
    assert low < 0.04 < high
    assert [row[5] for row in rows[1:]] == ["", f"+0.040 [{low:+.3f}, {high:+.3f}]", "", ""]
    assert rows[1][4].startswith("+0.020 [") and rows[4][4] == ""
    assert '<a href="#controls">' in html


def test_every_candidate_has_its_card(finished):
    config, html = finished
    cards = {card["name"]: card for card in data_of(html)["cards"]}
    with archives.open_archive(config.run.path / "archive.sqlite") as archive:
        attempts = archives.attempts(archive)
    assert {a.name for a in attempts} <= cards.keys()
    names = {a.number: a.name for a in attempts}
    for attempt in attempts:
        card = cards[attempt.name]
        assert card["thought"] == attempt.thought and card["source"] == (attempt.source or "")
        assert [name for _, name in card["parents"]] == [names[number] for number in attempt.parents]
        assert bool(card["math"]) == (attempt.status == "accepted")
    assert cards["broken"]["failures"] == ["numbers: not finite at margin 0"]
    assert cards["silent"]["failures"] == ["unanswered: the server said nothing"]


def test_every_plot_is_there(finished):
    charts = data_of(finished[1])["charts"]
    assert charts.keys() == {"frontier", "loss", "slope", "proposals", "lineage", "lanes"}
    text = json.dumps(charts["loss"])
    assert "share of training pairs" in text


def test_many_curves_at_once_are_those_of_one_at_a_time():
    names = ("dpo", "exp", "discopop", "simpo")
    programs = [candidates.from_function(objectives.get(name)) for name in names]
    margins = portraits.margins(20.0)
    assert (np.diff(margins) > 0).all() and margins[-1] == 20.0
    values, slopes = formulas.curves(programs, 0.1, margins)
    for program, value, slope in zip(programs, values, slopes, strict=True):
        one = curve(program, 0.1, margins)
        np.testing.assert_allclose(value, one.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slope, one.slopes, rtol=1e-4, atol=1e-5)


def test_formulas_are_mathml_and_balanced():
    import xml.etree.ElementTree as ET

    for name in LIBRARY:
        lines = formulas.formula(candidates.from_function(objectives.get(name)))
        assert lines[-1][0].count("ℓ") == 1
        for side in (side for line in lines for side in line):
            assert "&amp;" not in side and ET.fromstring(side).tag in ("mrow", "mi", "math")


def test_the_density_is_of_the_margins_met(finished):
    config, _ = finished
    run = gather.gather(config.run.path, config)
    assert set(run.densities) == set(config.search.betas)
    together = {beta: gather.pooled(of.values()) for beta, of in run.densities.items()}
    for density in together.values():
        mass = density.share * np.diff(density.edges)
        assert (mass >= 0).all() and 0.98 < mass.sum() <= 1 + 1e-9
    assert middle(together[0.1]) > middle(together[0.5])  # as the toy's lanes were drawn


def middle(density):
    return float((density.share * np.diff(density.edges)) @ (density.edges[1:] + density.edges[:-1]) / 2)


def test_every_loss_is_shown_over_the_margins_that_its_own_lanes_met(tmp_path):
    config = write_run(tmp_path / "apart", proposed=0)
    file = config.run.path / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if line.get("objective") == "ipo":  # all its pairs at a margin of 10 to 15 nats
            line["train_reached"] = [float(edge < 12) for edge in MARGIN_EDGES]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = data_of(page.write(config).read_text())
    cards = {card["name"]: card for card in data["cards"]}
    ends = np.asarray(data["edges"])
    for name in LIBRARY:
        share = np.asarray(cards[name]["density"])
        assert share @ np.diff(ends) == pytest.approx(1, abs=0.02)
        assert (share[ends[1:] < 9].sum() == 0) == (name == "ipo")
    shown = data["charts"]["loss"]["layer"][0]["data"]["values"]
    for name in LIBRARY:
        low = min(row["from"] for row in shown if row["name"] == name and row["share"])
        assert (low > 9) == (name == "ipo")


def test_what_was_shown_once_is_not_made_again(tmp_path, monkeypatch):
    config = write_run(tmp_path / "again", proposed=4)
    before = data_of(page.write(config).read_text())
    for name in ("formula", "curves"):
        monkeypatch.setattr(formulas, name, lambda *a: pytest.fail("it was there"))
    monkeypatch.setattr(candidates, "parse", lambda *a: pytest.fail("it was there"))
    assert data_of(page.write(config).read_text()) == before
    monkeypatch.undo()
    (kept,) = (
        file for file in (cache.default_root() / "report").glob("*.npz")
        if cache.content_hash(str(config.run.path.resolve()))[:16] == file.stem
    )  # fmt: skip
    kept.write_bytes(kept.read_bytes()[:-100])  # as a full disk may leave it
    assert data_of(page.write(config).read_text()) == before


def test_reading_a_run_that_was_reported_imports_no_jax(tmp_path):
    config = write_run(tmp_path / "light", proposed=4)
    page.write(config)
    code = (
        "import sys; from discojax.launch import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'jax', 'flax', 'optax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, "report", str(config.run.path)], check=True)


def test_numbers_have_four_digits_and_are_exact_decimals():
    numbers = np.float32([0.1, -123456.0, 1.23456e-7, 0.0, np.nan, np.inf, 99.996, 1e30])
    assert drawings._rounded(numbers) == [0.1, -123500.0, 1.235e-07, 0.0, None, None, 100.0, 1e30]


@pytest.mark.parametrize("proposed", [0, 6])
def test_a_run_without_scores_has_a_page(tmp_path, proposed):
    config = write_run(tmp_path / "begun", proposed=proposed, scored=False, finished=False)
    html = page.write(config).read_text()
    assert "stopped before its end" in html and "ended before dpo" in html
    assert data_of(html)["charts"].keys() >= {"loss", "slope"}


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    config = write_run(tmp_path / "empty", proposed=0, scored=False, finished=False)
    (config.run.path / "archive.sqlite").unlink()
    with archives.open_archive(config.run.path / "archive.sqlite", "of a test"):
        html = page.write(config).read_text()
    assert 'data-state="running"' in html and "Nothing is measured yet." in html
    assert data_of(html)["charts"] == {} and data_of(html)["cards"] == []


def test_what_a_crash_left_half_written_is_left_out(tmp_path):
    config = write_run(tmp_path / "crashed", proposed=4, finished=False)
    whole = gather.gather(config.run.path, config)
    with (config.run.path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "prog')
    (config.run.path / "results.json").write_text("{")
    run = gather.gather(config.run.path, config)
    assert run.state == "stopped" and run.progress == whole.progress
    assert "--resume" in page.render(run, portraits.Gallery({}, {}))


def test_whether_a_run_is_being_written_is_told(tmp_path):
    path = tmp_path / "archive.sqlite"
    assert not schema.is_locked(path)
    with archives.open_archive(path, "of a test"):
        assert schema.is_locked(path)
    assert not schema.is_locked(path)


def test_nothing_a_proposer_says_is_markup(tmp_path):
    bad = "</script><script>alert(1)</script><!--\"'><img src=x onerror=alert(2)>"
    config = write_run(tmp_path / "hostile", proposed=0, hostile=((bad, bad),))
    html = page.write(config).read_text()
    assert "<script>alert" not in html and "<img src=x" not in html
    assert html.count("</script>") == 3
    assert data_of(html)["cards"][len(LIBRARY)]["thought"] == bad


def test_the_command_writes_it_and_says_where(tmp_path, capsys):
    config = write_run(tmp_path / "told", proposed=2)
    assert main(["report", str(config.run.path)]) == 0
    assert str(config.run.path / "report.html") in capsys.readouterr().out
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "There is no run" in capsys.readouterr().err


def test_a_watched_run_that_has_ended_is_written_once(tmp_path):
    config = write_run(tmp_path / "watched", proposed=0)
    said = []
    assert page.watch(config, said.append) == config.run.path / "report.html"
    assert said == [f"report: {config.run.path / 'report.html'}"]


def test_a_run_writes_its_own_report_now_and_then(tmp_path, monkeypatch):
    config = write_run(tmp_path / "followed", proposed=0, scored=False, finished=False)
    monkeypatch.setattr(page, "_OFTEN", 0.02)
    written = threading.Event()
    write = page.write
    monkeypatch.setattr(page, "write", lambda *a, **k: (write(*a, **k), written.set()))
    file, said = config.run.path / "report.html", []
    archive = config.run.path / "archive.sqlite"
    with page.following(config, say=said.append), archives.open_archive(archive, "of a test"):
        assert written.wait(600)
        assert 'data-state="running"' in file.read_text() and not said
    assert said == [f"report: {file}"] and 'data-state="stopped"' in file.read_text()


def test_the_last_report_is_not_overtaken_by_one_begun_before(tmp_path, monkeypatch):
    config = write_run(tmp_path / "raced", proposed=0, scored=False, finished=False)
    monkeypatch.setattr(page, "_OFTEN", 0.02)
    begun, ending, order = threading.Event(), threading.Event(), []

    def write(config, say=None):
        if say is None:
            begun.set()
            ending.wait(600)
        order.append("one of many" if say is None else "the last")

    monkeypatch.setattr(page, "write", write)
    with page.following(config, say=print):
        assert begun.wait(600)
        threading.Timer(0.2, ending.set).start()  # when the block has ended
    assert order == ["one of many", "the last"]


@pytest.mark.parametrize("command", ["discover", "train", "evaluate"])
def test_every_command_that_trains_shows_how_it_goes_on(command, tmp_path, monkeypatch):
    """A report while it runs, and the last one after what it prints."""
    order = []
    monkeypatch.setattr(page, "_OFTEN", 0.02)
    reported = threading.Event()
    monkeypatch.setattr(
        page, "write", lambda config, say=None: (order.append("report"), reported.set(), say and say(""))
    )

    def work(*arguments, resume):
        assert reported.wait(600)

    monkeypatch.setattr("discojax.search.discover.claim", lambda config: config)
    for module, name in (("discover", "run"), ("discover", "train"), ("evaluate", "evaluate")):
        monkeypatch.setattr(f"discojax.search.{module}.{name}", work)
    for module in ("summary", "evaluation"):
        monkeypatch.setattr(f"discojax.report.{module}.show", lambda *a, **k: order.append("table"))
    monkeypatch.setattr("discojax.launch._configure_backend", lambda: None)
    assert main([command, f"run.directory={tmp_path}"]) == 0
    assert order[0] == order[-1] == "report" and order.count("table") == 1


def test_a_folder_without_an_archive_is_told(tmp_path):
    config = write_run(tmp_path / "gone", proposed=0, scored=False)
    (config.run.path / "archive.sqlite").unlink()
    with pytest.raises(UserError, match="there is no archive"):
        page.write(config)
