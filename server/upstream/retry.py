"""From a decision to an answer: the arm's replicas, then the policy's next choice; never after the first byte."""

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from probes.prompt import text_of
from server.chat_request import ChatRequest, write_json
from server.errors import (
    TotalTimeError,
    UpstreamDownError,
    UpstreamError,
    UpstreamTimeoutError,
)
from server.http.head import Headers
from server.http.watch import Watch
from server.keys.account import Account
from server.pool import Arm
from server.routing.decision import Decision
from server.state import State
from server.upstream.relay import Answer, AttemptError, post
from server.upstream.replica import SET_ASIDE, UNHEALTHY, WELL, Replica, Wellness, choose
from server.upstream.sse import ask_for_usage

logger = logging.getLogger(__name__)

MAX_REPLICAS_PER_ARM = 3
"""So many may fail a request; those that could not be reached, and cost it no more than `connect_s`, do not count."""
PREFIX_CHARACTERS = 4096


@dataclass(slots=True)
class Dispatch:
    """Where a request went in the end; the replica counts as loaded until `release`."""

    state: State
    request: ChatRequest
    decision: Decision
    account: Account | None = None
    """Of the client's key."""
    attempts: int = 0
    replica: Replica | None = None
    era: int = 0
    """The replica's breaker's."""
    first: Decision = field(init=False)
    """What was decided before anything failed."""
    arm: Arm = field(init=False)
    """The decision's."""

    def __post_init__(self) -> None:
        self.first = self.decision
        self.go_by(self.decision)

    def go_by(self, decision: Decision) -> None:
        """From now on."""
        self.decision = decision
        self.arm = self.state.pool.arms[decision.arm]

    def hold(self, replica: Replica) -> None:
        """An attempt begins."""
        self.attempts += 1
        self.replica = replica
        self.era = replica.breaker.enter(time.monotonic())
        replica.in_flight += 1
        self.state.tallies[self.decision.arm].in_flight += 1

    def release(self) -> None:
        """The exchange is over: the replica has room again."""
        if self.replica is not None:
            self.replica.in_flight -= 1
            self.replica = None
            self.state.tallies[self.decision.arm].in_flight -= 1

    def succeeded(self) -> None:
        """The whole answer is here, or a stream's first byte."""
        replica, now = self.replica, time.monotonic()
        if replica is None:
            return
        era = replica.breaker.succeeded(self.era, now)
        if era != self.era:
            self.era = era
            replica.recovered(now)
            logger.info("replica %s takes requests again", replica.name)

    def failed(self, *, after_all: bool = False) -> None:
        """The replica does not do what it should.

        Args:
            after_all: it has `succeeded` before: a stream breaks off.
        """
        replica, now = self.replica, time.monotonic()
        if replica is not None and replica.breaker.failed(self.era, now, after_all=after_all):
            wait_s = replica.breaker.wait_s(now)
            logger.warning("replica %s fails: nothing is sent to it for %.0f s", replica.name, wait_s)


async def dispatch(sent: Dispatch, request_id: str, watch: Watch) -> Answer:
    """Try until one replica answers. `sent` tells the caller what was tried, also where this is cancelled.

    Raises:
        GatewayError: every arm that may take the request failed without an answer of its own.
    """
    state, request = sent.state, sent.request
    now = began = time.monotonic()
    state.retries.request(began)
    tried: list[Replica] = []  # of all arms: several may be served by one model
    considered: list[Replica] = []
    failure: AttemptError | None = None
    first = last = sent.decision
    here = 0  # attempts for this arm that reached a replica
    worst = WELL
    _limit(sent, watch, 0.0)
    while True:
        while (replica := _choose(sent, tried, here, now, worst)) is None:
            considered += sent.arm.model.replicas
            following = sent.decision.fallback(state, request)
            if following is None and worst < (UNHEALTHY if failure is None else SET_ASIDE):
                # Nobody is left who is well. What is unhealthy may keep one waiting, which is worse than an error.
                following, worst = first, Wellness(worst + 1)
            if following is None:
                break
            sent.go_by(following)
            here = 0
            _limit(sent, watch, now - began)
        if replica is None:
            break
        # What was refused a connection did no work, so that trying elsewhere adds no load; anything else does.
        if failure is not None and failure.outcome != "connect_error" and not state.retries.take(now):
            logger.warning("request %s: not tried again, the retry budget is spent", request_id)
            break
        tried.append(replica)
        last = sent.decision
        account = sent.account
        if account is not None:
            await account.cover(sent.arm, request)
        sent.hold(replica)
        try:
            answer = await _attempt(sent, replica, request_id, watch)
            if account is not None:
                account.answered(answer.status)
            return answer
        except AttemptError as error:
            sent.release()
            if account is not None:
                account.failed(error.outcome)
            logger.warning("request %s: %s", request_id, error)
            # Its traceback refers to this very frame, and a failed request would stay until garbage is looked for.
            failure, now = error.with_traceback(None), time.monotonic()
            here += error.outcome != "connect_error"
            if now - began >= sent.arm.timeouts.total_s:  # the watch says so too, but looks only now and then
                break
    if failure is None:
        down = UpstreamDownError("every server of the arm fails; it is tried again shortly")
        down.retry_after_s = max(1, math.ceil(min(replica.breaker.wait_s(now) for replica in considered)))
        raise down
    sent.go_by(last)
    if failure.answer is not None:
        return failure.answer
    if failure.outcome == "timeout":
        raise UpstreamTimeoutError(f"no upstream answered in time: {failure}")
    raise UpstreamError(f"no upstream could answer: {failure}")


