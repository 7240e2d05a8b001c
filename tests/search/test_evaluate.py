"""A whole evaluation, small: what is measured and how often, what was wrong in the paper's, and bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import small
from rich.console import Console

from discojax.config import Config, load
from discojax.errors import UserError
from discojax.report import evaluation as report
from discojax.search import archive as archives
from discojax.search import evaluate as evaluating
from discojax.search import judging, opening, tuning
from discojax.search.display import display
from discojax.search.evaluate import evaluate
from discojax.search.statistics import holm, interval, mean, p_value
from discojax.tasks import docstrings
from discojax.tasks.distinct import distinct
from discojax.tasks.judges import LanguageModelJudge
from discojax.tasks.summaries import MARKER, bodies_of
from discojax.tasks.types import Prompts


@pytest.fixture(scope="module", autouse=True)
def data(few_reviews):
    """Few reviews and documents."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_documents(patch)
        yield


def config(folder, *overrides: str, file: str = "quickstart") -> Config:
    return load(file, (*small.SETTINGS, f"run.directory={folder}", *overrides))


@pytest.fixture(scope="module")
def imdb(tmp_path_factory):
    settings = config(tmp_path_factory.mktemp("runs"), "evaluation.learning_rates=[1e-3, 1e-2]")
    return settings, evaluate(settings, ["slic", "exp"])


