"""`search.proposer` by name, and the proposers that need no model: a folder of files, a recording."""

from __future__ import annotations

import pytest
from clients import installed
from server import Server

from discojax.config import load
from discojax.errors import UserError
from discojax.proposers import Evolution, Proposer, Scored, make_proposer
from discojax.search.archive import open_archive
from discojax.search.ledger import RunLedger

SOURCE = "def loss(policy_chosen_logps, policy_rejected_logps):\n    return policy_rejected_logps\n"


def choose(*overrides: str) -> Proposer:
    return make_proposer(load("quickstart", overrides), ("dpo", "ipo"))


def test_evolution_is_the_default_and_without_history_it_is_random_mutation():
    assert choose() == Evolution(library=("dpo", "ipo"))
    assert choose("search.proposer=random_mutation").name == "random_mutation"
    assert choose("proposer.history=false").name == "random_mutation"


def test_a_misspelt_proposer_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'gemini'"):
        choose("search.proposer=gemnii")


@pytest.mark.skipif(not installed("google.genai"), reason="google.genai is not installed")
@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_the_version_of_geminis_api_is_a_setting(version, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "any")
    settings = () if version == "v1beta" else (f"proposer.api_version={version}",)
    with Server() as server, open_archive(tmp_path / "archive.sqlite", "x") as archive:
        config = load("gemini", [f"proposer.base_url={server.url}", *settings])
        made = make_proposer(config, ("dpo",), ledger=RunLedger(archive))
        assert len(made.propose([], 1, seed=0)) == 1
    assert server.state.generations
    assert {e.path.split("/")[1] for e in server.state.exchanges} == {version}


def test_a_version_of_geminis_api_is_not_another_servers(tmp_path):
    given = ("search.proposer=openai", "proposer.models=[m]", "proposer.api_version=v1")
    with open_archive(tmp_path / "a.sqlite", "x") as archive, pytest.raises(UserError, match="leave it out"):
        make_proposer(load("quickstart", given), ("dpo",), ledger=RunLedger(archive))


@pytest.mark.parametrize("name", ["gemini", "ollama"])
def test_the_configs_for_language_models_are_whole(name, repository):
    config = load(repository / f"configs/{name}.yaml")
    assert config.search.proposer in ("gemini", "openai") and config.proposer.models
    assert config.run.name == name and config.proposer.history


def test_files_are_proposed_by_name_each_once(tmp_path):
    for name in ("b.py", "a.py", "A.py", "not python.txt", "c d.py"):
        (tmp_path / name).write_text(SOURCE.replace("loss", name[0]))
    (tmp_path / "folder.py").mkdir()
    proposer = choose("search.proposer=file", f"proposer.path={tmp_path}")
    made = proposer.propose([], 9, seed=0)
    assert proposer.name == "file" and isinstance(proposer, Proposer)
    assert [p.name for p in made] == ["a", "a_", "b", "c_d"]
    assert [p.source[4] for p in made] == ["A", "a", "b", "c"] and made[3].thought == "From the file c d.py."
    assert proposer.propose([], 2, seed=5) == made[:2]
    assert proposer.propose([Scored("a", "", "rejected"), Scored("b", "", "ok")], 9, 0) == [made[1], made[3]]
    (tmp_path / "a.py").write_text("changed")
    assert proposer.propose([], 9, seed=0) == made


def test_a_file_that_is_not_text_is_still_only_a_candidate(tmp_path):
    (tmp_path / "x.py").write_bytes(b"\xff\x00" * 100_000)
    (made,) = choose("search.proposer=file", f"proposer.path={tmp_path}").propose([], 1, 0)
    assert len(made.source) == 100_000


def test_what_is_missing_is_named(tmp_path):
    for proposer in ("file", "replay"):
        with pytest.raises(UserError, match=r"proposer\.path"):
            choose(f"search.proposer={proposer}")
        with pytest.raises(UserError, match="nowhere"):
            choose(f"search.proposer={proposer}", f"proposer.path={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"no \.py file"):
        choose("search.proposer=file", f"proposer.path={tmp_path}")
