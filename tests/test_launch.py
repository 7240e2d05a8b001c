"""The command line: what it prints, what it answers to a mistake, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from discojax import objectives
from discojax.command_line import PROGRAM
from discojax.config import Config, dump, load
from discojax.errors import HostError, UserError
from discojax.launch import _COMMANDS, main
from discojax.population.stopping import Preempted
from discojax.report import terminal

DPO = f'''def loss({", ".join(objectives.ARGUMENTS[:5])}):
    """Logistic loss."""
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    return jax.nn.softplus(-beta * (chosen - rejected))
'''


def launch(*words: str, stdin: str = "", **keywords) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user has it."""
    return subprocess.run(
        [sys.executable, "-m", "discojax.launch", *words],
        input=stdin, capture_output=True, text=True, timeout=120, **keywords,
    )  # fmt: skip


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> list:
    """Records what the outer loop is asked to do, in its place: these tests are about the asking."""
    asked: list = []
    outer = "discojax.search.discover"
    monkeypatch.setattr(f"{outer}.claim", lambda config: config)
    monkeypatch.setattr(f"{outer}.run", lambda config, resume: asked.append(("run", config, resume)))
    monkeypatch.setattr(
        f"{outer}.train", lambda config, given, resume: asked.append(("train", config, given, resume))
    )
    monkeypatch.setattr("discojax.launch._shown", lambda outcome, config: 0)
    monkeypatch.setattr("discojax.report.page.write", lambda config, say: say("a report"))
    monkeypatch.setattr("discojax.launch._configure_backend", lambda: asked.append("backend"))
    return asked


def test_help_names_every_command_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in _COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert "population.mesh.lane=0" in text and "run.name=quickstart" in text
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {PROGRAM} {name}") and "--config FILE" in text and "run.seed=0" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import discojax

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"discojax {discojax.__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["discover"], ["--config", "quickstart"], ["discover", "--config=quickstart"]]
)
def test_discover_with_the_quickstart_is_the_default(words: list[str], loop: list) -> None:
    assert main(words) == 0
    assert loop == ["backend", ("run", Config(), False)]


