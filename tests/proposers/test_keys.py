"""A canary for a key: searched for in every file, output, environment and text that a run leaves."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from clients import CANARY, KEY_NAMES, KINDS, REQUEST, installed, make
from hypothesis import given
from hypothesis import strategies as st
from server import FAULTS, Server

from discojax.candidates.checker import Checker
from discojax.config import load
from discojax.errors import UserError
from discojax.proposers import keys
from discojax.proposers.client import ClientError
from discojax.proposers.retry import Patience, Retrying

FORMS = [
    CANARY.encode(),
    base64.b64encode(CANARY.encode()),
    json.dumps(CANARY).encode()[1:-1],
    b"cnry%2B7%2F4be1f09d2a6c4e5f8b3a",
]


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in KEY_NAMES:
        monkeypatch.setenv(name, CANARY)
    return CANARY


def test_the_canary_would_be_found() -> None:
    assert len({*FORMS}) >= 3 and all(form in b"before" + form + b"after" for form in FORMS)


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_client_holds_the_key(
    kind: str, server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    client = make(kind, server.url)
    texts = [repr(client)]
    # What a server may do with the key: send it back, as a reply or as an error.
    server.state.answer = lambda body, number: f"{CANARY} def loss(x): {server.state.exchanges[-1].headers}"
    for fault in FAULTS:
        if fault in ("slow", "drip", "huge"):
            continue
        server.state.then = f"{fault}:0" if fault in ("rate_limited", "retry_after") else fault
        retrying = Retrying(client, Patience(attempts=2), sleep=lambda _: None)
        texts += [str(vars(retrying)), repr(retrying)]
        try:
            texts.append(retrying.generate(REQUEST).to_json())
        except ClientError as error:
            shown = traceback.TracebackException.from_exception(error, capture_locals=True)
            for frame in shown.stack:  # the SDK's own frames, and those of this test, which has the canary
                if "discojax/proposers/sdk.py" in frame.filename or "retry.py" in frame.filename:
                    texts += [f"{name}={value}" for name, value in (frame.locals or {}).items()]
            texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
    assert len(server.state.generations) > 25
    assert any(CANARY in str(exchange.headers) for exchange in server.state.exchanges)  # it was used
    out, err = capfd.readouterr()
    texts += [out, err, *(str(record.__dict__) for record in caplog.records)]
    assert caplog.records
    for text in texts:
        for form in FORMS:
            assert form.decode() not in text


@pytest.mark.usefixtures("canary")
def test_a_process_that_is_started_meanwhile_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", CANARY)
    monkeypatch.setenv("WANDB_API_KEY", "of another service")
    command = [sys.executable, "-c", "import os; print(dict(os.environ))"]
    before = dict(os.environ)
    with keys.hidden("MINE", "", "NOT_SET"):
        seen = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert CANARY not in seen and "of another service" in seen
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://user:secret@host/v1", "proposer.key_variable"),
        ("https://host/v1?key=secret", "proposer.key_variable"),
        ("localhost:11434/v1", "http://localhost:11434/v1"),
        ("ftp://host/v1", "http://"),
        ("https://", "http://"),
    ],
)
def test_an_address_is_an_address_and_holds_no_key(address: str, said: str) -> None:
    with pytest.raises(UserError, match="proposer.base_url") as caught:
        load("quickstart", [f"proposer.base_url={address}"])
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


RUN = """
import json, logging, sys
folder, servers = sys.argv[1], json.loads(sys.argv[2])
logging.basicConfig(level=logging.DEBUG, filename=f"{folder}/debug.log")
from discojax.candidates import compile
from discojax.candidates.checker import shared
from discojax.proposers import replies
from discojax.proposers.client import ClientError, Request, Turn
from discojax.proposers.connect import connect
from discojax.proposers.retry import Patience
with open(f"{folder}/transcript.jsonl", "w") as file:
    for kind, url in servers.items():
        client = connect(kind, "gemini-flash-latest", base_url=url, patience=Patience(2, 0.01, 0.01))
        client.probe()
        for turn in range(3):
            request = Request("You write losses.", (Turn("user", f"Write {turn}."),), schema=replies.schema())
            try:
                reply = client.generate(request)
                drafts = replies.read(reply.texts[0], reply.finishes[0])
                print(reply, drafts, reply.to_json(), file=file)
                print(compile(drafts[0].code))
            except ClientError as error:
                print(error, file=file)
                print(error, file=sys.stderr)