@pytest.fixture(scope="module")
def tldr(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    settings = config(
        tmp_path_factory.mktemp("runs"), "task.prompt_tokens=40", "task.completion_tokens=22",
        "policy.max_length=63", "policy.vocab_size=1500", "evaluation.held_out_pairs=4",
        "evaluation.learning_rates=[]", file="tldr",
    )  # fmt: skip
    return settings, evaluate(settings, ["slic"])


def lanes(settings):
    with archives.open_archive(settings.run.path / "archive.sqlite") as archive:
        return archives.evaluations(archive)


def test_every_objective_is_tuned_alike_and_then_measured_at_every_beta_and_seed(imdb):
    settings, found = imdb
    keys = [lane.key for lane in lanes(settings)]
    assert len(keys) == len(set(keys))
    tuning = [k for k in keys if k.split == "select" and k.objective != "sft"]
    budgets = {
        name: sorted((k.learning_rate, k.beta) for k in tuning if k.objective.startswith(name))
        for name in ("dpo", "slic", "exp")
    }
    assert len(tuning) == 3 * 2 * 2
    assert len(set(map(tuple, budgets.values()))) == 1  # no objective has more chances than another
    final = [k for k in keys if k.split == "report" and k.objective != "sft"]
    assert len(final) == 3 * 2 * 2
    for name, choice in found.chosen.items():
        assert {k.learning_rate for k in final if k.objective == name} == {choice.learning_rate}
        assert choice.beta in settings.search.betas


def test_seeds_differ_between_lanes_and_from_those_that_chose(imdb):
    settings, found = imdb
    every = lanes(settings)
    tuned, reported = ({e.key.seed for e in every if e.key.split == s} for s in ("select", "report"))
    assert len(reported) == settings.evaluation.seeds and not tuned & reported
    one, other = (
        e for e in every if e.key.objective == "dpo" and e.key.split == "report" and e.key.beta == 0.1
    )
    assert one.per_prompt["completion"].tolist() != other.per_prompt["completion"].tolist()
    assert found.measured.samples["dpo"].reward.std(axis=1).max() > 0


def test_lines_are_the_means_of_what_was_measured(imdb):
    settings, found = imdb
    every = {(e.key.objective, e.key.beta, e.key.seed): e for e in lanes(settings) if e.key.split == "report"}
    assert len(found.lines) == 1 + 3 * 2
    for line in found.lines:
        assert line.diverged == 0 and line.reward is not None
        of = [every[line.name, line.beta, seed] for seed in found.trial.seeds]
        for what, estimate in (("reward", line.reward), ("kl", line.kl), ("reverse_kl", line.reverse_kl),
                               ("length", line.length)):  # fmt: skip
            assert estimate.value == pytest.approx(
                np.mean([e.per_prompt[what] for e in of]), rel=1e-5, abs=1e-7
            )
        if line.name == "sft":
            assert line.kl.value == pytest.approx(0, abs=1e-5) and line.gain is None
            continue
        sft = np.stack([every["sft", 0.0, seed].per_prompt["reward"] for seed in found.trial.seeds])
        ours = np.stack([e.per_prompt["reward"] for e in of])
        assert line.gain == mean(ours.astype(float) - sft.astype(float))
        margins = np.stack([e.per_prompt["margin"] for e in of])
        assert margins.shape[1] <= settings.evaluation.held_out_pairs
        assert line.accuracy.value == pytest.approx((margins > 0).mean())
        assert line.margin.value == pytest.approx(line.beta * margins.mean(), rel=1e-4, abs=1e-6)
        assert (line.reward_difference is None) == (line.name == "dpo")
        assert line.distinct1.error > 0 and line.distinct1.value == pytest.approx(
            np.mean([distinct(e.per_prompt["completion"].tolist(), 1) for e in of])
        )


def test_no_prompt_is_measured_twice_and_none_was_trained_or_searched_on(imdb, tmp_path):
    settings, _ = imdb
    with display() as screen:
        task = opening.build_tasks(settings, ("imdb",), screen, held_out_pairs=4)["imdb"]
    rows = task.prompts["report"].rows()
    assert len(rows) == len(set(rows)) >= settings.evaluation.prompts
    assert not set(rows) & {row for split in ("search", "select") for row in task.prompts[split].rows()}


def test_an_overlap_of_search_and_report_stops_a_run_at_load(imdb, tmp_path, monkeypatch):
    settings, _ = imdb
    honest = opening.catalogue.build_all

    def leaking(names, *rest, **options):
        tasks = honest(names, *rest, **options)
        one, other = tasks["rotten_tomatoes"], tasks["imdb"]
        mixed = {**one.prompts, "search": other.prompts["report"]}
        return {**tasks, "rotten_tomatoes": dataclasses.replace(one, prompts=mixed)}

    monkeypatch.setattr(opening.catalogue, "build_all", leaking)
    with (
        archives.open_archive(tmp_path / "archive.sqlite", "x") as archive,
        display() as screen,
        pytest.raises(UserError, match="prompts that rotten_tomatoes trains or searches on"),
    ):
        opening.build_laboratory(settings, archive, ("rotten_tomatoes", "imdb"), screen)


def test_the_same_evaluation_goes_on_where_it_was_and_finds_the_same(imdb):
    settings, found = imdb
    before = len(lanes(settings))
    again = evaluate(settings, ["slic", "exp"], resume=True)
    assert len(lanes(settings)) == before and again.chosen == found.chosen
    assert again.lines == found.lines


def test_tables_plot_and_files(imdb):
    _, found = imdb
    text = io.StringIO()
    report.show(found, kl_budget=10.0, confidence=0.95, console=Console(file=text, width=80))
    shown = text.getvalue()
    assert all(name in shown for name in ("dpo", "slic", "exp", "imdb, held out", "baseline", "Holm"))
    words = " ".join(shown.split())
    assert "Of 3 objectives 3 chose the lowest or highest rate of 2 and 3 chose" in words
    best = next(x for x in found.lines if (x.name, x.beta) == ("dpo", found.chosen["dpo"].beta))
    for estimate, form in ((best.kl, "{:.1f}"), (best.distinct1, "{:.2f}"), (best.accuracy, "{:.3f}")):
        low, high = interval(estimate)
        assert f"{form} ± {form}".format(estimate.value, (high - low) / 2) in words
    assert f"{found.chosen['dpo'].learning_rate:g}" in words
    assert max(map(len, shown.splitlines())) <= 120 and "…" not in shown
    folder = found.folder
    assert (folder / "frontier.png").stat().st_size > 10_000
    rows = list(csv.DictReader((folder / "evaluation.csv").open()))
    assert len(rows) == len(found.lines)
    assert {
        "reward",
        "reward_low",
        "reward_high",
        "reverse_kl",
        "distinct2_low",
        "accuracy_low",
        "margin",
    } <= set(rows[0])
    kept = json.loads((folder / "evaluation.json").read_text())
    assert set(kept["comparisons"]) == {"dpo", "slic", "exp"} and kept["trial"]["prompts"] == 12
    assert not (folder / "winrates.csv").exists()


def test_a_diverged_lane_is_a_failure_and_its_line_has_no_number(imdb):
    _, found = imdb
    reports = [e for e in lanes(imdb[0]) if e.key.split == "report"]
    untrained = [e for e in reports if e.key.objective == "dpo" and e.key.beta == 0.1]
    broken = [untrained[0], dataclasses.replace(untrained[1], status="diverged", reward=None, per_prompt={})]
    with display() as screen:
        task = opening.build_tasks(imdb[0], ("imdb",), screen, held_out_pairs=4)["imdb"]
    line = evaluating._line(task, [], "dpo", 0.1, 1e-3, broken, untrained, None)
    assert line.diverged == 1 and line.reward is None and line.accuracy is None
    sentences = report.findings(dataclasses.replace(found, lines=(*found.lines, line)), 0.95)
    assert any("1 of 2 seeds diverged" in sentence for sentence in sentences)


def test_summaries_have_prompts_of_their_own_in_one_format(tldr):
    settings, _ = tldr
    with display() as screen:
        task = opening.build_tasks(settings, ("tldr",), screen, held_out_pairs=4)["tldr"]
    trained = task.decode(Prompts(task.pairs.chosen_ids, task.pairs.prompt_length).rows())
    measured = task.decode(task.prompts["report"].rows())
    assert len(set(trained)) == len(trained) and len(set(measured)) == len(measured)  # no constant prompt
    assert all(prompt.endswith(MARKER) for prompt in trained + measured)  # one format in both
    assert len(task.references["report"]) == len(measured) and all(task.references["report"])


def test_win_rates_against_the_human_and_the_supervised_policy(tldr):
    settings, found = tldr
    against = {(win.name, win.opponent) for win in found.wins}
    assert against == {("sft", "human"), ("dpo", "human"), ("slic", "human"), ("dpo", "sft"), ("slic", "sft")}
    for win in found.wins:
        assert win.proxy and "proxy" in win.judge
        assert 2 <= win.prompts <= win.asked == settings.evaluation.judged
        assert win.verdicts == 2 * win.asked * settings.evaluation.seeds
        assert 0 <= win.rate.value <= 1 and 0 <= win.controlled.value <= 1
        assert (win.difference is None) == (win.name == "dpo") == (win.difference_p_holm is None)
        met = [other for other in found.wins if other.opponent == win.opponent]
        adjusted = dict(zip((w.name for w in met), holm([w.p_value for w in met]), strict=True))
        assert win.p_holm == pytest.approx(adjusted[win.name], nan_ok=True)
        compared = [w for w in met if w.difference is not None]
        adjusted = dict(
            zip((w.name for w in compared), holm([p_value(w.difference) for w in compared]), strict=True)
        )
        assert win.difference is None or win.difference_p_holm == pytest.approx(adjusted[win.name])
    sft = found.lines[0]
    assert sft.rouge_l is not None and 0 <= sft.rouge_l.value < 1
    text = io.StringIO()
    report.show(found, kl_budget=10.0, confidence=0.95, console=Console(file=text, width=80))
    shown = " ".join(text.getvalue().split())
    assert "which is a proxy: no person" in shown and "ROUGE-L" in shown
    assert (found.folder / "winrates.csv").exists()


def test_a_judge_that_talks_nonsense_is_counted_and_gives_no_number(tldr, tmp_path):
    settings, found = tldr
    every = {(e.key.objective, e.key.beta, e.key.seed): e for e in lanes(settings) if e.key.split == "report"}

    def ask(text: str) -> str:
        return "What lovely weather." if len(text) % 2 else "Comparison: one.\nPreferred: A"

    with display() as screen:
        task = opening.build_tasks(settings, ("tldr",), screen, held_out_pairs=4)["tldr"]
        for reply, known in ((lambda _: "Lovely weather.", False), (ask, True)):
            judge = LanguageModelJudge(reply, f"model {known}", bodies_of, root=tmp_path)
            wins = judging.win_rates(settings, task, judge, every, found.chosen, found.trial, screen)
            assert all(not win.proxy and win.unparseable > 0 for win in wins)
            assert known or all(win.rate is None and win.prompts == 0 for win in wins)
    shown = io.StringIO()
    report.show(dataclasses.replace(found, wins=wins), kl_budget=10.0, confidence=0.95,
                console=Console(file=shown, width=100))  # fmt: skip
    assert re.search(r"[1-9]\d* could not be read", " ".join(shown.getvalue().split()))


def test_a_judge_that_dies_leaves_everything_else_and_another_may_go_on(tldr, monkeypatch, capfd):
    """Its quota ends once everything is trained."""
    settings, before = tldr
    count = len(lanes(settings))

    def ask(text: str) -> str:
        raise UserError("The quota [of today] is used up.")

    dead = dataclasses.replace(
        settings, evaluation=dataclasses.replace(settings.evaluation, judge="openai:dead", judged=6)
    )
    monkeypatch.setattr(evaluating, "make_judge", lambda _: LanguageModelJudge(ask, "dead", bodies_of))
    found = evaluate(dead, ["slic"], resume=True)
    assert len(lanes(settings)) == count and found.lines == before.lines
    assert len(found.wins) == len(before.wins)
    for win in found.wins:
        assert win.rate is None and win.unanswered == win.verdicts == 2 * 6 * settings.evaluation.seeds
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("The quota [of today] is used up.") == 1
    assert f"evaluate--resume{settings.run.path}" in said.replace(" ", "")
    text = io.StringIO()
    report.show(found, kl_budget=10.0, confidence=0.95, console=Console(file=text, width=80))
    assert re.search(r"[1-9]\d* never came", " ".join(text.getvalue().split()))
    assert len(list(csv.DictReader((found.folder / "winrates.csv").open()))) == len(found.wins)
    monkeypatch.undo()
    small.few_documents(monkeypatch)
    assert evaluate(settings, ["slic"], resume=True).wins == before.wins


def test_other_documents_do_not_go_on_with_the_numbers_of_these(tldr, monkeypatch, tmp_path):
    """As when a library whose docstrings are read is upgraded."""
    settings, _ = tldr
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path))
    documents = docstrings.extract()
    monkeypatch.setattr(docstrings, "extract", lambda: [d for d in documents if "lax" not in d.name])
    with pytest.raises(UserError, match="was measured on other data than tldr has now"):
        evaluate(settings, ["slic"], resume=True)


