"""What `launch/` starts: every file is linted, every dry run is run, every command line is read.

The commands are read by the real parser and the real config, so a renamed setting is found here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from discojax.command_line import read
from discojax.config import load
from discojax.errors import HostError, UserError
from discojax.launch import _COMMANDS
from discojax.population.topology import find_topology

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
SPECS = sorted(FOLDER.glob("*.yaml"))
IMAGES = sorted(FOLDER.glob("docker/*.Dockerfile"))
EVERY = [*SCRIPTS, *SPECS, *IMAGES]
COMMAND = re.compile(r"discojax\.launch ([^|;&}\n]*)")

# The fields of https://docs.skypilot.co/en/latest/reference/yaml-spec.html that are used here.
SKYPILOT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["run"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z][a-z0-9-]*$"},
        "num_nodes": {"type": "integer", "minimum": 1},
        "workdir": {"type": "string"},
        "setup": {"type": "string"},
        "run": {"type": "string"},
        "envs": {"type": "object", "additionalProperties": {"type": "string"}},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string", "pattern": r"^[\w-]+(:\d+)?$"},
                "use_spot": {"type": "boolean"},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "strategy": {"enum": ["EAGER_NEXT_REGION", "FAILOVER"]},
                        "max_restarts_on_errors": {"type": "integer", "minimum": 0},
                        "recover_on_exit_codes": {"type": "array", "items": {"type": "integer"}},
                    },
                },
            },
        },
    },
}


def tool(name: str) -> str:
    """A linter beside this Python, or on the path."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: it is in the extra `test`")
    return found


def dry_run(file: Path, folder: Path) -> str:
    """What a file prints, where nothing but bash is there to be run."""
    bash, head = shutil.which("bash"), shutil.which("head")
    bare = folder / "bin"
    bare.mkdir(parents=True, exist_ok=True)
    (bare / "head").symlink_to(head)
    environment = {"PATH": str(bare), "DRY_RUN": "1"}
    program = [bash, str(file)]
    if file.suffix == ".yaml":
        spec = yaml.safe_load(file.read_text())
        environment = spec["envs"] | environment | {
            "SKYPILOT_NODE_IPS": "10.0.0.2\n10.0.0.3", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
        }  # fmt: skip
        program = [bash, "-c", spec["run"]]
    done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def discojax_commands(printed: str) -> list[list[str]]:
    """The words of every discojax command in what was printed, those inside another's words too."""
    found = []
    for line in printed.splitlines():
        words = shlex.split(line) if line.count("'") % 2 == 0 else [line]
        own = next((i for i, word in enumerate(words) if word == "discojax.launch"), None)
        if own is not None:
            found.append(words[own + 1 :])
        found += [shlex.split(text) for word in words if " " in word for text in COMMAND.findall(word)]
    return found


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file):
    done = subprocess.run([tool("shellcheck"), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file):
    done = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.name)
def test_a_spec_has_the_fields_that_its_reader_knows(file):
    jsonschema = pytest.importorskip("jsonschema")
    spec = yaml.safe_load(file.read_text())
    jsonschema.validate(spec, SKYPILOT)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec | {"resource": {}}, SKYPILOT)
    for part in ("setup", "run"):
        # SC2154: its variables are SkyPilot's, or among `envs`.
        done = subprocess.run(
            [tool("shellcheck"), "--shell=bash", "--exclude=SC2154", "-"],
            input=spec[part], capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [*SCRIPTS, *SPECS], ids=lambda file: file.name)
def test_a_dry_run_prints_commands_that_discojax_takes(file, tmp_path):
    commands = discojax_commands(dry_run(file, tmp_path))
    kinds = [words[0] for words in commands]
    assert kinds.count("discover") == 1, "one that goes on, or begins"
    for words in commands:
        command, options = read(words, _COMMANDS)
        config = load(options.config, options.overrides)
        if words[0] == "plan":
            find_topology(options.topology)
            assert options.quick
        else:
            assert command.devices, "it is started on every host"
            assert config.run.name == "discojax" and config.population.lanes > 1
            assert options.resume_or_start and options.resume is None