def _limit(sent: Dispatch, watch: Watch, passed_s: float) -> None:
    total_s = sent.arm.timeouts.total_s
    watch.limit(max(0.0, total_s - passed_s), lambda: TotalTimeError(total_s))


def _choose(sent: Dispatch, tried: list[Replica], here: int, now: float, worst: Wellness) -> Replica | None:
    if here >= MAX_REPLICAS_PER_ARM:
        return None
    model = sent.arm.model
    prefix = _prefix(sent.request) if model.prefix_affinity else None
    return choose(model.replicas, tried, now, prefix, worst, _kept(sent))


def _kept(sent: Dispatch) -> str | None:
    """The replica that the conversation is on."""
    conversation = sent.decision.conversation
    if sent.state.session is None or conversation is None or conversation.kept is None:
        return None
    return conversation.kept.replica


def _prefix(request: ChatRequest) -> bytes:
    """What makes a conversation this one: all up to the first user message."""
    texts = []
    for message in request.messages:
        texts.append(text_of(message.get("content"))[:PREFIX_CHARACTERS])
        if message.get("role") == "user":
            break
    return "\0".join(texts).encode(errors="replace")


async def _attempt(sent: Dispatch, replica: Replica, request_id: str, watch: Watch) -> Answer:
    arm, request = sent.arm, sent.request
    body = upstream_body(arm, request)
    data = b"".join(
        (
            replica.upstream.head(request.path),
            b"accept-encoding: identity\r\ncontent-type: ",
            b"application/json" if request.form is None else request.form.content_type,
            b"\r\nx-request-id: ",
            request_id.encode(),
            b"\r\n",
            request.head.passed,
            b"content-length: %d\r\n\r\n" % len(body),
            body,
        )
    )
    outcome = "broken"  # unless we learn better
    try:
        answer = await post(replica, data, arm.timeouts, request.stream)
        outcome = "ok" if answer.status < 400 else "client_error"
        sent.succeeded()
        return answer
    except AttemptError as error:
        outcome = error.outcome
        _judge(sent, replica, error, request.stream)
        raise
    except asyncio.CancelledError:
        outcome = "timeout" if isinstance(watch.reason, TotalTimeError) else "cancelled"
        raise
    finally:
        sent.state.tallies[sent.decision.arm].attempts[outcome] += 1


def _judge(sent: Dispatch, replica: Replica, error: AttemptError, stream: bool) -> None:
    """What a failed attempt says of the replica."""
    if error.outcome == "timeout" and not stream:
        return  # a long generation is no failure of the server's
    if error.answer is not None and error.answer.status in (429, 503):
        wait_s = retry_after_s(error.answer.head.passed)
        if wait_s is not None:
            replica.set_aside(wait_s, time.monotonic())
        if wait_s is not None or error.answer.status == 429:
            return  # it is busy, and says so
    sent.failed()


def retry_after_s(headers: Headers) -> float | None:
    """Seconds that an answer's Retry-After asks for, in either of its forms; None without one that can be read."""
    for name, value in headers:
        if name == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isascii() and text.isdigit():
                return float(text[:9])
            with suppress(ValueError):
                when = parsedate_to_datetime(text)
                return max(0.0, when.timestamp() - time.time())
    return None


def upstream_body(arm: Arm, request: ChatRequest) -> bytes:
    """The client's body as the arm gets it; all fields but the arm's own stay as they were sent.

    Raises:
        BadRequestError: it cannot be written as JSON.
    """
    if request.form is not None:
        return request.form.with_model(arm.model.name)
    # What an arm's fields are called on other endpoints nobody knows.
    body = arm.fields(request.body) if request.routed else dict(request.body)
    body["model"] = arm.model.name
    body.pop("routing", None)
    if request.stream and request.routed:
        ask_for_usage(body)
    return write_json(body)