def test_too_few_prompts_are_told_before_anything_is_trained(tmp_path, monkeypatch):
    for module in (evaluating, tuning):
        monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("a lane trained"))
    for which, split in (("prompts", "report"), ("search_prompts", "select")):
        settings = config(tmp_path, f"run.name={which}", f"evaluation.{which}=9999")
        with pytest.raises(UserError, match=rf"prompts for '{split}', and 9999 are asked for"):
            evaluate(settings, ["dpo"])
        assert not lanes(settings)


@pytest.mark.parametrize("judge", ["gpt", "gemni:flash", "gemini:", "proxi"])
def test_a_judge_that_there_is_not_is_told_before_anything_is_trained(judge, tmp_path):
    settings = config(tmp_path, f"evaluation.judge='{judge}'")
    with pytest.raises(UserError, match=r"must be proxy, or SERVER:MODEL"):
        evaluate(settings, ["dpo"])
    assert not settings.run.path.exists()


def test_a_reward_of_ones_own_scores_and_what_it_cannot_score_is_a_failure(tmp_path, monkeypatch):
    text = """
def score(prompts, completions):
    return [float(len(prompt)) for prompt in prompts]

def holes(prompts, completions):
    return [float("nan")] + [0.5] * (len(prompts) - 1)
"""
    (tmp_path / "own_reward_of_the_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    few = ("evaluation.held_out_pairs=4", "search.betas=[0.1]", "evaluation.learning_rates=[]")
    settings = config(tmp_path, *few, "evaluation.reward='own_reward_of_the_test:score'")
    found = evaluate(settings, ["dpo"])
    assert found.lines[0].reward.value == found.lines[1].reward.value > 2  # of the prompt alone
    assert found.lines[1].gain.value == 0 and found.gains["dpo"] == 1.0
    assert evaluate(settings, ["dpo"], resume=True).lines == found.lines
    (tmp_path / "own_reward_of_the_test.py").write_text(f"{text}# edited\n")
    with pytest.raises(UserError, match="was measured on other data than imdb has now"):
        evaluate(settings, ["dpo"], resume=True)
    settings = config(tmp_path, *few, "run.name=holes", "evaluation.reward='own_reward_of_the_test:holes'")
    with pytest.raises(UserError, match="no finite number for 1 of 12 completions"):
        evaluate(settings, ["dpo"])
    with pytest.raises(UserError, match="There is no Python module 'own_rewards_of_the_test'"):
        evaluate(config(tmp_path, "evaluation.reward='own_rewards_of_the_test:score'"), ["dpo"])


def test_p_values_of_lines_are_holms_over_all_objectives_and_betas(imdb):
    _, found = imdb
    lines = found.lines[1:]
    assert found.lines[0].gain_p_holm is None
    for what, of in (("gain", lines), ("reward_difference", [x for x in lines if x.name != "dpo"])):
        expected = holm([p_value(getattr(line, what)) for line in of])
        np.testing.assert_allclose([getattr(line, f"{what}_p_holm") for line in of], expected)
        assert len(expected) == 2 * (3 if what == "gain" else 2)
    assert all((line.kl_difference_p_holm is None) == (line.name == "dpo") for line in lines)
    rows = list(csv.DictReader((found.folder / "evaluation.csv").open()))
    for row, line in zip(rows, found.lines, strict=True):
        p = line.kl_difference_p_holm
        assert row["kl_difference_p_holm"] == ("" if p is None else str(p))


def test_each_at_its_chosen_beta_is_compared_with_the_baseline_at_its_own(imdb):
    settings, found = imdb
    every = {(e.key.objective, e.key.beta, e.key.seed): e for e in lanes(settings) if e.key.split == "report"}
    assert set(found.tuned) == {"slic", "exp"}
    for name, tuned in found.tuned.items():
        ours, theirs = (
            np.stack([every[one, found.chosen[one].beta, s].per_prompt["reward"] for s in found.trial.seeds])
            for one in (name, "dpo")
        )
        assert tuned.reward.value == pytest.approx(float((ours - theirs).mean()), abs=1e-6)
    adjusted = holm([p_value(tuned.kl) for tuned in found.tuned.values()])
    np.testing.assert_allclose([tuned.kl_p_holm for tuned in found.tuned.values()], adjusted)


def test_empty_completions_are_counted_and_said(imdb):
    _, found = imdb
    reports = [e for e in lanes(imdb[0]) if e.key.split == "report"]
    some = [e for e in reports if e.key.objective == "dpo" and e.key.beta == 0.1]
    texts = some[0].per_prompt["completion"].copy()
    texts[:3] = ["", " ", "\n"]
    blank = dataclasses.replace(some[0], per_prompt={**some[0].per_prompt, "completion": texts})
    with display() as screen:
        task = opening.build_tasks(imdb[0], ("imdb",), screen, held_out_pairs=4)["imdb"]
    before, line = (
        evaluating._line(task, [], "dpo", 0.1, 1e-3, [one, some[1]], some, None) for one in (some[0], blank)
    )
    assert line.completions == 24 and line.empty == before.empty + 3
    assert line.reward is not None  # an empty completion is measured as any other
    text = io.StringIO()
    report.show(dataclasses.replace(found, lines=(*found.lines, line)), kl_budget=10.0, confidence=0.95,
                console=Console(file=text, width=100))  # fmt: skip
    every = sum(one.empty for one in found.lines) + line.empty
    assert f"{every} of all {12 * 2 * 8} completions are empty" in " ".join(text.getvalue().split())
