"""Any server with OpenAI's `/chat/completions`: OpenAI, Ollama, vLLM, llama.cpp, LM Studio, OpenRouter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from discojax.errors import UserError
from discojax.proposers import faults, keys
from discojax.proposers.client import ClientError, Finish, Reply, Request
from discojax.proposers.dialect import Feature
from discojax.proposers.replies import without_thoughts
from discojax.proposers.sdk import Answer, SdkClient, as_number, load, make_reply, together

__all__ = ["OpenAI"]

_ADDRESS = "https://api.openai.com/v1"
_NO_KEY = "none"  # what local servers are sent, which want a header and do not read it

_FEATURES = {
    "n": together,
    "schema": Feature(
        ("json_schema", "json_object", "text"),
        ("response_format", "json_schema", "json_object", "structured output", "grammar", "guided"),
        suspected=True,
    ),
    "system": Feature(("system", "turn"), ("system role", "role 'system'", "developer instruction")),
    "seed": Feature(("seed", "none"), ("seed",)),
    "temperature": Feature(("temperature", "none"), ("temperature",)),
}
_LIMITS = ("max_tokens", "max_completion_tokens")

_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "safety"}


class OpenAI(SdkClient):
    """One model of an OpenAI-compatible server.

    Args:
      model: as the server lists it.
      base_url: ends with `/v1`, as `http://localhost:11434/v1` for Ollama, `http://localhost:8000/v1`
        for vLLM, `http://localhost:8080/v1` for llama.cpp; by default OpenAI's own, or what the
        environment variable OPENAI_BASE_URL says.
      key_variable: the environment variable with the key, OPENAI_API_KEY by default. Another server
        than OpenAI's is asked without a key if there is none.
      thinking: the `reasoning_effort`, such as "low".

    Raises:
      UserError: if the SDK is not installed, or `thinking` is a number.
    """

    name = "openai"
    key_names = keys.OPENAI

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = None,
        thinking: int | str | None = None,
    ):
        if isinstance(thinking, int):
            raise UserError(
                f"OpenAI's protocol knows levels of thinking, such as low, not {thinking} tokens."
            )
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        # OpenAI's own models want the newer name of the limit; many others know the older one alone.
        limits = _LIMITS if base_url else _LIMITS[::-1]
        self.features = {**_FEATURES, "limit": Feature(limits, _LIMITS)}
        self._key_needed = base_url is None
        super().__init__(model, base_url or _ADDRESS, key_variable, thinking)
        self._openai = load("openai", "openai")
        self._clients: dict[str, Any] = {}

    def _client(self) -> Any:
        """The SDK's client for the key as it is now."""
        key = self._key() if self._key_needed or keys.find(self.key_names) else _NO_KEY
        with self._lock:
            if key not in self._clients:
                self._clients = {key: self._openai.OpenAI(api_key=key, base_url=self.base_url, max_retries=0)}
            return self._clients[key]

    def _send(self, request: Request, ways: Mapping[str, str]) -> Reply:
        given: dict[str, Any] = {
            ways["limit"]: request.max_output_tokens,
            "n": request.candidates if request.candidates > 1 else None,
            "temperature": request.temperature if ways["temperature"] == "temperature" else None,
            "seed": request.seed if ways["seed"] == "seed" else None,
            "reasoning_effort": None if self.thinking is None else str(self.thinking),
            "response_format": _format(request, ways["schema"]),
        }
        response = self._client().chat.completions.with_raw_response.create(
            model=self.model,
            messages=_messages(request, ways),
            timeout=request.timeout,  # seconds
            **{name: value for name, value in given.items() if value is not None},
        )
        return _read(faults.body_of(self.where, response.text), request)

    def _look_up(self) -> None:
        try:
            listed = self._models()
        except self._openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):
                raise
            listed = []  # a server without a list
        if any(model.partition(":")[0] == self.model or model == self.model for model in listed):
            return
        # Not listed is not absent: llama.cpp answers to any name. One token says it.
        try:
            self._client().chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=1, timeout=20.0
            )
        except self._openai.BadRequestError:
            return  # it knows the model well enough to object to something else

    def _models(self) -> list[str]:
        body = json.loads(self._client().models.with_raw_response.list(timeout=20.0).text)
        entries = body.get("data") if isinstance(body, dict) else None
        return [str(e.get("id")) for e in entries or [] if isinstance(e, dict)]

    def _explain(self, error: Exception, seconds: float) -> ClientError | None:
        sdk = self._openai
        if isinstance(error, sdk.APIStatusError):
            try:
                body = error.response.json()
            except ValueError:
                body = error.response.text
            return faults.explain(self.where, self.key_names, error.status_code, body, error.response.headers)
        if isinstance(error, sdk.APITimeoutError):
            return faults.timed_out(self.where, seconds, error)
        if isinstance(error, sdk.APIConnectionError):
            return faults.no_route(self.where, self.base_url, error.__cause__ or error)
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):  # while reading
            return faults.no_route(self.where, self.base_url, error)
        return None


def _format(request: Request, way: str) -> dict[str, Any] | None:
    if request.schema is None or way == "text":
        return None
    if way == "json_object":
        return {"type": "json_object"}
    schema = {"name": "candidates", "strict": True, "schema": request.schema}
    return {"type": "json_schema", "json_schema": schema}


def _messages(request: Request, ways: Mapping[str, str]) -> list[dict[str, str]]:
    messages = [
        {"role": "assistant" if turn.role == "model" else "user", "content": turn.text}
        for turn in request.turns
    ]
    if not request.system:
        return messages
    if ways["system"] == "turn":
        messages[0]["content"] = f"{request.system}\n\n{messages[0]['content']}"
        return messages
    return [{"role": "system", "content": request.system}, *messages]


def _read(payload: Mapping[str, Any], request: Request) -> Reply:
    """What a chat completion says, however untidy its JSON is."""
    entries = payload.get("choices")
    choices = [c for c in entries if isinstance(c, Mapping)] if isinstance(entries, list) else []
    read = [_choice(choice) for choice in choices] or [("", "empty", "no choice came")]
    usage = payload.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    prompt = as_number(counts.get("prompt_tokens"))
    # Some servers leave thinking out of completion_tokens, yet count it in the total.
    out = max(as_number(counts.get("completion_tokens")), as_number(counts.get("total_tokens")) - prompt)

    def detail(which: str, name: str) -> int:
        details = counts.get(f"{which}_tokens_details")
        return as_number(details.get(name)) if isinstance(details, Mapping) else 0

    return make_reply(
        payload,
        request,
        read,
        model_version=payload.get("model"),
        tokens_in=prompt,
        tokens_out=out,
        tokens_thinking=detail("completion", "reasoning_tokens"),
        tokens_cached=detail("prompt", "cached_tokens"),
    )


def _choice(choice: Mapping[str, Any]) -> Answer:
    given = choice.get("message")
    message = given if isinstance(given, Mapping) else {}
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers have it
        content = "".join(str(p.get("text") or "") for p in content if isinstance(p, Mapping))
    text = without_thoughts(content) if isinstance(content, str) else ""
    reason = str(choice.get("finish_reason") or "stop")
    finish = _FINISHES.get(reason, "other")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return text, "safety", refusal
    if not text.strip() and finish in ("stop", "other"):
        thought = message.get("reasoning_content") or message.get("reasoning")
        return "", "empty", "the model thought and wrote nothing" if thought else ""
    return text, finish, "" if finish in ("stop", "length") else reason
