"""What a stopped run may be changed in before it goes on, and what not."""

from __future__ import annotations

import pytest

from discojax.config import load
from discojax.errors import UserError
from discojax.search import archive as archives
from discojax.search.opening import open_run


@pytest.mark.parametrize(
    "change",
    [
        "proposer.base_url=http://127.0.0.1:9/v1", "proposer.timeout=7", "proposer.attempts=2",
        "proposer.models=[another]", "proposer.output_tokens=300", "budget.dollars=9", "run.name=moved",
    ],
)  # fmt: skip
def test_a_run_goes_on_with_another_way_to_its_proposer_or_another_budget(change, tmp_path):
    old, new = (load(None, [f"run.directory={tmp_path}", *changes]) for changes in ([], [change]))
    archives.close(open_run(old, resume=False))
    (tmp_path / "quickstart").rename(new.run.path)
    with open_run(new, resume=True) as archive:
        assert [event["kind"] for event in archives.events(archive)] == ["resumed"]


@pytest.mark.parametrize(
    "change", ["search.betas=[0.2]", "run.seed=1", "proposer.history=false", "proposer.path=elsewhere"]
)
def test_a_run_does_not_go_on_with_what_changes_its_scores_or_what_it_compares(change, tmp_path):
    old, new = (load(None, [f"run.directory={tmp_path}", *changes]) for changes in ([], [change]))
    archives.close(open_run(old, resume=False))
    with pytest.raises(UserError, match="another configuration"):
        open_run(new, resume=True)
