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
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

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


# --- what it answers --------------------------------------------------------------------------------

_SHAPES = {
    "logistic": "jax.nn.softplus({a} - beta * margin)",
    "exponential": "jnp.exp(-jnp.clip({b} * beta * margin, -20.0, 20.0))",
    "hinge": "jax.nn.relu({a} - {b} * beta * margin)",
    "square": "jnp.square(beta * margin - {b})",
    "mixed": "{a} * jax.nn.softplus(-beta * margin) + {b} * jax.nn.relu(1.0 - beta * margin)",
    "gated": "jax.nn.sigmoid(-{a} * beta * margin) * jax.nn.softplus(-{b} * beta * margin)",
}
_CODE = '''def loss(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    """A {shape} loss."""
    margin = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return {expression}
'''  # noqa: E501


def losses(body: dict[str, Any], number: int = 0, count: int = 3) -> str:
    """The JSON of a loss, or of `count` where the request's schema asks for a list."""
    text = json.dumps(body, sort_keys=True)
    rng = random.Random(hashlib.sha256(f"{number} {text}".encode()).digest())
    several = '"candidates": {' in text.replace('\\"', '"')
    drafts = [_loss(rng) for _ in range(count if several else 1)]
    return json.dumps({"candidates": drafts} if several else drafts[0])


def _loss(rng: random.Random) -> dict[str, str]:
    shape = rng.choice(sorted(_SHAPES))
    a, b = round(rng.uniform(0.2, 2.0), 3), round(rng.uniform(0.2, 2.0), 3)
    code = _CODE.format(shape=shape, expression=_SHAPES[shape].format(a=a, b=b))
    name = f"{shape}_{int(1000 * a)}_{int(1000 * b)}"
    return {
        "thought": f"Try a {shape} of the margin, with constants {a} and {b}.",
        "name": name,
        "code": code,
    }


_PROSE = """Certainly! Here is a loss that you may like.

```python
{code}```

It should work well, because it is smooth.
"""


