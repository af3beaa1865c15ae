"""Every error that a client can get, with its HTTP code on the class.

GatewayError                 500
├── BadRequestError          400
│   └── ContextLengthError   400
├── InvalidHTTPError         400
├── InvalidKeyError          401
├── AdminKeyError            401
├── ForeignPageError         403
├── NotAllowedError          403
├── OperatorOnlyError        403
├── UnknownModelError        404
├── UnknownPathError         404
├── AdminOffError            404
├── LedgerOffError           404
├── UnknownDecisionError     404
├── MethodError              405  allow: the methods that there are
├── SlowHeadError            408
├── SlowBodyError            408
├── NotAnsweredError         409
├── TooManySourcesError      409
├── BodyTooLargeError        413
├── EncodingError            415
├── ReloadRefusedError       422
├── RateLimitError           429  retry-after: until there is room
├── BudgetError              429  retry-after: until the day or month ends
├── HeadTooLargeError        431
├── ClientLeftError          499  never sent: nobody is there
├── OverloadedError          503  retry-after: 1
│   └── BodiesError          503
├── DrainingError            503  retry-after: 1
├── ProbeUnavailableError    503  retry-after: 1
├── BudgetUnavailableError   503  retry-after: 1
├── LedgerAwayError          503  retry-after: 5
├── UpstreamDownError        503  retry-after: until an upstream is tried again
├── UpstreamError            502
├── UpstreamTimeoutError     504
│   └── TotalTimeError       504
└── VersionError             505

What several have in common stands on RequestError, UnauthorizedError and UnavailableError, which are never raised.
"""

import math
from typing import ClassVar

import orjson

TLS_HANDSHAKE = b"\x16\x03"
INTERNAL_ERROR = "internal error; the gateway's log has the details"


def error_body(message: str, type_: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


class GatewayError(Exception):
    """An error as the client sees it: OpenAI's error JSON."""

    status: ClassVar[int] = 500
    type: str = "internal_error"
    code: ClassVar[str | None] = None
    retry_after_s: int | None = None
    path: ClassVar[str] = "none"
    """By what `pika_requests_total` calls a request that ended so before an arm was chosen."""

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


class RequestError(GatewayError):
    """What the client asks for cannot be had so."""

    type = "invalid_request_error"


class UnauthorizedError(RequestError):
    status = 401

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"www-authenticate", b"Bearer")]


class UnavailableError(GatewayError):
    """Nothing is wrong with what the client asks for, but now is not the time."""

    status = 503
    type = "overloaded_error"
    retry_after_s = 1


class BadRequestError(RequestError):
    status = 400


class ContextLengthError(BadRequestError):
    code = "context_length_exceeded"


class InvalidHTTPError(RequestError):
    status = 400
    code = "invalid_http"

    def __init__(self, why: str) -> None:
        super().__init__(f"this is not valid HTTP/1.1: {why}")

    @classmethod
    def of(cls, data: bytes, error: Exception) -> "InvalidHTTPError":
        """What the parser says of what came; for what is no HTTP/1.1 at all, what to do."""
        if data.startswith(TLS_HANDSHAKE):
            return cls("this is TLS. Ask http:// instead of https://, or put a proxy in front that ends TLS")
        if data.startswith(b"PRI * HTTP/2"):
            return cls("this is HTTP/2. Ask by HTTP/1.1, which every client and proxy can")
        return cls(str(error))


class ForeignPageError(RequestError):
    status = 403
    code = "foreign_page"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"a page of {origin[:100]!r} asks, but the gateway is for this machine alone: "
            "server.public, or --public, lets pages of other sites ask"
        )


class InvalidKeyError(UnauthorizedError):
    """There is no key, or one that nobody has: which of both, and whose it might be, is not told."""

    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("a valid API key is needed: send it as `authorization: Bearer KEY`")


class NotAllowedError(RequestError):
    """The key is valid, and may not have this."""

    status = 403
    code = "not_allowed"


class RateLimitError(GatewayError):
    """
    Args:
        kind: requests, or tokens.
        limit: how many a minute.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, kind: str, limit: int, wait_s: float) -> None:
        super().__init__(f"this key may use {limit} {kind} a minute: ask again in {wait_s:.3g} s")
        self.type = kind
        self.retry_after_s = max(1, math.ceil(wait_s))


class BudgetError(GatewayError):
    """The key's budget does not hold what the request may cost at the most."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(wait_s))

    def headers(self) -> list[tuple[bytes, bytes]]:
        # OpenAI's clients would ask twice more at once.
        return [*super().headers(), (b"x-should-retry", b"false")]


class AdminKeyError(UnauthorizedError):
    code = "invalid_admin_key"

    def __init__(self) -> None:
        super().__init__("this needs the admin key: send it as `authorization: Bearer KEY`")


