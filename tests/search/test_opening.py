"""What a stopped run may be changed in before it goes on, and what not."""

from __future__ import annotations

import pytest

from discojax import launch
from discojax.config import load
from discojax.errors import UserError
from discojax.search import archive as archives
from discojax.search.opening import open_run


@pytest.mark.parametrize(
    "change",
    [
        "proposer.base_url=http://127.0.0.1:9/v1", "proposer.timeout=7", "proposer.attempts=2",
        "proposer.models=[another]", "proposer.output_tokens=300", "budget.dollars=9", "run.name=moved",
        "evaluation.objectives=[dpo, exp]", "evaluation.judge='openai:qwen3'", "evaluation.judged=7",
    ],
)  # fmt: skip
def test_a_run_goes_on_with_another_way_to_its_proposer_or_another_budget(change, tmp_path):
    old, new = (load(None, [f"run.directory={tmp_path}", *changes]) for changes in ([], [change]))
    archives.close(open_run(old, resume=False))
    (tmp_path / "quickstart").rename(new.run.path)
    with open_run(new, resume=True) as archive:
        assert [event["kind"] for event in archives.events(archive)] == ["resumed"]


@pytest.mark.parametrize(
    "change",
    ["search.betas=[0.2]", "run.seed=1", "proposer.history=false", "proposer.path=elsewhere",
     "evaluation.confidence=0.9", "evaluation.bootstrap=7", "evaluation.steps=7"],
)  # fmt: skip
def test_a_run_does_not_go_on_with_what_changes_its_scores_or_what_it_compares(change, tmp_path):
    old, new = (load(None, [f"run.directory={tmp_path}", *changes]) for changes in ([], [change]))
    archives.close(open_run(old, resume=False))
    with pytest.raises(UserError, match="another configuration"):
        open_run(new, resume=True)


@pytest.mark.parametrize("change", ["evaluation.confidence=0.9", "evaluation.bootstrap=7"])
def test_an_evaluation_goes_on_with_other_intervals(change, tmp_path):
    """They decide a search's races, and in an evaluation only what is said of the lanes."""
    old, new = (load(None, [f"run.directory={tmp_path}", *changes]) for changes in ([], [change]))
    archives.close(open_run(old, False, "evaluate"))
    archives.close(open_run(new, True, "evaluate"))


def test_the_config_of_a_run_says_which_objectives_it_was_given(tmp_path):
    """So that `evaluate --resume` measures those and not the default ones."""
    words = ["evaluate", "--objectives", "slic,exp", f"run.directory={tmp_path}", "population.mesh.lane=77"]
    assert launch.main(words) == 2
    assert load(tmp_path / "quickstart" / "config.yaml").evaluation.objectives == ("slic", "exp")


@pytest.mark.parametrize("command", ["discover", "train"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.reward='own:score'", "evaluation.reward ('own:score') is for `evaluate`, or"),
        ("task.reward=rouge", "task.reward ('rouge') is for the task preferences alone"),
    ],
)
def test_a_reward_that_a_task_would_ignore_is_refused(command, override, message, tmp_path, capsys):
    given = ["--objectives", "ipo"] if command == "train" else []
    assert launch.main([command, *given, f"run.directory={tmp_path}", override]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_refuses_the_reward_of_a_search_that_there_is_not(tmp_path, capsys):
    assert launch.main(["evaluate", f"run.directory={tmp_path}", "task.reward=rouge"]) == 2
    assert "task.reward ('rouge') is for the task preferences alone" in capsys.readouterr().err