# --- HTTP -------------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._exchange(None)
        path = urllib.parse.urlsplit(self.path).path
        if self._key_is_wrong("wrong_key"):
            return
        if re.fullmatch(r"/v1(beta)?/models", path):
            google = [_google_model(m) for m in MODELS]
            openai = [{"id": m, "object": "model", "owned_by": "here"} for m in MODELS]
            self._json(200, {"object": "list", "data": openai} if self._is_openai() else {"models": google})
        elif match := re.fullmatch(r"/v1(?:beta)?/models/(.+)", path):
            name = urllib.parse.unquote(match[1])
            if name in MODELS:
                self._json(200, {"id": name, "object": "model"} if self._is_openai() else _google_model(name))
            else:
                self._no_model(name)
        else:
            self._json(404, {"error": {"code": 404, "message": f"no such path: {path}"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        self._exchange(body)
        path = urllib.parse.urlsplit(self.path).path
        if self._key_is_wrong("wrong_key"):
            return
        if match := re.fullmatch(r"/v1(?:beta)?/models/(.+):generateContent", path):
            model, dialect = urllib.parse.unquote(match[1]), _GOOGLE
        elif path == "/v1/chat/completions":
            model, dialect = body.get("model", ""), _OPENAI
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
            if dialect is _OPENAI:
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
        return _OPENAI if self._is_openai() else _GOOGLE

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


def _google_model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }


class _Google:
    """Bodies as Gemini writes them."""

    def error(
        self, status: int, name: str, message: str, code: str = "", details: Iterable[Any] = ()
    ) -> tuple[int, Any]:
        error = {"code": status, "message": message, "status": name, "details": list(details)}
        return status, {"error": error}

    def refusal(self, body: Any, refuses: set[str]) -> tuple[str] | None:
        config = body.get("generationConfig", {})
        messages = {
            "n": ("candidateCount" in config, "Multiple candidates is not enabled for this model"),
            "json_schema": (
                "responseJsonSchema" in config,
                'Invalid JSON payload received. Unknown name "responseJsonSchema" at generation_config',
            ),
            "json_object": ("responseMimeType" in config, "JSON mode is not enabled for this model"),
            "seed": ("seed" in config, 'Invalid JSON payload received. Unknown name "seed"'),
            "system": ("systemInstruction" in body, "Developer instruction is not enabled for this model"),
            "temperature": ("temperature" in config, "Unsupported parameter: temperature"),
        }
        return _first(messages, refuses)

    def success(self, fault: str, model: str, body: Any, state: State) -> Any:
        config = body.get("generationConfig", {})
        count = 1 if "n_silently" in state.refuses else config.get("candidateCount", 1)
        texts = [_text(fault, body, number, state) for number in range(count)]
        finish = {"max_tokens": "MAX_TOKENS", "thinking_only": "MAX_TOKENS", "safety": "SAFETY"}
        finish |= {"recitation": "RECITATION"}
        candidates = []
        for number, text in enumerate(texts):
            candidate: dict[str, Any] = {"finishReason": finish.get(fault, "STOP"), "index": number}
            if fault == "empty_parts":
                candidate["content"] = {"role": "model", "parts": [{}] if number % 2 else []}
            elif fault in ("thinking_only", "safety", "recitation"):
                candidate["content"] = {"role": "model"}
            else:
                parts = [{"text": "Let me think: def loss(x): return x", "thought": True}, {"text": text}]
                candidate["content"] = {"role": "model", "parts": parts[not state.thoughts :]}
            candidates.append(candidate)
        answer: dict[str, Any] = {"candidates": candidates, "modelVersion": f"{model}-001"}
        if fault == "no_candidates":
            answer.pop("candidates")
        if fault == "blocked":
            answer.pop("candidates")
            answer["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
        if not state.no_usage:
            thoughts = 500 if fault == "thinking_only" else 100
            words = 0 if fault == "thinking_only" else 50 * count
            answer["usageMetadata"] = {
                "promptTokenCount": 200,
                "candidatesTokenCount": words,
                "thoughtsTokenCount": thoughts,
                "totalTokenCount": 200 + words + thoughts,
            }
        return answer


class _OpenAI:
    """Bodies as OpenAI writes them."""

    def error(
        self, status: int, name: str, message: str, code: str = "", details: Iterable[Any] = ()
    ) -> tuple[int, Any]:
        return status, {"error": {"message": message, "type": name.lower(), "code": code or None}}

    def refusal(self, body: Any, refuses: set[str]) -> tuple[str] | None:
        kind = body.get("response_format", {}).get("type")
        roles = {message["role"] for message in body["messages"]}
        messages = {
            "n": (body.get("n", 1) > 1, "Only one completion choice is allowed: n must be 1"),
            "json_schema": (kind == "json_schema", "This response_format type is unavailable now"),
            "json_object": (kind == "json_object", "'response_format.type' must be 'text'"),
            "seed": ("seed" in body, "Unknown parameter: 'seed'"),
            "system": ("system" in roles, "System role not supported"),
            "temperature": ("temperature" in body, "Unsupported value: 'temperature' does not support 1.1"),
            "max_tokens": (
                "max_tokens" in body,
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
            ),
        }
        return _first(messages, refuses)

    def success(self, fault: str, model: str, body: Any, state: State) -> Any:
        count = 1 if "n_silently" in state.refuses else body.get("n", 1)
        finish = {"max_tokens": "length", "thinking_only": "length", "safety": "content_filter"}
        finish |= {"blocked": "content_filter", "recitation": "content_filter"}
        choices = []
        for number in range(count):
            message: dict[str, Any] = {"role": "assistant", "content": _text(fault, body, number, state)}
            if fault in ("thinking_only", "empty_parts", "safety", "blocked", "recitation"):
                message["content"] = None if number % 2 else ""
            if fault == "thinking_only":
                message["reasoning_content"] = "Let me think: def loss(x): return x"
            choices.append({"index": number, "message": message, "finish_reason": finish.get(fault, "stop")})
        answer: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": f"{model}-001",
            "choices": [] if fault == "no_candidates" else choices,
        }
        if not state.no_usage:
            thoughts = 500 if fault == "thinking_only" else 100
            words = thoughts + (0 if fault == "thinking_only" else 50 * count)
            answer["usage"] = {
                "prompt_tokens": 200,
                "completion_tokens": words,
                "total_tokens": 200 + words,
                "completion_tokens_details": {"reasoning_tokens": thoughts},
            }
        return answer


_GOOGLE, _OPENAI = _Google(), _OpenAI()


def _first(messages: dict[str, tuple[bool, str]], refuses: set[str]) -> tuple[str] | None:
    return next(((m,) for name, (asked, m) in messages.items() if asked and name in refuses), None)


def _text(fault: str, body: Any, number: int, state: State) -> str:
    text = state.answer(body, number)
    if fault == "max_tokens":
        return text[: len(text) // 2]
    if fault == "wrong_schema":
        return json.dumps({"idea": "a loss", "kod": 7})
    if fault == "huge":
        return '{"code": "' + "x" * 10_000_000
    if fault == "prose":
        return _PROSE.format(code=json.loads(losses({"body": body}, number))["code"])
    return text


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