class AdminOffError(RequestError):
    status = 404
    code = "admin_off"

    def __init__(self) -> None:
        super().__init__(
            "/admin is off: name the variable of a secret in the configuration, admin: {key_env: PIKA_ADMIN_KEY}"
        )


class ReloadRefusedError(RequestError):
    """What is read anew fails a check: all stays as it was."""

    status = 422
    code = "reload_refused"


class OperatorOnlyError(RequestError):
    status = 403
    code = "operator_only"

    def __init__(self) -> None:
        super().__init__(
            "the dashboard is for this machine alone, at http://localhost or http://127.0.0.1: to look from elsewhere "
            "set an admin key, admin: {key_env: PIKA_ADMIN_KEY}, which the page then asks for"
        )


class UnknownModelError(RequestError):
    status = 404
    code = "model_not_found"


class UnknownPathError(RequestError):
    status = 404
    code = "unknown_path"

    def __init__(self, path: str, near: str | None) -> None:
        hint = "GET /openapi.json lists all" if near is None else f"did you mean {near}?"
        super().__init__(f"{path[:100]!r} is no path here: {hint}")


class LedgerOffError(RequestError):
    status = 404
    code = "ledger_off"

    def __init__(self) -> None:
        super().__init__("nothing is kept of decisions: `ledger: {}` in the configuration keeps them, and outcomes too")


class UnknownDecisionError(RequestError):
    status = 404
    code = "decision_not_found"


class MethodError(RequestError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: list[str]) -> None:
        super().__init__(f"{path[:100]} does not take {method[:20]}: use {' or '.join(allowed)}")
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"allow", ", ".join(self.allowed).encode())]


class SlowHeadError(RequestError):
    status = 408
    code = "head_too_slow"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the request's head did not come within {limit_s:g} s (limits.head_s)")


class SlowBodyError(RequestError):
    status = 408
    code = "body_too_slow"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the body did not come within {limit_s:g} s (limits.body_s)")

    def headers(self) -> list[tuple[bytes, bytes]]:
        # Whatever may still come is not waited for.
        return [*super().headers(), (b"connection", b"close")]


class NotAnsweredError(RequestError):
    status = 409
    code = "not_answered"


class TooManySourcesError(RequestError):
    status = 409
    code = "too_many_sources"


class BodyTooLargeError(RequestError):
    status = 413
    code = "body_too_large"

    def __init__(self, limit_mb: float) -> None:
        super().__init__(f"the body is larger than {limit_mb:g} MB (limits.body_mb)")


class EncodingError(RequestError):
    status = 415
    code = "unsupported_encoding"

    def __init__(self, encoding: str) -> None:
        super().__init__(f"content-encoding {encoding[:64]!r} is not supported: gzip and deflate are")

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"accept-encoding", b"gzip, deflate")]


class HeadTooLargeError(RequestError):
    status = 431
    code = "head_too_large"

    def __init__(self, limit_kb: float, headers: int) -> None:
        super().__init__(f"the head has more than {limit_kb:g} kB (limits.head_kb) or {headers} headers")


class ClientLeftError(GatewayError):
    status = 499
    type = "client_left"

    def __init__(self) -> None:
        super().__init__("the client closed its connection before the answer was whole")


class OverloadedError(UnavailableError):
    code = "overloaded"


class BodiesError(OverloadedError):
    code = "bodies_too_large"

    def __init__(self, limit_mb: float) -> None:
        super().__init__(f"requests in flight hold {limit_mb:g} MB of bodies (limits.bodies_mb); try again shortly")


class DrainingError(UnavailableError):
    code = "draining"


class ProbeUnavailableError(UnavailableError):
    code = "probe_unavailable"
    path = "probe-unavailable"  # who counts the prompts that were not scored counts those that no arm answered, too


class BudgetUnavailableError(UnavailableError):
    code = "budget_unavailable"


class LedgerAwayError(UnavailableError):
    code = "ledger_unavailable"
    retry_after_s = 5


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_failed"


class UpstreamTimeoutError(GatewayError):
    status = 504
    type = "upstream_error"
    code = "upstream_timeout"


class TotalTimeError(UpstreamTimeoutError):
    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the request took longer than {limit_s:g} s (limits.total_s)")


class UpstreamDownError(GatewayError):
    """Every server of the arm has just failed again and again; nothing was sent."""

    status = 503
    type = "upstream_error"
    code = "upstream_down"


class VersionError(RequestError):
    status = 505
    code = "http_version"

    def __init__(self, version: str) -> None:
        super().__init__(f"HTTP/{version} is not spoken here: ask by HTTP/1.1")
