"""vLLM's other endpoints, for pinned arms: nothing but the model is read and written.

A list rather than all of /v1: there vLLM also has endpoints that load adapters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from server.chat_request import ChatRequest, check_model, parse_json
from server.errors import BadRequestError
from server.http.head import RequestHead

PATHS = (
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v2/embed",
    "/v2/rerank",
    "/rerank",
    "/classify",
    "/pooling",
    "/tokenize",
    "/detokenize",
)
BOUNDARY = re.compile(rb"multipart/form-data;.*\bboundary=\"?([^\";,\r\n]{1,70})", re.IGNORECASE)
NAMED = re.compile(rb"content-disposition:(?:.*[;\s])?name=\"?(model|stream)\"?\s*(?:;.*)?", re.IGNORECASE)
TRUE = (b"true", b"1", b"on", b"yes", b"t", b"y")
"""As pydantic, and so vLLM, reads a form."""
MAX_FIELDS = 100
MAX_FIELD_HEAD_BYTES = 2048
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Form:
    """A multipart body, cut where the model's name stands."""

    content_type: bytes
    before: bytes
    after: bytes

    def with_model(self, name: str) -> bytes:
        return self.before + name.encode() + self.after


def parse_other(path: str, raw: bytes, head: RequestHead) -> ChatRequest:
    """A request whose model is an arm.

    Raises:
        BadRequestError: there is no model in it.
    """
    boundary = BOUNDARY.match(head.content_type)
    if boundary is not None:
        model, stream, form = _parse_form(raw, head.content_type, boundary[1])
        return ChatRequest({}, head, model, [], stream=stream, size=len(raw), path=path, routed=False, form=form)
    body = parse_json(raw)
    stream = body.get("stream") is True
    model = check_model(body.get("model"))
    return ChatRequest(body, head, model, [], stream=stream, size=len(raw), path=path, routed=False)


def _parse_form(raw: bytes, content_type: bytes, boundary: bytes) -> tuple[str, bool, Form]:
    """The model, whether a stream is asked for, and the form.

    Raises:
        BadRequestError: there is not one model in it.
    """
    end_of_value = b"\r\n--" + boundary
    values: dict[bytes, list[slice]] = {b"model": [], b"stream": []}
    for at in _fields(raw, b"--" + boundary + b"\r\n"):
        end = raw.find(b"\r\n\r\n", at, at + MAX_FIELD_HEAD_BYTES)
        if end < 0:
            continue
        start = end + 4
        stop = raw.find(end_of_value, start, start + MAX_NAME_BYTES + len(end_of_value))
        for line in raw[at:end].split(b"\r\n"):
            if (named := NAMED.fullmatch(line)) is not None:
                values[named[1].lower()].append(slice(start, max(start, stop)))
    if len(values[b"model"]) > 1:
        raise BadRequestError("the form has the field `model` twice: name one arm", "model")
    model = values[b"model"][0] if values[b"model"] else slice(0, 0)
    if not raw[model]:
        raise BadRequestError("the form has no field `model`: an arm's name", "model")
    stream = any(raw[value].lower() in TRUE for value in values[b"stream"])
    form = Form(content_type, raw[: model.start], raw[model.stop :])
    return raw[model].decode("utf-8", "replace"), stream, form


def _fields(raw: bytes, delimiter: bytes) -> Iterator[int]:
    """Where each field of a form begins.

    Raises:
        BadRequestError: there are too many.
    """
    at = -len(delimiter)
    for _ in range(MAX_FIELDS + 1):
        at = raw.find(delimiter, at + len(delimiter))
        if at < 0:
            return
        yield at + len(delimiter)
    raise BadRequestError(f"the form has more than {MAX_FIELDS} fields")
