"""The replicas of one model behind OpenAI's chat API, as one client: whom to ask, and when to ask again.

On aiohttp, since a small model answers sooner than other clients get their request out: `pika bench rollouts`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

logger = logging.getLogger(__name__)

CONNECT_S, CHECK_S = 10.0, 10.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
MAX_RETRY_AFTER_S = 3600.0
ATTEMPTS = 5
"""Of one request that breaks off, is answered with a server's error, or is not answered in time."""
MAX_ANSWER_BYTES = 2**28
"""Of k answers with their token ids, whatever the model: what sends more sends no answer."""
RETRIED = (408, 409, 429)
"""Beside server errors."""
BUSY = (429, 503)
"""They say nothing about the request."""


class RefusedError(Exception):
    """An endpoint does not take the request, whoever asks how often."""

    def __init__(self, status: int, url: str, message: str) -> None:
        super().__init__(f"{url} answers {status}: {message}")
        self.status = status


class UnavailableError(Exception):
    """No replica answers, or none could answer this request."""


class _FailedError(Exception):
    """An attempt was in vain; another may not be."""

    def __init__(self, reason: str, blames_request: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.blames_request = blames_request
        self.retry_after_s = retry_after_s


@dataclass
class Replica:
    url: str
    """Base URL, ending in /v1."""
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None
    in_flight: int = 0
    failed_rounds: int = 0
    """Since its last answer; what fails together is one round."""
    resume_at: float = 0.0
    """Until then it is left alone."""
    warned: bool = False


class ChatClient:
    """Sends each request to the replica with the fewest in flight, of those that answer. An async context manager."""

    def __init__(self, urls: Sequence[str], api_keys: Sequence[str], timeout_s: float, patience_s: float) -> None:
        """
        Args:
            urls: base URLs of the replicas, ending in /v1.
            api_keys: one per URL.
            timeout_s: for one whole answer.
            patience_s: how long all replicas may fail, after which `complete` gives up; what Retry-After asks for is
                waited in addition.
        """
        self._replicas = [
            Replica(
                url.rstrip("/"), {"authorization": f"Bearer {key}", "content-type": "application/json"}, _proxy(url)
            )
            for url, key in zip(urls, api_keys, strict=True)
        ]
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._patience_s = patience_s
        self._failing_since: float | None = None
        self._asked_to_wait_s = 0.0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "ChatClient":
        # Whoever calls bounds the requests, so the pool of connections need not.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def check(self) -> None:
        """Fail at once, not after all patience, where nobody answers.

        Raises:
            UnavailableError: no replica can be connected to.
        """
        failures = await asyncio.gather(*(self._check(replica) for replica in self._replicas))
        if all(failures):
            raise UnavailableError("; ".join(map(str, failures)))
        for replica, failure in zip(self._replicas, failures, strict=True):
            if failure is not None:
                self._leave_out(replica, failure)

    async def _check(self, replica: Replica) -> _FailedError | None:
        timeout = aiohttp.ClientTimeout(total=CHECK_S)
        try:
            async with self._session.get(
                f"{replica.url}/models", headers=replica.headers, proxy=replica.proxy, timeout=timeout
            ):
                return None  # some list no models; their answers will tell
        except (aiohttp.ClientError, TimeoutError) as error:
            return _FailedError(f"{replica.url} does not answer ({_reason(error)})", blames_request=False)

    async def complete(self, body: Mapping[str, Any]) -> Any:
        """The decoded answer to a chat completion request.

        Raises:
            RefusedError: a 4xx that no retry mends.
            UnavailableError: all replicas have failed for longer than the patience, or this request failed too often.
        """
        content = orjson.dumps(body)
        attempts = count(1)
        while True:
            replica = await self._free()
            replica.in_flight += 1
            try:
                answer = await self._post(replica, content)
            except _FailedError as failure:
                self._leave_out(replica, failure)
                if failure.blames_request and next(attempts) == ATTEMPTS:
                    raise UnavailableError(f"{failure}, and {ATTEMPTS} attempts were in vain") from failure
                self._give_up_after_all(failure)
            else:
                replica.failed_rounds = 0
                self._failing_since, self._asked_to_wait_s = None, 0.0
                return answer
            finally:
                replica.in_flight -= 1
                self._changed.set()

    async def _free(self) -> Replica:
        """The replica to ask, as soon as there is one. One that failed is asked by a single request first."""
        while True:
            now = time.monotonic()
            free = [r for r in self._replicas if r.resume_at <= now and not (r.failed_rounds and r.in_flight)]
            if free:
                return min(free, key=lambda replica: replica.in_flight)
            self._changed.clear()
            pauses = [replica.resume_at - now for replica in self._replicas if replica.resume_at > now]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pauses, default=None)):
                    await self._changed.wait()

    async def _post(self, replica: Replica, content: bytes) -> Any:
        url = replica.url
        try:
            async with self._session.post(
                f"{url}/chat/completions", data=content, headers=replica.headers, proxy=replica.proxy
            ) as response:
                data, status = await _body(response), response.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _FailedError(f"{url} does not answer ({_reason(error)})", blames_request=False) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _FailedError(f"{url} breaks off ({_reason(error)})", blames_request=True) from error
        if status >= 500 or status in RETRIED:
            raise _FailedError(
                f"{url} answers {status}: {_message(data)}", status not in BUSY, _retry_after_s(response.headers)
            )
        if status != 200:
            raise RefusedError(status, url, _message(data))
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise _FailedError(f"{url} answers with no JSON", blames_request=True) from error

    def _leave_out(self, replica: Replica, failure: _FailedError) -> None:
        now = time.monotonic()
        if now >= replica.resume_at:
            replica.failed_rounds += 1
        backoff_s = min(FIRST_BACKOFF_S * 2 ** (replica.failed_rounds - 1), MAX_BACKOFF_S)
        pause_s = failure.retry_after_s or backoff_s * random.uniform(0.75, 1.25)  # noqa: S311  # no secret
        replica.resume_at = max(replica.resume_at, now + pause_s)
        if not replica.warned:
            replica.warned = True
            others = ", while others answer" if len(self._replicas) > 1 else ""
            logger.warning("%s; asked again later%s", failure, others)

    def _give_up_after_all(self, failure: _FailedError) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._asked_to_wait_s = max(self._asked_to_wait_s, failure.retry_after_s)
        failing_s = now - self._failing_since
        if failing_s > self._patience_s + self._asked_to_wait_s:
            raise UnavailableError(f"{failure}, for {failing_s:.0f} s now") from failure


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """
    Raises:
        RefusedError: it is longer than any answer; the rest is not read.
    """
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise RefusedError(response.status, str(response.url), f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def _proxy(url: str) -> str | None:
    """The environment's; looked up once, while aiohttp itself would for every request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """What the Retry-After header asks for, in seconds or as a date (RFC 9110, 10.2.3); 0 where it is absent."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _message(data: bytes) -> str:
    """What an error's body says, in OpenAI's form or another; a line."""
    try:
        decoded = orjson.loads(data)
        text = str(decoded["error"]["message"])
    except (orjson.JSONDecodeError, TypeError, KeyError):
        text = data[:300].decode(errors="replace")
    return " ".join(text.split())[:300]


def _reason(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
