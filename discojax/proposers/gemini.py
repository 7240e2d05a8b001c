"""Gemini through `google-genai`, Google's SDK of today."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from discojax.errors import UserError
from discojax.proposers import faults, keys
from discojax.proposers.client import ClientError, Finish, Reply, Request
from discojax.proposers.dialect import Feature
from discojax.proposers.sdk import Answer, SdkClient, as_number, load, make_reply, together

__all__ = ["FEATURES", "Gemini", "openapi", "read_reply"]

_ADDRESS = "https://generativelanguage.googleapis.com"
_LEVELS = ("minimal", "low", "medium", "high")

FEATURES = {
    "n": together,
    "schema": Feature(
        ("json_schema", "openapi", "json", "text"),
        ("schema", "json mode", "mime", "responseformat"),
        suspected=True,
    ),
    "system": Feature(
        ("system", "turn"), ("system instruction", "systeminstruction", "developer instruction")
    ),
    "seed": Feature(("seed", "none"), ('"seed"', "'seed'", "seed is")),
    "temperature": Feature(("temperature", "none"), ("temperature",)),
}
"""What some of the models behind this API refuse."""

_FINISHES: dict[str, Finish] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "RECITATION": "recitation",
    "SAFETY": "safety",
    "BLOCKLIST": "safety",
    "PROHIBITED_CONTENT": "safety",
    "SPII": "safety",
    "MODEL_ARMOR": "safety",
}


class Gemini(SdkClient):
    """One Gemini model.

    Args:
      model: such as `gemini-flash-latest`, an alias that moves to the newest; `Reply.model_version`
        says what it stood for.
      base_url: of another server that speaks this API; by default Google's, or what the environment
        variable GOOGLE_GEMINI_BASE_URL says.
      key_variable: the environment variable with the key; by default GOOGLE_API_KEY or GEMINI_API_KEY.
      thinking: tokens to think at most (0: none, -1: as many as the model likes), or a level of
        "minimal", "low", "medium", "high".
      api_version: "v1beta" or "v1".

    Raises:
      UserError: if the SDK is not installed, or an argument cannot be meant.
    """

    name = "gemini"
    key_names = keys.GEMINI
    features = FEATURES

    def __init__(
        self,
        model: str = "gemini-flash-latest",
        *,
        base_url: str | None = None,
        key_variable: str | None = None,
        thinking: int | str | None = None,
        api_version: str = "v1beta",
    ):
        if isinstance(thinking, str) and thinking not in _LEVELS:
            raise UserError(f"Gemini thinks a number of tokens, or {', '.join(_LEVELS)}; got {thinking!r}.")
        base_url = base_url or os.environ.get("GOOGLE_GEMINI_BASE_URL") or _ADDRESS
        super().__init__(model.removeprefix("models/"), base_url, key_variable, thinking)
        self.api_version = api_version
        self._genai = load("google.genai", "gemini")
        self._clients: dict[str, Any] = {}

    def _client(self) -> Any:
        """The SDK's client for the key as it is now."""
        key = self._key()
        with self._lock:
            if key not in self._clients:
                options = self._genai.types.HttpOptions(
                    api_version=self.api_version,
                    base_url=self.base_url,
                    retry_options=self._genai.types.HttpRetryOptions(attempts=1),
                )
                self._clients = {key: self._genai.Client(api_key=key, vertexai=False, http_options=options)}
            return self._clients[key]

    def _send(self, request: Request, ways: Mapping[str, str]) -> Reply:
        types = self._genai.types
        schema: dict[str, Any] = {}
        if request.schema is not None and ways["schema"] != "text":
            schema["response_mime_type"] = "application/json"
            if ways["schema"] == "json_schema":
                schema["response_json_schema"] = request.schema
            elif ways["schema"] == "openapi":
                schema["response_schema"] = openapi(request.schema)
        thinking = None
        if isinstance(self.thinking, str):
            thinking = types.ThinkingConfig(thinking_level=self.thinking)
        elif self.thinking is not None:
            thinking = types.ThinkingConfig(thinking_budget=self.thinking)
        config = types.GenerateContentConfig(
            system_instruction=request.system if ways["system"] == "system" and request.system else None,
            temperature=request.temperature if ways["temperature"] == "temperature" else None,
            max_output_tokens=request.max_output_tokens,
            candidate_count=request.candidates if request.candidates > 1 else None,
            seed=request.seed if ways["seed"] == "seed" else None,
            thinking_config=thinking,
            should_return_http_response=True,  # read below: the SDK's own reading fails on odd answers
            http_options=types.HttpOptions(timeout=round(1000 * request.timeout)),  # milliseconds
            **schema,
        )
        response = self._client().models.generate_content(
            model=self.model, contents=contents(request, ways), config=config
        )
        payload = faults.body_of(self.where, response.sdk_http_response.body or "")
        return read_reply(payload, request)

    def _look_up(self) -> None:
        self._client().models.get(model=self.model, config={"http_options": {"timeout": 20_000}})

    def _models(self) -> list[str]:
        listed = self._client().models.list(config={"page_size": 1000, "http_options": {"timeout": 20_000}})
        return [str(m.name).removeprefix("models/") for m in listed.page]

    def _explain(self, error: Exception, seconds: float) -> ClientError | None:
        if isinstance(error, self._genai.errors.APIError):
            headers = getattr(error.response, "headers", None) or {}
            return faults.explain(self.where, self.key_names, error.code, error.details, headers)
        timeouts, transport = _transport_errors()
        if isinstance(error, timeouts):
            return faults.timed_out(self.where, seconds, error)
        if isinstance(error, transport):
            return faults.no_route(self.where, self.base_url, error)
        return None


