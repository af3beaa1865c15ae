"""One chat or completion request, read and checked once."""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from server.errors import BadRequestError
from server.http.head import RequestHead
from server.sections.pool import Capability

if TYPE_CHECKING:
    from server.other_request import Form

SAME_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
LONG_NUMBER = b"0" * 19
MAX_CONTAINERS = MAX_TEXTS = 200_000
"""Opening brackets and braces of a body, and its texts, names of fields included: by the million they take gigabytes,
and seconds of everybody's time."""
MAX_VALUES = 1_000_000
"""Of all kinds: a prompt of so many token ids holds up others for a tenth of a second."""


@dataclass(slots=True)
class ChatRequest:
    """A body whose routing-relevant fields have the right types; all others are the upstream's matter. Nobody changes
    it; to freeze it would cost every request microseconds."""

    body: dict[str, Any]
    head: RequestHead
    model: str
    messages: list[dict[str, Any]]
    """What probes read."""
    stream: bool
    size: int
    """Bytes of the body as received."""
    path: str = "/v1/chat/completions"
    routed: bool = True
    """Whether policies may choose the arm; if not, the model must be an arm's name, and its fields are not applied."""
    form: "Form | None" = None
    """Instead of a JSON body."""

    def without_body(self) -> "ChatRequest":
        """What is left to know of it once nothing is sent any more."""
        return replace(self, body={}, messages=[], form=None)

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
    def hides_usage(self) -> bool:
        """Whether a stream's usage chunk comes only because we ask for it."""
        options = self.body.get("stream_options")
        return self.routed and not (isinstance(options, dict) and options.get("include_usage"))


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object; of a repeated key the last value, of a whole number every digit.

    Raises:
        BadRequestError: it is none.
    """
    if len(raw) > MAX_CONTAINERS:
        _check_parts(raw)
    try:
        # orjson makes floats of integers beyond 64 bits; a regular expression would take long to find them.
        body = _parse_exactly(raw) if LONG_NUMBER in raw.translate(SAME_DIGITS) else orjson.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not valid JSON: {_readable(error)}") from None
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body


def _check_parts(raw: bytes) -> None:
    """
    Raises:
        BadRequestError: it has so many parts that it would hold up others.
    """
    if raw.count(b'"') - raw.count(b'\\"') > 2 * MAX_TEXTS:
        raise BadRequestError(f"the body has more than {MAX_TEXTS} texts and names of fields: send less at once")
    if _too_many(raw) and (kind := _too_many(_without_texts(raw))):
        raise BadRequestError(f"the body has more than {kind}: send less at once")


def _too_many(data: bytes) -> str:
    """Of what there are more than we take; empty where there are not."""
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        return f"{MAX_CONTAINERS} opening brackets and braces"
    return f"{MAX_VALUES} values" if data.count(b",") >= MAX_VALUES else ""


def _without_texts(raw: bytes) -> bytes:
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(unescaped.split(b'"')[::2])


def _parse_exactly(raw: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(raw.decode(), parse_constant=refuse)
    if rb"\u" in raw:  # this raises where a text holds half a surrogate pair, as orjson does
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _readable(error: Exception) -> str:
    """What the parsers' errors mean for who sent it."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or text.startswith("str is not valid UTF-8"):
        return "it is not UTF-8"
    if isinstance(error, UnicodeEncodeError) or "surrogate" in text:
        return "a text has half a surrogate pair in it, such as \\ud83d without what follows it"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has thousands of digits" if text.startswith("Exceeds the limit") else text


def write_json(body: dict[str, Any]) -> bytes:
    """The counterpart of `parse_json`.

    Raises:
        BadRequestError: it is nested deeper than it can be written, or a number is infinite.
    """
    try:
        return orjson.dumps(body)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise BadRequestError("the body is nested too deeply") from error
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body cannot be sent on as JSON: {error}") from None


def parse_chat(raw: bytes, head: RequestHead) -> ChatRequest:
    """A chat completion.

    Raises:
        BadRequestError: names the field and what it must be.
    """
    body = parse_json(raw)
    model, messages = check_model(body.get("model")), check_messages(body.get("messages"), "messages")
    return ChatRequest(body, head, model, messages, check_stream(body), len(raw))


def parse_completion(raw: bytes, head: RequestHead) -> ChatRequest:
    """A text completion. Probes read its prompt, or its prompts one below the other, as one user message.

    Raises:
        BadRequestError: names the field and what it must be.
    """
    body = parse_json(raw)
    model = check_model(body.get("model"))
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    is_text = isinstance(prompts, list) and bool(prompts) and all(isinstance(one, str) for one in prompts)
    if not is_text and (model == "auto" or model.startswith("auto-")):
        raise BadRequestError(
            "prompt must be a text or a list of texts; token ids mean something to one model alone: name an arm",
            "prompt",
        )
    messages = [{"role": "user", "content": "\n".join(prompts)}] if is_text and prompts else []
    return ChatRequest(body, head, model, messages, check_stream(body), len(raw), "/v1/completions")


def check_model(model: Any) -> str:
    """
    Raises:
        BadRequestError: it is no name.
    """
    if not isinstance(model, str) or not model:
        raise BadRequestError("model must be a string: `auto`, or an arm's name", "model")
    return model


def check_stream(body: dict[str, Any]) -> bool:
    """Whether a stream is asked for.

    Raises:
        BadRequestError: `stream` or `stream_options` is of the wrong type.
    """
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequestError("stream must be true or false", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequestError("stream_options must be an object", "stream_options")
    if options is not None and not stream:
        raise BadRequestError("stream_options is only allowed where stream is true", "stream_options")
    return bool(stream)


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's list of messages.

    Raises:
        BadRequestError: names the message and the field.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"{where} must be a list with at least one message", where)
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            at = f"{where}[{i}]"
            raise BadRequestError(f'{at} must be an object with a role, such as {{"role": "user", ...}}', at)
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    at = f"{where}[{i}].content"
                    raise BadRequestError(f"{at}[{j}] must be an object with a type", at)
        elif content is not None and not isinstance(content, str):
            at = f"{where}[{i}].content"
            raise BadRequestError(f"{at} must be a string or a list of parts", at)
    return messages
