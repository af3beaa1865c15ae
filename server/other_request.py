"""vLLM's other endpoints, for pinned arms: nothing but the model is read and written.

A list rather than all of /v1: there vLLM also has endpoints that load adapters.
"""

import re
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
        model, form = _parse_form(raw, head.content_type, boundary[1])
        return ChatRequest({}, head, model, [], stream=False, size=len(raw), path=path, routed=False, form=form)
    body = parse_json(raw)
    stream = body.get("stream") is True
    model = check_model(body.get("model"))
    return ChatRequest(body, head, model, [], stream=stream, size=len(raw), path=path, routed=False)


def _parse_form(raw: bytes, content_type: bytes, boundary: bytes) -> tuple[str, Form]:
    """
    Raises:
        BadRequestError: there is not one model in it.
    """
    field = re.compile(
        rb"--"
        + re.escape(boundary)
        + rb"\r\n(?:[^\r\n]{1,999}\r\n){0,9}?content-disposition:[^\r\n]{0,999}\bname=\"?model\"?(?=[;\r])"
        rb"[^\r\n]{0,999}\r\n(?:[^\r\n]{1,999}\r\n){0,9}\r\n",
        re.IGNORECASE,
    )
    fields = list(field.finditer(raw))
    if len(fields) > 1:
        raise BadRequestError("the form has the field `model` twice: name one arm", "model")
    value = re.compile(rb"([^\r\n]{1,200})\r\n--" + re.escape(boundary))
    found = value.match(raw, fields[0].end()) if fields else None
    if found is None:
        raise BadRequestError("the form has no field `model`: an arm's name", "model")
    start, stop = found.span(1)
    return raw[start:stop].decode("utf-8", "replace"), Form(content_type, raw[:start], raw[stop:])