@functools.cache
def _transport_errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Timeouts, and all errors, of the HTTP libraries that versions of the SDK use."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    found = [load(name, "gemini") for name in names]
    return tuple(m.TimeoutException for m in found), tuple(m.HTTPError for m in found)


def contents(request: Request, ways: Mapping[str, str]) -> list[dict[str, Any]]:
    """The conversation as Gemini has it; the system instruction in its first turn where it must."""
    texts = [turn.text for turn in request.turns]
    if ways["system"] == "turn" and request.system:
        texts[0] = f"{request.system}\n\n{texts[0]}"
    return [
        {"role": turn.role, "parts": [{"text": text}]}
        for turn, text in zip(request.turns, texts, strict=True)
    ]


def openapi(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema in the dialect of `response_schema`, which knows fewer words."""
    kept = {k: v for k, v in schema.items() if k in ("type", "description", "enum", "required", "format")}
    if isinstance(schema.get("type"), str):
        kept["type"] = schema["type"].upper()
    if isinstance(schema.get("items"), Mapping):
        kept["items"] = openapi(schema["items"])
    if isinstance(schema.get("properties"), Mapping):
        kept["properties"] = {name: openapi(inner) for name, inner in schema["properties"].items()}
    return kept


def read_reply(payload: Mapping[str, Any], request: Request) -> Reply:
    """What a `GenerateContentResponse` says, however untidy its JSON is."""
    candidates = [c for c in _list(payload.get("candidates")) if isinstance(c, Mapping)]
    read = [_candidate(candidate) for candidate in candidates]
    feedback = payload.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, Mapping) else None
    if not read:
        blocked_as = f"the prompt was blocked: {blocked}" if blocked else "no candidate came"
        read = [("", "safety" if blocked else "empty", blocked_as)]
    usage = payload.get("usageMetadata")
    counts = usage if isinstance(usage, Mapping) else {}
    prompt = as_number(counts.get("promptTokenCount"))
    written = as_number(counts.get("candidatesTokenCount"))
    # The old SDK drops the thoughts' count; the total has them.
    thoughts = as_number(counts.get("totalTokenCount")) - prompt - written
    thoughts = max(thoughts, as_number(counts.get("thoughtsTokenCount")))
    return make_reply(
        payload,
        request,
        read,
        model_version=payload.get("modelVersion"),
        tokens_in=prompt,
        tokens_out=written + thoughts,
        tokens_thinking=thoughts,
        tokens_cached=as_number(counts.get("cachedContentTokenCount")),
    )


def _candidate(candidate: Mapping[str, Any]) -> Answer:
    content = candidate.get("content")
    parts = _list(content.get("parts")) if isinstance(content, Mapping) else []
    said = [p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str)
            and not p.get("thought")]  # fmt: skip
    text = "".join(said)
    reason = str(candidate.get("finishReason") or "STOP")
    finish = _FINISHES.get(reason, "other")
    if not text.strip() and finish in ("stop", "other"):
        finish = "empty"
    detail = candidate.get("finishMessage")
    if not isinstance(detail, str) or not detail:
        detail = "" if reason in ("STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED") else reason
    return text, finish, detail


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []
