"""What a failure means, whichever SDK met it: one sentence for the user, and whether to try again."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from discojax.proposers import keys
from discojax.proposers.client import ClientError, Kind

__all__ = ["RefusalError", "body_of", "explain", "no_route", "no_such_model", "reached", "timed_out"]

_LONGEST_SAID = 300
_LARGEST_BODY = 1 << 26  # bytes; the longest answers have less than one percent of that
_ONCE_MORE = (408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
_GATEWAY_TIMEOUTS = (408, 504, 524)  # behind which the answer may have been made
_NEVER_SENT = re.compile(
    r"Connect(Error|Timeout|TimeoutError)\b|NewConnectionError|NameResolutionError|PoolTimeout"
)
_KEY_WORDS = ("api key", "api_key", "apikey", "authentication", "unauthorized")


class RefusalError(ClientError):
    """A 400, 422 or 501: this request is not understood. Without some feature it may be.

    Attributes:
      said: the server's words, in lower case, with the name of the parameter it objects to.
    """

    def __init__(self, message: str, said: str, status: int):
        self.said = said.lower()
        super().__init__(message, "refused", status=status)


def explain(
    server: str, key_names: tuple[str, ...], status: int, body: Any, headers: Mapping[str, str]
) -> ClientError:
    """The error for an HTTP status above 399.

    Args:
      server: what to call the server and model in the text.
      key_names: environment variables in which the key is looked for.
      status: of the response.
      body: what came with it: parsed JSON, or text.
      headers: of the response.
    """
    said, code, details = _said(body)
    words = keys.redact(said)[:_LONGEST_SAID].rstrip(". ") or "no reason given"
    where = f"{server} answered {status}"
    key = f"the key in {' or '.join(key_names)}"
    lower = f"{said} {code}".lower()
    if status == 429:
        return _too_many(where, words, code, details, headers)
    reasons = {str(d.get("reason", "")) for d in details}
    bad_key = "API_KEY_INVALID" in reasons or (status == 400 and any(w in lower for w in _KEY_WORDS))
    if status == 401 or bad_key:
        return ClientError(
            f"{where}, so {key} is missing, wrong or expired: {words}.", "fatal", status=status
        )
    if status == 403:
        return ClientError(f"{where}: {key} may not use it ({words}).", "fatal", status=status)
    if status == 402:
        return ClientError(f"{where}: the account needs payment ({words}).", "fatal", status=status)
    if status == 404:
        return ClientError(f"{where}: {words}. Check the model's name and base_url.", "fatal", status=status)
    if status in (400, 422, 501):
        if "location is not supported" in lower:
            return ClientError(f"{where}: {words}.", "fatal", status=status)
        return RefusalError(
            f"{where}, it refuses this request: {words}.", f"{lower} {_parameter(body)}", status
        )
    retry_after = _pause(details, headers)
    kind: Kind = "transient" if status in _ONCE_MORE else "refused"
    billed = status in _GATEWAY_TIMEOUTS
    return ClientError(f"{where}: {words}.", kind, retry_after=retry_after, status=status, billed=billed)


def reached(error: BaseException | None) -> bool:
    """Whether the request that an SDK's error is about may have reached its server."""
    while error is not None:
        if _NEVER_SENT.search(f"{type(error).__name__} {error!r}"):
            return False
        error = error.__cause__ or error.__context__
    return True


def timed_out(server: str, seconds: float, error: BaseException | None = None) -> ClientError:
    """The error for an answer that did not come in time; `error` is the SDK's."""
    return ClientError(
        f"{server} did not answer within {seconds:g} s; a longer timeout, or less thinking, may help.",
        "transient",
        billed=reached(error),
    )


def no_route(server: str, base_url: str, error: BaseException) -> ClientError:
    """The error for a connection that could not be made or broke, of the SDK's or its HTTP library's."""
    problem = str(error) or type(error).__name__
    short = re.search(r"\[Errno -?\d+\] [\w ,]+", problem)
    words = keys.redact(short[0] if short else problem)[:_LONGEST_SAID].rstrip(". ")
    where = keys.redact(base_url)
    return ClientError(
        f"The connection to {server} at {where} failed ({words}): is the address right, the server "
        "running and the network up?",
        "transient",
        billed=reached(error),
    )


def no_such_model(server: str, model: str, close: list[str], count: int) -> ClientError:
    """The error for a model the server does not have, with the nearest of those it lists."""
    hint = f" The nearest of its {count} are {', '.join(close)}." if close else ""
    return ClientError(f"{server} has no model {model!r}.{hint}", "fatal", status=404)


def body_of(server: str, text: str) -> dict[str, Any]:
    """The JSON object in a response's body.

    Raises:
      ClientError: a transient one, if it is none: proxies answer for servers that are restarting.
    """
    flaw = "too much text" if len(text) > _LARGEST_BODY else ""
    if not flaw:
        try:
            body = json.loads(text)
            if isinstance(body, dict):
                return body
            flaw = "JSON that is no object"
        except (ValueError, RecursionError):
            flaw = "text that is not JSON"
    start = keys.redact(" ".join(text[:80].split()))
    raise ClientError(
        f"{server} answered with {flaw}, starting {start!r}.", "transient", status=200, billed=True
    )


def _said(body: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """Message, code and details of an error's body, whoever wrote it."""
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else json.dumps(error, default=str)
        return " ".join(re.sub(r"<[^>]{0,200}>", " ", text[:4000]).split()), "", []
    details = error.get("details")
    found = [d for d in details if isinstance(d, dict)] if isinstance(details, list) else []
    message = error.get("message") or error.get("detail") or error.get("status") or ""
    return " ".join(str(message)[:4000].split()), str(error.get("code") or error.get("type") or ""), found


def _parameter(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else {}
    return str(error.get("param") or "") if isinstance(error, dict) else ""


def _too_many(
    where: str, words: str, code: str, details: list[dict[str, Any]], headers: Mapping[str, str]
) -> ClientError:
    spent = code in ("insufficient_quota", "billing_hard_limit_reached")
    for violation in _violations(details):
        spent |= "PerDay" in str(violation.get("quotaId", "")) or str(violation.get("quotaValue")) == "0"
    if spent:
        return ClientError(
            f"{where}: the quota is used up ({words}). Go on when it is renewed, or with another key.",
            "quota",
            status=429,
        )
    pause = _pause(details, headers)
    return ClientError(f"{where}, too many requests: {words}.", "rate_limited", retry_after=pause, status=429)


def _violations(details: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for detail in details:
        found = detail.get("violations")
        yield from (v for v in found if isinstance(v, dict)) if isinstance(found, list) else ()


def _pause(details: list[dict[str, Any]], headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: Google's RetryInfo, `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for detail in details:
        delay = detail.get("retryDelay", "") if str(detail.get("@type", "")).endswith("RetryInfo") else ""
        if (seconds := _number(str(delay).removesuffix("s"))) is not None:
            return seconds
    given = {name.lower(): value for name, value in headers.items()}
    if (milliseconds := _number(given.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    value = given.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,12})?", text.strip()) else None
