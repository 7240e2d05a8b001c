"""A language model's server for tests and demonstrations: real HTTP, scripted faults, no model.

It speaks Gemini's `/v1` and `/v1beta` and OpenAI's `/v1/chat/completions`, and writes losses that
depend on what it is asked alone, so that the same question always has the same answer. As a command:

    python tests/proposers/server.py --port 8123 --script ok,rate_limited:2,ok --log requests.jsonl

Only the standard library is needed. `FAULTS` lists what a script may hold; `NAME:SECONDS` sets the
seconds of those that have some.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bodies import GOOGLE, OPENAI, google_model, losses

MODELS = ("gemini-flash-latest", "gemini-3.7-flash", "gemini-pro-latest", "qwen3:8b", "gpt-oss-20b")
FAULTS = (
    "ok", "rate_limited", "retry_after", "quota", "error_500", "unavailable", "bad_gateway", "slow", "drip",
    "cut", "closed", "invalid_json", "not_an_object", "no_candidates", "empty_parts", "thinking_only",
    "max_tokens", "safety", "blocked", "recitation", "wrong_schema", "no_model", "expired_key", "wrong_key",
    "forbidden", "too_long", "echo_key", "huge", "prose",
)  # fmt: skip
REFUSALS = ("n", "n_silently", "json_schema", "json_object", "seed", "system", "max_tokens", "temperature")


@dataclass
class Exchange:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class State:
    """What the server is told to do, and what it saw. Change it while it runs.

    Attributes:
      script: what happens to the next requests that generate; `then` to all after them.
      refuses: features that are answered with 400, in the words of real servers; of `REFUSALS`.
      answer: the text of one answer, given the whole body of the request and the answer's number.
      exchanges: every request, in the order of arrival.
      key: the only key that is accepted; any, or none, if None.
      no_usage: leaves tokens out of the replies.
      thoughts: Gemini's replies have a part with a thought before the answer.
      log: a file for one line of JSON a request.
    """

    script: list[str] = field(default_factory=list)
    then: str = "ok"
    refuses: set[str] = field(default_factory=set)
    answer: Callable[[dict[str, Any], int], str] = lambda body, number: losses(body, number)
    exchanges: list[Exchange] = field(default_factory=list)
    key: str | None = None
    no_usage: bool = False
    thoughts: bool = False
    log: str | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> tuple[str, float | None]:
        """The fault whose turn it is, and its seconds."""
        with self.lock:
            name, _, seconds = (self.script.pop(0) if self.script else self.then).partition(":")
        if name not in FAULTS:
            raise ValueError(f"there is no fault {name!r}; choose among {', '.join(FAULTS)}")
        return name, float(seconds) if seconds else None

    @property
    def generations(self) -> list[Exchange]:
        """The requests that generate, not those that list models."""
        return [e for e in self.exchanges if e.method == "POST"]


class Server:
    """The server in threads of this process: a context manager. `state` says what it does.

    Attributes:
      url: its address without a path, as Gemini's SDKs want it; with "/v1" for OpenAI's.
    """

    def __init__(self, port: int = 0, **state: Any):
        self.state = State(**state)
        handler = type("Handler", (_Handler,), {"state": self.state})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serve(self) -> None:
        """Serves until the process is interrupted."""
        self._http.serve_forever()

    def close(self) -> None:
        """Stops it; requests in flight are cut."""
        self.state.stopping.set()
        self._http.shutdown()
        self._http.server_close()


# --- HTTP -------------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    state: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._exchange(None)
        path = urllib.parse.urlsplit(self.path).path
        if self._key_is_wrong("wrong_key"):
            return
        if re.fullmatch(r"/v1(beta)?/models", path):
            google = [google_model(m) for m in MODELS]
            openai = [{"id": m, "object": "model", "owned_by": "here"} for m in MODELS]
            self._json(200, {"object": "list", "data": openai} if self._is_openai() else {"models": google})
        elif match := re.fullmatch(r"/v1(?:beta)?/models/(.+)", path):
            name = urllib.parse.unquote(match[1])
            if name in MODELS:
                self._json(200, {"id": name, "object": "model"} if self._is_openai() else google_model(name))
            else:
                self._no_model(name)
        else:
            self._json(404, {"error": {"code": 404, "message": f"no such path: {path}"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        if len(text) < length:  # whoever sent it was killed in doing so: nothing was asked
            self.close_connection = True
            return
        body = json.loads(text or b"{}")
        self._exchange(body)
        path = urllib.parse.urlsplit(self.path).path
        if self._key_is_wrong("wrong_key"):
            return
        if match := re.fullmatch(r"/v1(?:beta)?/models/(.+):generateContent", path):
            model, dialect = urllib.parse.unquote(match[1]), GOOGLE
        elif path == "/v1/chat/completions":
            model, dialect = body.get("model", ""), OPENAI
        else:
            self._json(404, {"error": {"code": 404, "message": f"no such path: {path}"}})
            return
        if refusal := dialect.refusal(body, self.state.refuses):
            status, answer = dialect.error(400, "INVALID_ARGUMENT", *refusal)
            self._json(status, answer)
            return
        fault, seconds = self.state.next_fault()
        if model not in MODELS:
            fault = "no_model"
        self._respond(fault, seconds, dialect, model, body)

    def _respond(self, fault: str, seconds: float | None, dialect: Any, model: str, body: Any) -> None:
        if fault in ("slow", "drip") or (fault == "ok" and seconds):
            if fault == "drip":
                self._drip(seconds or 5.0)
                return
            if self.state.stopping.wait(seconds or 5.0):
                return
        if fault == "closed":
            self._reset()
            return
        if fault in ("no_model", "expired_key", "wrong_key"):
            getattr(self, f"_{fault}")(*([model] if fault == "no_model" else []))
            return
        headers = {}
        if fault == "rate_limited":
            delay = seconds if seconds is not None else 1.0
            retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{delay:g}s"}
            status, answer = dialect.error(
                429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", details=[retry]
            )
            if dialect is OPENAI:
                headers["retry-after-ms"] = f"{1000 * delay:g}"
        elif fault == "retry_after":
            status, answer = dialect.error(429, "RESOURCE_EXHAUSTED", "Slow down.")
            headers["Retry-After"] = f"{1 if seconds is None else seconds:g}"
        elif fault == "quota":
            violation = {
                "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
                "quotaValue": "250",
            }
            details = [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"},
            ]
            status, answer = dialect.error(
                429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", "insufficient_quota", details
            )
        elif fault == "error_500":
            status, answer = dialect.error(500, "INTERNAL", "An internal error has occurred.")
        elif fault == "unavailable":
            status, answer = dialect.error(503, "UNAVAILABLE", "The model is overloaded. Try again later.")
        elif fault == "bad_gateway":
            self._bytes(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
            return
        elif fault == "forbidden":
            status, answer = dialect.error(403, "PERMISSION_DENIED", "Your project has been denied access.")
        elif fault == "too_long":
            status, answer = dialect.error(
                400, "INVALID_ARGUMENT", "The input token count exceeds the maximum number of tokens allowed."
            )
        elif fault == "echo_key":
            seen = " ".join(f"{k}={v}" for k, v in self.headers.items())
            status, answer = dialect.error(500, "INTERNAL", f"Panic while handling {self.path} with {seen}")
        elif fault == "invalid_json":
            self._bytes(200, b'{"candidates": [{"content": ', "application/json")
            return
        elif fault == "not_an_object":
            status, answer = 200, [[], 7, None]
        else:
            status, answer = 200, dialect.success(fault, model, body, self.state)
        payload = json.dumps(answer).encode()
        if fault == "cut":
            self._send_head(200, "application/json", len(payload), {})
            self.wfile.write(payload[: len(payload) // 2])
            self.wfile.flush()
            self._reset()
            return
        self._bytes(status, payload, "application/json", headers)

    def _key_is_wrong(self, fault: str) -> bool:
        wanted = self.state.key
        if wanted is None or wanted in (self._key(), ""):
            return False
        self._wrong_key()
        return True

    def _key(self) -> str:
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-goog-api-key") or bearer

    def _is_openai(self) -> bool:
        return "Authorization" in self.headers or "openai" in self.headers.get("User-Agent", "").lower()

    def _dialect(self) -> Any:
        return OPENAI if self._is_openai() else GOOGLE

    def _no_model(self, name: str) -> None:
        if self._is_openai():
            message = f"The model `{name}` does not exist or you do not have access to it."
            self._json(404, {"error": {"message": message, "code": "model_not_found", "param": None}})
            return
        version = self.path.split("/")[1]
        message = f"models/{name} is not found for API version {version}, or is not supported."
        self._json(404, {"error": {"code": 404, "message": message, "status": "NOT_FOUND"}})

    def _expired_key(self) -> None:
        if self._is_openai():
            self._wrong_key()
            return
        self._google_key("API key expired. Please renew the API key.")

    def _wrong_key(self) -> None:
        if self._is_openai():
            shown = self._key()
            message = (
                f"Incorrect API key provided: {shown}. You can find your API key at https://example.com."
            )
            self._json(401, {"error": {"message": message, "code": "invalid_api_key", "param": None}})
            return
        self._google_key("API key not valid. Please pass a valid API key.")

    def _google_key(self, message: str) -> None:
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
        }
        error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": [info]}
        self._json(400, {"error": error})

    # --- bytes ---

    def _exchange(self, body: Any) -> None:
        seen = Exchange(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        with self.state.lock:
            self.state.exchanges.append(seen)
            if self.state.log:
                digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
                line = json.dumps({"method": self.command, "path": self.path, "body": digest})
                with open(self.state.log, "a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def _json(self, status: int, answer: Any) -> None:
        self._bytes(status, json.dumps(answer).encode(), "application/json")

    def _bytes(self, status: int, payload: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        try:
            self._send_head(status, kind, len(payload), headers or {})
            self.wfile.write(payload)
        except OSError:
            self.close_connection = True  # whoever asked did not wait

    def _send_head(self, status: int, kind: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, seconds: float) -> None:
        """A byte now and then, as proxies keep a connection alive."""
        self._send_head(200, "application/json", 1_000_000, {})
        for _ in range(int(seconds / 0.05)):
            if self.state.stopping.wait(0.05):
                break
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                break
        self._reset()

    def _reset(self) -> None:
        """Ends the connection without ceremony."""
        self.close_connection = True
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except OSError:
            pass


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--script", default="", help="faults of the first requests, with commas between")
    parser.add_argument("--then", default="ok", help="the fault of all requests after the script")
    parser.add_argument("--refuse", default="", help=f"features to refuse, of {', '.join(REFUSALS)}")
    parser.add_argument("--key", help="the only key to accept")
    parser.add_argument("--log", help="a file for one line of JSON a request: path and hash of the body")
    options = parser.parse_args()
    script = [name for name in options.script.split(",") if name]
    refuses = {name for name in options.refuse.split(",") if name}
    server = Server(
        options.port, script=script, then=options.then, refuses=refuses, key=options.key, log=options.log
    )
    print(f"Gemini: {server.url}   OpenAI: {server.url}/v1   models: {', '.join(MODELS)}", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
