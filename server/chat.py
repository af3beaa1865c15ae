"""POST /v1/chat/completions and its like: read, decide, dispatch, relay. Raw ASGI routes."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from server.chat_request import ChatRequest, parse_chat
from server.errors import INTERNAL_ERROR, GatewayError, UpstreamError
from server.http.asgi import Receive, Scope, Send, read_body, send_error, send_whole
from server.http.bodies import SMALL_BYTES
from server.http.head import Headers, Lines, RequestHead, read_head
from server.http.watch import Client
from server.ledger.row import BEGINNING_BYTES
from server.record import Record, decision_lines
from server.routing.decide import decide
from server.routing.knobs import DEBUG_HEADER
from server.state import Admission, State, current
from server.upstream.keep_alive import ExchangeError
from server.upstream.relay import Answer, Rest
from server.upstream.retry import Dispatch, dispatch
from server.upstream.sse import EventRelay, error_event

logger = logging.getLogger(__name__)

LAST_WORDS_S = 5
Parse = Callable[[bytes, RequestHead], ChatRequest]


class Chat:
    """One such route as an ASGI application.

    Args:
        parse: reads and checks a body.
    """

    def __init__(self, parse: Parse = parse_chat) -> None:
        self.parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = current(scope)
        head = read_head(scope["headers"])
        exchange = Exchange(state, head, send, scope["state"]["connection"])
        try:
            account = exchange.record.account = state.account(head)
            if account is not None:
                account.count_request()
            with state.admit() as watch:
                exchange.request = self.parse(await read_body(head, receive, state, watch.body), head)
                exchange.record.read()
                watch.client(exchange.connection)
                await exchange.serve(watch)
        except GatewayError as error:
            await exchange.fail(error)
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await exchange.fail(GatewayError(INTERNAL_ERROR))


class Exchange:
    """One request from its body to its last byte."""

    def __init__(self, state: State, head: RequestHead, send: Send, connection: Client) -> None:
        self.state = state
        self.request_id = head.request_id
        self.send = send
        self.connection = connection
        self.record = Record(state, head.request_id)
        self.request: ChatRequest
        """Once it is read."""
        self.started = False
        self.whole = False
        self.debug = head.knobs.get(DEBUG_HEADER) == "1"

    async def serve(self, watch: Admission) -> None:
        account = self.record.account
        if account is not None:
            account.count_tokens(self.request, self.state.pool)
        sent = Dispatch(self.state, self.request, await decide(self.state, self.request), account)
        self.record.decided(sent)
        try:
            answer = await dispatch(sent, self.request_id, watch)
            self.record.beginning = answer.body[:BEGINNING_BYTES]
            self._remember(sent, answer)
            if answer.rest is None:
                await self._relay_whole(answer)
            else:
                drop_usage = self.request.hides_usage
                if self.request.size > SMALL_BYTES and not self.state.keeps_prompts:
                    # Nothing is sent again: thousands of streams must not each hold megabytes.
                    sent.request = self.request = self.request.without_body()
                    watch.body.release()
                await self._relay_stream(sent, answer, answer.rest, drop_usage)
        finally:
            sent.release()

    def _remember(self, sent: Dispatch, answer: Answer) -> None:
        """The conversation is where the answer comes from, from its first byte on."""
        state, conversation = self.state, sent.decision.conversation
        if state.sessions is None or conversation is None or not conversation.may_go_on or answer.status != 200:
            return
        replica = None if sent.replica is None else sent.replica.name
        session = state.sessions.remember(conversation, sent.decision, state.pool.names, replica)
        if state.session_ledger is not None:
            state.session_ledger.write(conversation, session)

    async def _relay_whole(self, answer: Answer) -> None:
        self.started = self.whole = True
        self.record.used(answer.usage)
        await send_whole(self.send, answer.status, self._passed(answer), answer.body, self._lines())
        self.record.finish(answer.status)

    async def _relay_stream(self, sent: Dispatch, answer: Answer, rest: Rest, drop_usage: bool) -> None:
        events = EventRelay(drop_usage)
        # Sound has no events to look for, nor has what is compressed although nobody asked.
        feed = events.feed if answer.head.has_events else bytes
        self.started, self.whole = True, not answer.head.has_events
        self.record.first_byte()
        headers, lines = self._passed(answer), self._lines()
        connection, data = rest.connection, answer.body
        try:
            await self.send(
                {"type": "http.response.start", "status": answer.status, "headers": headers, "lines": lines}
            )
            while data:
                passed = feed(data)
                if connection.ended:
                    break
                if passed:
                    await self.send({"type": "http.response.body", "body": passed, "more_body": True})
                    passed = b""
                data = await connection.some(rest.until())
        except ExchangeError as error:
            sent.failed(after_all=True)
            raise UpstreamError(rest.failed(error)) from error
        finally:
            rest.close()
            self.record.used(events.usage)
        await self.send({"type": "http.response.body", "body": passed + events.flush()})
        self.record.finish(answer.status)

    async def fail(self, error: GatewayError) -> None:
        """Tell the client: an error answer, or the last event of a stream that has begun."""
        self.record.finish(error.status, error.path)
        if self.whole:
            return  # half an answer is sent: nothing can be added to it, the server closes the connection
        # A client that no longer reads is not waited for.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                if self.started:
                    self.connection.close_soon()
                    await self.send({"type": "http.response.body", "body": error_event(error.body())})
                else:
                    await send_error(self.send, error, self._lines())

    def _passed(self, answer: Answer) -> Headers:
        """The upstream's headers that the client gets."""
        passed, account = answer.head.passed, self.record.account
        if account is not None and account.meter is not None:  # the upstream's limits are not the client's
            passed = [line for line in passed if line[0][:12] != b"x-ratelimit-"]
        return passed

    def _lines(self) -> Lines:
        """Our own headers."""
        record = self.record
        lines = decision_lines(self.state, self.request_id, record.routing_s, record.sent, self.debug)
        return lines if record.account is None else lines + record.account.lines()
