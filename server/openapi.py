"""The raw routes in /openapi.json, which FastAPI does not know: what routing reads of their bodies.

All other fields are OpenAI's and vLLM's, forwarded as they are.
"""

from typing import Any

from server.other_request import PATHS
from server.sections.policy import ROUTING_FIELDS

OPENAI = "https://platform.openai.com/docs/api-reference/{}/create"
TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}
KNOBS: dict[str, Any] = {
    "policy": {"type": "string"},
    "variant": {"type": "string"},
    "lambda": {"type": "number", "minimum": 0},
    "value": {"type": "number"},
    "thresholds": {"oneOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]},
    "min_success": {"type": "number", "minimum": 0, "maximum": 1},
    "accuracy": {"type": "number", "minimum": 0, "maximum": 1},
    "max_cost_usd": {"type": "number", "minimum": 0},
    "arms": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    "fallback": {"type": "boolean"},
}
MODEL = {"type": "string", "description": "`auto`, `auto-<policy>[-<value>]`, or an arm's name"}
ROUTING = {
    "type": "object",
    "description": "What this request asks of routing; removed before forwarding.",
    "properties": {field: KNOBS[field] for field in ROUTING_FIELDS},
    "additionalProperties": False,
}
MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {
            "oneOf": [
                {"type": "string"},
                {"type": "null"},
                {
                    "type": "array",
                    "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
                },
            ]
        },
    },
}
MESSAGES = {"type": "array", "minItems": 1, "items": MESSAGE}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


OUTCOME: dict[str, Any] = {
    "type": "object",
    "required": ["id", "correct"],
    "properties": {
        "id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 256,
            "pattern": "^[!-~]+$",
            "description": "the answer's `x-request-id`, or the `id` in its body",
        },
        "correct": {
            "oneOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}],
            "description": "how right the answer was",
        },
        "source": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            "default": "client",
            "description": "who says so; each source has one say about an answer",
        },
    },
    "additionalProperties": False,
}


def document(schema: dict[str, Any]) -> None:
    """Add the raw routes, and the bodies of those that read their own, to FastAPI's schema."""
    stream = {"stream": {"type": ["boolean", "null"]}, "stream_options": {"type": ["object", "null"]}}
    routed = {"model": MODEL, "routing": ROUTING, **stream}
    chat = _body({**routed, "messages": MESSAGES}, ["model", "messages"])
    paths = schema["paths"]
    paths["/v1/chat/completions"] = {"post": _operation("A chat completion by the arm that is chosen.", chat, "chat")}
    completion = _body({**routed, "prompt": TEXTS}, ["model", "prompt"])
    text = "A text completion by the arm that is chosen. Prompts of token ids need an arm's name as model."
    paths["/v1/completions"] = {"post": _operation(text, completion, "completions")}
    pinned = _body({"model": {"type": "string", "description": "an arm's name"}}, ["model"])
    for path in PATHS:
        paths[path] = {"post": _operation("vLLM's endpoint of that name, of the arm that `model` names.", pinned)}
    conversations = {"type": "array", "minItems": 1, "items": {"oneOf": [{"type": "string"}, MESSAGES]}}
    score = _body({"input": {"oneOf": [{"type": "string"}, conversations]}}, ["input"])
    score["additionalProperties"] = False
    for path in paths:
        if path.startswith("/admin/"):
            for operation in paths[path].values():
                operation["responses"]["4XX"] = _error()
                operation["security"] = [{"admin": []}]
    schema.setdefault("components", {})["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A user's key, where the gateway asks for keys."},
        "admin": {"type": "http", "scheme": "bearer", "description": "The operator's key."},
    }
    schema["security"] = [{}, {"key": []}]
    for path, body in (("/score", score), ("/route", chat), ("/v1/outcomes", OUTCOME)):
        operation = paths[path]["post"]
        operation["requestBody"] = _content(body)
        operation["responses"]["4XX"] = operation["responses"]["5XX"] = _error()


def _body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _operation(summary: str, body: dict[str, Any], reference: str | None = None) -> dict[str, Any]:
    answer = {
        "description": "The upstream's answer, byte for byte.",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {"type": "string"}}},
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "requestBody": _content(body),
        "responses": {"200": answer, "4XX": _error(), "5XX": _error()},
    }
    if reference is not None:
        operation["externalDocs"] = {"description": "All other fields", "url": OPENAI.format(reference)}
    return operation


def _content(body: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": body}}}


def _error() -> dict[str, Any]:
    return {"description": "OpenAI's error object.", "content": {"application/json": {"schema": ERROR}}}
