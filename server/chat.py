"""POST /v1/chat/completions: read, decide, dispatch, relay. A raw ASGI route."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field

from server.chat_request import ChatRequest, parse_chat
from server.decision import decide
from server.errors import INTERNAL_ERROR, GatewayError, UpstreamError
from server.http import (
    Receive,
    Scope,
    Send,
    read_body,
    read_headers,
    request_id,
    send_error,
    send_whole,
    unless_client_leaves,
)
from server.knobs import DEBUG_HEADER
from server.record import Record, decision_headers
from server.relay import Answer, BrokenStreamError
from server.retry import Dispatch, dispatch
from server.sse import EventRelay, error_event, parse_usage
from server.state import State, current

logger = logging.getLogger(__name__)

LAST_WORDS_S = 5


class Chat:
    """The route as an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = current(scope)
        headers = read_headers(scope)
        exchange = Exchange(state, request_id(headers), send)
        try:
            async with state.admit():
                raw = await read_body(headers, receive, state.settings.limits.body_mb)
                exchange.record.read()
                await unless_client_leaves(exchange.serve(parse_chat(raw, headers)), receive)
        except GatewayError as error:
            await exchange.fail(error)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await exchange.fail(GatewayError(INTERNAL_ERROR))


@dataclass
class Exchange:
    """One request from its body to its last byte."""

    state: State
    request_id: str
    send: Send
    started: bool = False
    """Whether the client has our response's head."""
    debug: bool = False
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        self.record = Record(self.state, self.request_id)

    async def serve(self, request: ChatRequest) -> None:
        self.debug = request.headers.get(DEBUG_HEADER) == "1"
        sent = Dispatch(await decide(self.state, request))
        self.record.decided(sent)
        try:
            answer = await dispatch(self.state, request, self.request_id, "/chat/completions", sent)
            try:
                if answer.stream is None:
                    await self._relay_whole(answer)
                else:
                    await self._relay_stream(answer, drop_usage=not request.wants_usage)
            finally:
                await answer.aclose()
        finally:
            sent.release(self.state)

    async def _relay_whole(self, answer: Answer) -> None:
        self.started = True
        await send_whole(self.send, answer.status, [*answer.headers, *self._headers()], answer.body)
        self.record.finish(answer.status, parse_usage(answer.body) if answer.status == 200 else None)

    async def _relay_stream(self, answer: Answer, drop_usage: bool) -> None:
        assert answer.stream is not None
        events = EventRelay(drop_usage)
        self.started = True
        self.record.first_byte()
        headers = [*answer.headers, *self._headers()]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            await self._pass_on(events.feed(answer.body))
            async for chunk in answer.stream:
                await self._pass_on(events.feed(chunk))
        except BrokenStreamError as error:
            raise UpstreamError(str(error)) from error
        await self.send({"type": "http.response.body", "body": events.flush()})
        self.record.finish(answer.status, events.usage)

    async def _pass_on(self, data: bytes) -> None:
        if data:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, error: GatewayError) -> None:
        """Tell the client: an error answer, or the last event of a stream that has begun."""
        self.record.finish(error.status)
        # A client that no longer reads is not waited for.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                if self.started:
                    await self.send({"type": "http.response.body", "body": error_event(error.body())})
                else:
                    await send_error(self.send, error, self._headers())

    def _headers(self) -> list[tuple[bytes, bytes]]:
        record = self.record
        return decision_headers(self.state, self.request_id, record.routing_s, record.sent, self.debug)
