"""Every error that a client can get, with its HTTP code on the class.

GatewayError                 500
├── BadRequestError          400
│   └── ContextLengthError   400
├── UnknownModelError        404
├── BodyTooLargeError        413
├── OverloadedError          503  retry-after: 1
├── DrainingError            503  retry-after: 1
├── ProbeUnavailableError    503  retry-after: 1
├── UpstreamError            502
└── UpstreamTimeoutError     504
"""

from typing import ClassVar

import orjson

INTERNAL_ERROR = "internal error; the gateway's log has the details"


def error_body(message: str, type_: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


class GatewayError(Exception):
    """An error as the client sees it: OpenAI's error JSON."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str | None] = None
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> bytes:
        """OpenAI's error object."""
        return error_body(self.message, self.type, self.code, self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        return headers


class BadRequestError(GatewayError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(BadRequestError):
    code = "context_length_exceeded"


class UnknownModelError(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class BodyTooLargeError(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class ClientLeftError(GatewayError):
    status = 499
    type = "client_left"

    def __init__(self) -> None:
        super().__init__("the client closed its connection before the answer was whole")


class OverloadedError(GatewayError):
    status = 503
    type = "overloaded_error"
    code = "overloaded"
    retry_after_s = 1


class DrainingError(GatewayError):
    status = 503
    type = "overloaded_error"
    code = "draining"
    retry_after_s = 1


class ProbeUnavailableError(GatewayError):
    status = 503
    type = "overloaded_error"
    code = "probe_unavailable"
    retry_after_s = 1


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_failed"


class UpstreamTimeoutError(GatewayError):
    status = 504
    type = "upstream_error"
    code = "upstream_timeout"
