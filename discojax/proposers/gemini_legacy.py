"""Gemini through `google-generativeai`, which Google stopped supporting in November 2025.

Kept for those who have pinned it. Prefer `gemini`: this SDK knows neither seeds nor thinking.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from discojax.errors import UserError
from discojax.proposers import faults, keys
from discojax.proposers.client import ClientError, Reply, Request
from discojax.proposers.dialect import Feature
from discojax.proposers.gemini import FEATURES, contents, openapi, read_reply
from discojax.proposers.sdk import SdkClient, load

__all__ = ["GeminiLegacy"]

_ADDRESS = "https://generativelanguage.googleapis.com"
_SOON = {"timeout": 20.0, "retry": None}  # seconds


class GeminiLegacy(SdkClient):
    """One Gemini model by way of the old SDK.

    Args:
      model: such as `gemini-flash-latest`.
      base_url: of another server that speaks this API.
      key_variable: the environment variable with the key; by default GOOGLE_API_KEY or GEMINI_API_KEY.

    Raises:
      UserError: if the SDK is not installed.
    """

    name = "gemini-legacy"
    key_names = keys.GEMINI
    features: Mapping[str, Feature] = {
        "n": FEATURES["n"],
        "schema": FEATURES["schema"].after("json_schema"),
        "system": FEATURES["system"],
        "temperature": FEATURES["temperature"],
    }

    _configured = threading.Lock()  # the SDK keeps key and address for the whole process

    def __init__(
        self,
        model: str = "gemini-flash-latest",
        *,
        base_url: str | None = None,
        key_variable: str | None = None,
        thinking: int | str | None = None,
    ):
        if thinking is not None:
            raise UserError("google-generativeai cannot set how much a model thinks; use `gemini` for that.")
        super().__init__(model.removeprefix("models/"), base_url or _ADDRESS, key_variable, thinking)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, that its support has ended
            self._genai = load("google.generativeai", "gemini-legacy")
        self._errors = load("google.api_core.exceptions", "gemini-legacy")
        self._requests = load("requests", "gemini-legacy")

    def _client(self, kind: str) -> Any:
        """The SDK's client for "generative" or "model" requests, with the key as it is now."""
        with self._configured:
            self._genai.configure(
                api_key=self._key(),
                transport="rest",  # by default it speaks gRPC, which proxies and other servers do not
                client_options={"api_endpoint": self.base_url},
            )
            made = load("google.generativeai.client", "gemini-legacy")
            return getattr(made, f"get_default_{kind}_client")()

    def _send(self, request: Request, ways: Mapping[str, str]) -> Reply:
        config: dict[str, Any] = {
            "max_output_tokens": request.max_output_tokens,
            "temperature": request.temperature if ways["temperature"] == "temperature" else None,
            "candidate_count": request.candidates if request.candidates > 1 else None,
        }
        if request.schema is not None and ways["schema"] != "text":
            config["response_mime_type"] = "application/json"
            if ways["schema"] == "openapi":
                config["response_schema"] = openapi(request.schema)
        system = request.system if ways["system"] == "system" and request.system else None
        model = self._genai.GenerativeModel(self.model, system_instruction=system)
        model._client = self._client("generative")  # else the process's last one, of whatever key
        response = model.generate_content(
            contents(request, ways),
            generation_config={name: value for name, value in config.items() if value is not None},
            request_options={"timeout": request.timeout, "retry": None},  # seconds
        )
        message = response._result
        return read_reply(json.loads(type(message).to_json(message, use_integers_for_enums=False)), request)

    def _look_up(self) -> None:
        self._genai.get_model(f"models/{self.model}", client=self._client("model"), request_options=_SOON)

    def _models(self) -> list[str]:
        listed = self._genai.list_models(page_size=1000, client=self._client("model"), request_options=_SOON)
        return [str(model.name).removeprefix("models/") for model in listed]

    def _explain(self, error: Exception, seconds: float) -> ClientError | None:
        if isinstance(error, self._errors.GoogleAPICallError) and error.response is not None:
            response = error.response
            try:
                body = response.json()
            except ValueError:
                body = response.text
            return faults.explain(self.where, self.key_names, response.status_code, body, response.headers)
        if isinstance(error, self._requests.Timeout | self._errors.DeadlineExceeded):
            return faults.timed_out(self.where, seconds, error)
        if isinstance(error, self._requests.RequestException | self._errors.RetryError):
            return faults.no_route(self.where, self.base_url, error)
        if type(error).__name__ == "ParseError":  # of protobuf: the body is no JSON, or another one's
            return ClientError(
                f"{self.where} answered with text that is not its JSON.", "transient", billed=True
            )
        return None
