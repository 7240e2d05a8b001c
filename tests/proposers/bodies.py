"""What the scripted server writes: losses, in replies and errors as Gemini and OpenAI write them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from typing import Any

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


# --- bodies --------------------------------------------------------------------------------------------


def google_model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }


class Google:
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

    def success(self, fault: str, model: str, body: Any, state: Any) -> Any:
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
                "cachedContentTokenCount": 120,
            }
        return answer


class OpenAI:
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

    def success(self, fault: str, model: str, body: Any, state: Any) -> Any:
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
                "prompt_tokens_details": {"cached_tokens": 120},
            }
        return answer


GOOGLE, OPENAI = Google(), OpenAI()


def _first(messages: dict[str, tuple[bool, str]], refuses: set[str]) -> tuple[str] | None:
    return next(((m,) for name, (asked, m) in messages.items() if asked and name in refuses), None)


def _text(fault: str, body: Any, number: int, state: Any) -> str:
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