def test_overrides_stand_anywhere(loop: list, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {seed: 1, name: a}\n")
    words = ["run.seed=2", "--config", str(file), "population.lanes=8"]
    assert main(words) == main(["discover", *words]) == 0
    expected = load(file, ["run.seed=2", "population.lanes=8"])
    assert loop[1::2] == [("run", expected, False)] * 2
    assert expected.run.seed == 2


def test_train_passes_objectives_on(loop: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(DPO)
    assert main(["train", "--objectives", f"dpo, discopop(tau=0.1),{file}", "run.seed=4"]) == 0
    given = ("dpo", "discopop(tau=0.1)", str(file))
    _, config, *asked = loop[1]
    assert asked == [given, False] and (config.run.seed, config.search.library) == (4, given)
    assert main(["train"]) == 0
    assert loop[3] == ("train", Config(), Config().search.library, False)
    # What is trained is saved with the run, which goes on with it.
    config.run.path.mkdir(parents=True)
    (config.run.path / "config.yaml").write_text(dump(config))
    assert main(["train", "--resume", str(config.run.path)]) == 0
    assert loop[5][2:] == (given, True)


@pytest.mark.parametrize(
    "words", [["--resume"], ["--resume", "first"], ["--resume", "RUNS/first"], ["--resume", "run.name=first"]]
)
def test_resume_uses_the_config_the_run_was_started_with(
    words: list[str], loop: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = load(None, ["run.name=first", "population.lanes=8"])
    for folder in (started.run.path, Path("runs/quickstart")):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump(started))
    words = [word.replace("RUNS", str(tmp_path / "runs")) for word in words]
    assert main(["discover", *words, "run.seed=9"]) == 0
    _, (what, config, resume) = loop
    assert (what, resume, config.population.lanes, config.run.seed) == ("run", True, 8, 9)
    # A run lives where it lies, whatever it was called when it began.
    assert config.run.path.resolve() == tmp_path / "runs" / ("first" if len(words) > 1 else "quickstart")


def test_there_must_be_a_run_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loop: list
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["discover", "--resume"]) == 2
    assert "no run to go on with in 'runs/quickstart'" in capsys.readouterr().err
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/config.yaml").write_text("")
    assert main(["discover", "--resume", "frist"]) == 2
    assert "Did you mean 'first'?" in capsys.readouterr().err
    assert loop == []


def test_resume_or_start_begins_the_run_of_that_name_or_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loop: list
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["discover", "--resume-or-start", "run.name=first", "population.lanes=8"]
    assert main(words) == 0
    begun = load(None, words[2:])
    assert loop.pop() == ("run", begun, False)
    begun.run.path.mkdir(parents=True)
    (begun.run.path / "config.yaml").write_text(dump(load(None, [*words[2:], "run.seed=7"])))
    assert main(words) == 0
    _, config, resume = loop.pop()
    assert resume and config.run.name == "first" and config.run.seed == 7, "the config it was started with"
    assert main([*words, "--resume"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_bucket_that_is_away_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loop: list
) -> None:
    """Whether there is a run cannot be known then: to begin would train, and pay, all over."""
    monkeypatch.setenv("DISCOJAX_CACHE", str(tmp_path))

    def away(url: str) -> tuple:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("discojax.search.storage._open", away)
    assert main(["discover", "--resume-or-start", "run.directory=gs://bucket/runs"]) == 2
    assert "gs://bucket/runs/quickstart cannot be reached (no route to host)" in capsys.readouterr().err
    assert loop == []


def test_one_policy_is_trained_in_a_run_of_its_own_name_and_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: list
) -> None:
    monkeypatch.chdir(tmp_path)
    runs: list = []
    monkeypatch.setattr("discojax.search.finetune.finetune", lambda config: runs.append(config.run.path))
    monkeypatch.setattr("discojax.report.finetuned.show", lambda *_, **__: None)
    words = ["train", "--policy", "p", "--data", "d"]
    for number in range(2):
        assert main([*words, "--resume-or-start"]) == 0
        runs[number].mkdir(parents=True, exist_ok=True)
        (runs[number] / "config.yaml").write_text(dump(load(None, ["run.name=finetune"])))
    assert main(words) == 0
    assert [path.name for path in runs] == ["finetune", "finetune", "finetune-2"]


@pytest.mark.parametrize(
    ("error", "code", "asked"),
    [
        (UserError("a key is missing."), 2, []),
        (HostError("Process 1 of this job is gone."), 42, []),
        (HostError("Process 1 of this job failed: a bug", 1), 1, []),
        (Preempted("Stopped."), 0, []),
        (Preempted("Stopped."), 42, ["--preemption-code", "42"]),
        (KeyboardInterrupt(), 130, ["--preemption-code", "42"]),
    ],
)
def test_whoever_starts_it_again_can_go_by_its_exit_code(
    error: BaseException,
    code: int,
    asked: list,
    loop: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(config: Config, resume: bool) -> None:
        raise error

    monkeypatch.setattr("discojax.search.discover.run", stop)
    assert main(["discover", *asked]) == code


def test_sigterm_is_heeded_from_the_beginning(
    loop: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there is a run: while hosts are found, libraries imported, a bucket asked."""

    def told(config: Config) -> Config:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("discojax.search.discover.claim", told)
    assert main(["discover"]) == 0
    assert capsys.readouterr().err.strip() == "Stopped."
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["discover", "--preemption-code", "256"], "from 0 to 255, not 256"),
        (["discover", "--resume-or-strat"], "Did you mean '--resume-or-start'?"),
        (["discver"], "no command 'discver'. Did you mean 'discover'?"),
        (["run.seed"], "no command 'run.seed'"),
        (["polcy.layers=3"], "the nearest is 'policy.layers'"),
        (["losses", "run.sead=3"], "the nearest is 'run.seed'"),
        (["discover", "policy.layers=many"], "policy.layers must be a whole number"),
        (["--config", "quickstrat"], "quickstart.yaml"),
        (["--config"], "expected one argument"),
        (["--resum"], "Did you mean '--resume'?"),
        (["check", "--resume", "x"], "no option '--resume'"),
        (["discover", "extra"], "cannot use 'extra'"),
        (["losses", "dpo", "ipo"], "cannot use 'ipo'"),
        (["losses", "dop"], "no loss 'dop'. Did you mean"),
        (["check"], "write `check FILE|-"),
        (["check", "no_such.py"], "no file 'no_such.py'"),
        (["check", "/"], "cannot be read"),
        (["train", "--objectives", "dpo,ipp"], "no loss 'ipp'. Did you mean 'ipo'?"),
        (["train", "--objectives", "no_such.py"], "no file 'no_such.py'"),
        (["train", "--objectives", " , "], "--objectives names none"),
        (["train", "--objectives", "discopop(tua=1)"], "tau"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, loop: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "Traceback" not in err
    assert out == "" and set(loop) <= {"backend"}


def test_a_mistake_in_a_process_of_its_own() -> None:
    done = launch("discver")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("There is no command")


def test_a_missing_file_names_its_neighbour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "candidate.py").write_text(DPO)
    assert main(["check", str(tmp_path / "candidat.py")]) == 2
    assert "Did you mean 'candidate.py'?" in capsys.readouterr().err


def test_control_c_says_how_to_go_on(
    loop: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def begin_and_stop(config: Config, resume: bool) -> None:
        if config.run.seed:
            config.run.path.mkdir(parents=True)
            (config.run.path / "config.yaml").write_text(dump(config))
        raise KeyboardInterrupt

    monkeypatch.setattr("discojax.search.discover.run", begin_and_stop)
    assert main([]) == 130
    assert "before there was anything to keep" in capsys.readouterr().err
    assert main(["run.seed=1"]) == 130
    err = capsys.readouterr().err
    command = re.search(r"`python -m discojax.launch (.*)`", err)
    assert command and "Traceback" not in err
    # What it says is what works.
    asked: list = []
    monkeypatch.setattr("discojax.search.discover.run", lambda config, resume: asked.append((config, resume)))
    assert main(command[1].split()) == 0
    assert asked == [(load(None, ["run.seed=1"]), True)]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "runs/x"), PermissionError(13, "Permission denied")]
)
def test_a_disk_that_refuses_is_a_sentence(
    error: OSError, loop: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: Config, resume: bool) -> None:
        raise error

    monkeypatch.setattr("discojax.search.discover.run", refuse)
    assert main([]) == 2
    err = capsys.readouterr().err
    assert error.strerror in err and "run.directory=FOLDER" in err and err.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(loop: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config, resume: bool) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("discojax.search.discover.run", fail)
    with pytest.raises(OSError, match="Input/output"):
        main([])


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "discojax.launch", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) in (0, 1)


def test_losses_lists_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    text = capsys.readouterr().out
    for name in objectives.names():
        assert re.search(rf"│ {re.escape(name)} ", text)
    assert "sigmoid" in text and "arXiv 2305.18290" in text


def test_losses_shows_formula_source_and_curve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "lrml", "search.betas=[0.2, 0.1, 0.4]"]) == 0
    text = capsys.readouterr().out
    objective = objectives.get("discopop")
    assert objective.formula in text and objective.source in text  # as it is, so that it can be copied
    assert "at β = 0.2" in text and "(loss)" in text and "(slope)" in text and "⠀" in text


@pytest.mark.parametrize("width", [80, 130])
@pytest.mark.parametrize("name", ["dpo", "ipo", "exp", "sft", "pfl"])
def test_curves_fit_the_terminal(name: str, width: int) -> None:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    terminal.show_objective(objectives.get(name), beta=0.1, console=console)
    drawn = [line for line in console.export_text().splitlines() if "⠀" in line or "|-" in line]
    assert 26 >= len(drawn) >= 13 and max(map(len, drawn)) <= width


def test_a_curve_shows_its_values() -> None:
    # At margin 0 DPO's loss is log 2 and its slope -beta/2: the middle column's dot is in that row.
    plot = terminal._plot([-1.0, 0.0, 1.0], [2.0, 1.0, 0.0], "loss", 40, Console(width=80)).plain
    rows = [line.split("|")[1] for line in plot.splitlines() if "⠀" in line]
    first = [
        min(i for i, dot in enumerate(row[1:]) if dot not in "⠀⡇⠒")
        for row in rows
        if set(row[1:]) - set("⠀⡇⠒ ")
    ]
    assert first == sorted(first) and len(first) > 8  # falls from the upper left to the lower right
    flat = terminal._plot([0.0, 1.0], [float("nan"), float("inf")], "loss", 40, Console(width=80)).plain
    assert flat == "loss: not finite anywhere"


def test_check_accepts_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(DPO)
    assert main(["check", str(file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("accepted") and re.search(r"hash +\w{8}", text)


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ("import os\n" + DPO, "syntax"),
        (DPO.replace("jax.nn.softplus", "jax.nn.sotfplus"), "syntax"),
        ("x = 1", "syntax"),
        ("", "text"),
        ("\xff" + DPO, "text"),
        ("#" * 70_000, "text"),
    ],
)
def test_check_names_stage_and_reason(source: str, stage: str) -> None:
    done = launch("check", "-", stdin=source)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(f"rejected at {stage}") and ": " in done.stdout


@pytest.mark.parametrize("gone", [True, False])
def test_what_fails_because_a_host_is_gone_says_so_and_anything_else_its_traceback(gone, monkeypatch, capsys):
    """Whoever noticed, and before the leader leaves the others, when it may end at once."""
    from discojax import launch
    from discojax.population import hosts

    said: list[tuple[int, str]] = []

    def fails(argv):
        raise RuntimeError("a barrier of Orbax's timed out")

    monkeypatch.setattr(launch, "_main", fails)
    monkeypatch.setattr(hosts, "alone", lambda: False)
    monkeypatch.setattr(hosts, "lost", lambda: HostError("Process 1 of this job is gone.") if gone else None)
    monkeypatch.setattr(hosts, "finish", lambda code: said.append((code, capsys.readouterr().err)))
    assert main(["discover"]) == (42 if gone else 1)
    ((code, err),) = said
    assert code == (42 if gone else 1)
    assert ("is gone" in err) == gone and ("Traceback" in err and "Orbax's" in err) == (not gone)
    monkeypatch.setattr(hosts, "alone", lambda: True)
    with pytest.raises(RuntimeError, match="Orbax"):
        main(["discover"])
