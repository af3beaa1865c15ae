"""From a decision to an answer: the arm's replicas, then the policy's next choice; never after the first byte."""

import logging
from dataclasses import dataclass

import orjson

from server.chat_request import ChatRequest
from server.decision import Decision
from server.errors import BadRequestError, GatewayError, UpstreamError, UpstreamTimeoutError
from server.pool import Arm, Replica
from server.relay import Answer, AttemptError, forwarded_headers, post
from server.sse import with_usage
from server.state import State

logger = logging.getLogger(__name__)

MAX_REPLICAS_PER_ARM = 3


@dataclass
class Dispatch:
    """Where a request went in the end; the replica counts as loaded until `release`."""

    decision: Decision
    attempts: int = 0
    holds: Replica | None = None

    def release(self, state: State) -> None:
        """The exchange is over: the replica has room again."""
        if self.holds is not None:
            self.holds.in_flight -= 1
            state.metrics.in_flight.labels(state.pool.arms[self.decision.arm].name).dec()
            self.holds = None


async def dispatch(state: State, request: ChatRequest, request_id: str, path: str, sent: Dispatch) -> Answer:
    """Try until one replica answers. `sent` tells the caller what was tried, also where this is cancelled.

    Raises:
        GatewayError: every arm that may take the request failed without an answer of its own.
    """
    while True:
        arm = state.pool.arms[sent.decision.arm]
        tried: list[Replica] = []
        while len(tried) < MAX_REPLICAS_PER_ARM and (replica := arm.model.replica(tried)) is not None:
            tried.append(replica)
            sent.attempts += 1
            sent.holds = replica
            replica.in_flight += 1
            state.metrics.in_flight.labels(arm.name).inc()
            try:
                return await _attempt(state, arm, replica, request, request_id, path)
            except AttemptError as error:
                sent.release(state)
                failure = error
                logger.warning("request %s: %s", request_id, error)
        following = sent.decision.fallback(state, request)
        if following is None:
            if failure.answer is not None:
                return failure.answer
            raise _gateway_error(failure)
        sent.decision = following


async def _attempt(
    state: State, arm: Arm, replica: Replica, request: ChatRequest, request_id: str, path: str
) -> Answer:
    headers = forwarded_headers(request.headers, replica, request_id)
    content = upstream_body(arm, request)
    limits = state.settings.limits
    # A non-streamed answer's first byte comes when all of it is generated.
    first_byte_s = limits.first_byte_s if request.stream else limits.total_s
    outcome = "cancelled"
    try:
        answer = await post(state.client, replica, path, content, headers, limits, first_byte_s)
        outcome = "ok" if answer.status < 400 else "client_error"
        return answer
    except AttemptError as error:
        outcome = error.outcome
        if outcome == "connect_error":
            replica.healthy = False
        raise
    finally:
        state.metrics.attempts.labels(arm.name, outcome).inc()


def upstream_body(arm: Arm, request: ChatRequest) -> bytes:
    """The client's body as the arm gets it; all fields but the arm's own stay as they were sent.

    Raises:
        BadRequestError: it is nested deeper than it can be written.
    """
    body = {**arm.fields(request.body), "model": arm.model.name}
    body.pop("routing", None)
    try:
        return orjson.dumps(with_usage(body) if request.stream else body)
    except TypeError as error:
        raise BadRequestError("the body is nested too deeply") from error


def _gateway_error(failure: AttemptError) -> GatewayError:
    if failure.outcome == "timeout":
        return UpstreamTimeoutError(f"no upstream answered in time: {failure}")
    return UpstreamError(f"no upstream could answer: {failure}")