def test_a_job_is_started_again_after_the_codes_that_ask_for_it(tmp_path):
    """SkyPilot and xpk take 0 for the end of a run, and start again after codes that they are told of."""
    recovery = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())["resources"]["job_recovery"]
    by_xpk = {42, *range(127, 256)}  # as `xpk workload create --help` says of --restart-on-exit-codes
    for file, codes in (("skypilot.yaml", recovery["recover_on_exit_codes"]), ("gke_xpk.sh", by_xpk)):
        (words,) = (
            w for w in discojax_commands(dry_run(FOLDER / file, tmp_path / file)) if w[0] == "discover"
        )
        _, options = read(words, _COMMANDS)
        assert int(options.preemption_code) in codes and HostError.code in codes
        assert UserError.code not in codes, "a mistake stays one"


def test_nothing_stands_between_a_pod_and_the_run(tmp_path):
    """A shell that waits for its command does not hand SIGTERM on: xpk's and SkyPilot's run one command."""
    printed = dry_run(FOLDER / "gke_xpk.sh", tmp_path)
    (command,) = re.findall(r"--command=(.*)$", printed, re.MULTILINE)
    assert not set("|&;{}") & set(command)
    assert 'exec "${command[@]}"' in yaml.safe_load((FOLDER / "skypilot.yaml").read_text())["run"]


def test_hosts_that_do_not_find_one_another_are_told_where_the_first_is(tmp_path):
    (words,) = discojax_commands(dry_run(FOLDER / "skypilot.yaml", tmp_path))
    _, options = read(words, _COMMANDS)
    assert (options.coordinator, options.processes, options.process) == ("10.0.0.2:8476", "2", "1")


def test_settings_are_environment_variables(tmp_path, monkeypatch):
    for name, value in {"LANES": "96", "SLICE": "v6e-8", "RUNS": "gs://mine/runs"}.items():
        monkeypatch.setenv(name, value)
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, str(FOLDER / "tpu_vm.sh")], env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True
    )
    plan, *runs = discojax_commands(done.stdout)
    assert plan[plan.index("--topology") + 1] == "v6e-8"
    for words in runs:
        assert "population.lanes=96" in words and "run.directory=gs://mine/runs" in words


@pytest.mark.parametrize("code", [0, 1, 2, 42])
def test_a_run_is_started_once_and_its_exit_code_is_the_scripts(code, tmp_path):
    """The real script, on a machine whose Python answers as it is told to: 2 begins nothing anew."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    answer = f'#!/bin/sh\necho "$@" >>calls\nexit {code}\n'
    for name, text in {"python": answer, "pip": "#!/bin/sh\n", "python3": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash"), str(FOLDER / "gpu_server.sh")], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code, done.stderr
    assert len(calls) == 1 and "--resume-or-start" in calls[0]


@pytest.mark.parametrize("file", EVERY, ids=lambda file: file.name)
def test_extras_that_are_installed_are_there(file):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for group in re.findall(r"\.\[([\w,]+)\]", file.read_text()) for name in group.split(",")}
    assert named <= set(extras)
    assert named or "docker/tpu.Dockerfile" in file.read_text()


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
def test_an_image_copies_what_there_is_and_runs_discojax(file):
    text = file.read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1]
    assert yaml.safe_load(entry) == ["python", "-m", "discojax.launch"]
    example = re.search(r"discojax:\w+ (discover .*)$", text, re.MULTILINE)[1]
    _, options = read(example.split(), _COMMANDS)
    assert load(None, options.overrides).run.name == "first"
    assert importlib.util.find_spec("discojax.launch") is not None


def test_the_folder_says_what_each_file_is_for():
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {file.name for file in [*SCRIPTS, *SPECS]} <= named
    assert all((FOLDER / target).exists() for target in named)
