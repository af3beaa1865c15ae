"""One chat request, read and checked once."""

from dataclasses import dataclass
from typing import Any

import orjson

from server.errors import BadRequestError
from server.sections import Capability

Headers = list[tuple[bytes, bytes]]
KNOB_PREFIX = b"x-pika-"


@dataclass(frozen=True)
class ChatRequest:
    """A chat body whose routing-relevant fields have the right types; all others are the upstream's matter."""

    body: dict[str, Any]
    headers: Headers
    """As ASGI has them: names in lower case, repeated ones each for itself."""
    model: str
    messages: list[dict[str, Any]]
    stream: bool
    size: int
    """Bytes of the body as received."""
    path: str = "/v1/chat/completions"

    @property
    def knob_headers(self) -> dict[str, str]:
        """The `x-pika-*` headers; of a repeated one the last."""
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self.headers
            if name.startswith(KNOB_PREFIX)
        }

    @property
    def needs(self) -> frozenset[Capability]:
        """What an arm's model must support to take this request."""
        needs: set[Capability] = set()
        if self.body.get("tools"):
            needs.add("tools")
        for message in self.messages:
            content = message.get("content")
            if isinstance(content, list) and any(part.get("type") == "image_url" for part in content):
                needs.add("images")
        return frozenset(needs)

    @property
    def wants_usage(self) -> bool:
        """Whether the client itself asked for a stream's usage chunk."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadRequestError: it is none.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body


def parse_chat(raw: bytes, headers: Headers) -> ChatRequest:
    """Check what routing needs: model, messages, stream.

    Raises:
        BadRequestError: names the field and what it must be.
    """
    body = parse_json(raw)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequestError("model must be a string: `auto`, or an arm's name", "model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequestError("stream must be true or false", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    if options is not None and not stream:
        raise BadRequestError("stream_options is only allowed where stream is true", "stream_options")
    return ChatRequest(
        body=body,
        headers=headers,
        model=model,
        messages=check_messages(body.get("messages"), "messages"),
        stream=bool(stream),
        size=len(raw),
    )


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's list of messages.

    Raises:
        BadRequestError: names the message and the field.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"{where} must be a list with at least one message", where)
    for i, message in enumerate(messages):
        at = f"{where}[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f'{at} must be an object with a role, such as {{"role": "user", ...}}', at)
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    raise BadRequestError(f"{at}.content[{j}] must be an object with a type", f"{at}.content")
        elif content is not None and not isinstance(content, str):
            raise BadRequestError(f"{at}.content must be a string or a list of parts", f"{at}.content")
    return messages
