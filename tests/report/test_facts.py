"""The facts at the head of a report."""

import re
import shlex

import pytest
from runs import config_of

from discojax.errors import UserError
from discojax.launch import main
from discojax.report.facts import facts
from discojax.report.gather import gather
from discojax.search import archive as archives
from discojax.search.opening import open_run

COMMANDS = ("discover", "train", "evaluate", "transfer")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stopped_run_goes_on_by_the_command_that_began_it(command, tmp_path):
    name = "first-transfer" if command == "transfer" else "first"
    config = config_of(tmp_path / name)
    archives.close(open_run(config, False, command))
    said = dict(facts(gather(config.run.path, config), None))["state"]
    words = shlex.split(re.search("`(.*)`", said).group(1))
    how = [str(tmp_path / "first")] if command == "transfer" else ["--resume", str(config.run.path)]
    assert words == ["python", "-m", "discojax.launch", command, *how]
    for other in set(COMMANDS) - {command}:
        with pytest.raises(UserError, match=f"is a run of {command}: go on with it by .* {command} "):
            open_run(config, True, other)
    archives.close(open_run(config, True, command))


def test_the_wrong_command_is_told_the_right_one(tmp_path, capsys):
    config = config_of(tmp_path / "measured")
    archives.close(open_run(config, False, "evaluate"))
    assert main(["discover", "--resume", str(config.run.path)]) == 2
    assert f"evaluate --resume {config.run.path}`" in capsys.readouterr().err
    with archives.open_archive(config.run.path / "archive.sqlite") as archive:
        assert archives.events(archive, kind="resumed") == []


@pytest.mark.parametrize(
    ("override", "sizes", "words"),
    [
        (
            "policy.width=64",
            {"parameters": 4_000},
            "3 layers, width 64, 4 heads, 4,000 parameters",
        ),
        ("policy.pretrained=smollm2", {"parameters": 134_515_008}, "smollm2, 134,515,008 parameters"),
        (
            "policy={pretrained: gpt2, lora: {rank: 8}}",
            {"parameters": 294_912, "frozen parameters": 124_439_808},
            "gpt2, 124,734,720 parameters, of which 294,912 of adapters of rank 8 train",
        ),
    ],
)
def test_the_policy_is_the_one_that_was_trained(override, sizes, words, tmp_path):
    config = config_of(tmp_path / "sized", override)
    with open_run(config, False, "discover") as archive:
        archives.set_meta(archive, "tasks", {"preferences": sizes})
    assert dict(facts(gather(config.run.path, config), None))["policy"] == words