gate = shared()._current.popen.pid
with open(f"/proc/{gate}/environ", "rb") as seen, open(f"{folder}/environ", "wb") as file:
    file.write(seen.read())
connect(kind, "gemini-flash-latest", base_url=url).generate(request)
raise RuntimeError("a crash, with its traceback")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not installed("openai"), reason="openai is not installed")
@pytest.mark.skipif(not installed("google.genai"), reason="google.genai is not installed")
def test_what_runs_leave_holds_no_key(server: Server, canary: str, tmp_path: Path) -> None:
    server.state.key = canary
    server.state.script = ["ok", "echo_key", "echo_key", "wrong_key"] * 2
    servers = json.dumps({"gemini": server.url, "openai": f"{server.url}/v1"})
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENAI_LOG": "debug"}
    command = [sys.executable, "-c", RUN, str(tmp_path), servers]
    run = subprocess.run(command, capture_output=True, timeout=280, env=environment)
    assert b"RuntimeError: a crash" in run.stderr, run.stderr.decode()
    left = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"debug.log", "transcript.jsonl", "environ"} <= left.keys()
    assert left["transcript.jsonl"].count(b"key removed") >= 3 and b"LANG=C.UTF-8" in left["environ"]
    assert len(left["debug.log"]) > 1000
    for name, content in {**left, "stdout": run.stdout, "stderr": run.stderr}.items():
        for form in FORMS:
            assert form not in content, name
        assert b"API_KEY=" not in content, name


@pytest.mark.usefixtures("canary")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_gates_process_has_no_key(tmp_path: Path) -> None:
    # What the system says of the process, and what the process itself sees.
    spy = (
        "import json, os\n"
        "def main():\n"
        "    print(json.dumps({'ready': True, 'layers': sorted(os.environ)}), flush=True)\n"
        "    input()\n"
    )
    (tmp_path / "spy.py").write_text(spy)
    checker = Checker(module="spy", path=str(tmp_path))
    try:
        checker.warm()
        assert checker._current is not None
        seen = Path(f"/proc/{checker._current.popen.pid}/environ").read_bytes()
        assert CANARY.encode() not in seen and b"KEY" not in seen and b"LANG=" in seen
        assert "LANG" in checker.layers and not set(checker.layers) & set(keys.variables())
    finally:
        checker.close()


@given(
    before=st.text(max_size=20),
    after=st.text(max_size=20),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
)
def test_a_secret_of_the_environment_is_removed(before: str, after: str, secret: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_SERVICE_TOKEN", secret)
        redacted = keys.redact(f"{before}{secret}{after}")
        assert secret not in redacted.replace("(key removed)", "\n")
        assert "(key removed)" in redacted


def test_secrets_that_overlap_are_removed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_KEY", "abcdefgh")
    monkeypatch.setenv("OTHER_KEY", "xy-sk-0123456789-abcdefgh-zw")
    monkeypatch.setenv("THIRD_KEY", "efghijkl")
    assert (
        keys.redact("a xy-sk-0123456789-abcdefgh-zw b abcdefghijkl c") == "a (key removed) b (key removed) c"
    )
    assert keys.redact("AIzaSyA1234567890abcdefghijklmnopqrstuvw") == "(key removed)"


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-abcd1***********wxyz.",
        "https://host/v1/models?key=abcdef&x=1",
        "Authorization: Bearer abcdefgh12345678",
        "AIzaSyA1234567890abcdefghijklmnopqrstuvw",
        "http://user:password@host:80/v1",
    ],
)
def test_what_looks_like_a_key_is_removed(text: str) -> None:
    redacted = keys.redact(text)
    assert "(key removed)" in redacted
    assert not any(word in redacted for word in ("abcd", "A1234", "password", "wxyz"))


@pytest.mark.parametrize(
    "text",
    ["the risk-averse task-specific loss", "policy_chosen_logps", "http://127.0.0.1:8000/v1", "beta=0.1"],
)
def test_other_words_stay(text: str) -> None:
    assert keys.redact(text) == text
