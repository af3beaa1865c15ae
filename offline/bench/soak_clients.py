"""The clients of `pika bench soak`, in a process of their own: they ask without pause and look at every answer."""

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import uvloop

from offline.bench.gateway_client import Connections, Reply, chat
from offline.bench.servers import more_files
from offline.bench.soak_upstream import ANSWER_S, CHUNKS, MARK

Verdict = Literal["answered", "refused", "lost", "wrong", "hung", "left"]
TIMEOUT_S = 60.0
"""A request that takes longer hangs: the gateway's own limits are shorter."""
PAUSE_S = 0.5
"""After a clean error, as OpenAI's client waits."""
EXAMPLES = 5
MESSAGE = re.compile(rb'"message": ?"([^"]*)"')
LEAVE_SHARE = 0.02
"""Of requests whose client goes before the answer is there."""


@dataclass
class Found:
    """What became of the requests."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    """`refused` with a clean error; `left`: the client went."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    """Of whole answers; the upstream takes 2,000 of it."""
    errors: Counter[str] = field(default_factory=Counter)
    """What clean errors said, numbers left out."""
    examples: list[str] = field(default_factory=list)
    """Of what was lost or wrong, a few."""


def ask(port: int, clients: int, seconds: float, seed: int) -> Found:
    """`clients` at once for so long; returns when the last has its answer."""
    more_files()
    return uvloop.run(_ask(port, clients, seconds, seed))


async def _ask(port: int, clients: int, seconds: float, seed: int) -> Found:
    found = Found()
    latencies: list[float] = []
    connections = Connections(port)
    rng = random.Random(seed)  # noqa: S311 - who leaves when, not secrets
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    marks = iter(range(10**9))

    async def client(number: int) -> None:
        streamed = number % 2 == 1
        await asyncio.sleep(rng.random() * min(ANSWER_S, seconds / 2))  # not all at the same moment
        while (began := clock()) < until:
            mark = f"mark-{next(marks):09d}"
            leaves = rng.random() < LEAVE_SHARE
            try:
                async with asyncio.timeout(rng.random() * ANSWER_S if leaves else TIMEOUT_S):
                    reply = await _one(connections, mark, streamed)
            except TimeoutError:
                found.verdicts["left" if leaves else "hung"] += 1
                continue
            except OSError as error:
                reply = Reply(0, repr(error).encode(), False)
            verdict = judge(reply, mark, streamed)
            found.verdicts[verdict] += 1
            if verdict == "answered":
                latencies.append(clock() - began)
            elif verdict == "refused":
                found.errors[_message(reply)] += 1
                await asyncio.sleep(PAUSE_S)
            elif len(found.examples) < EXAMPLES:
                found.examples.append(f"{verdict}: {mark} {'stream' if streamed else 'whole'} {reply!r}")

    await asyncio.gather(*(client(number) for number in range(clients)))
    connections.close()
    found.p50_ms, found.p99_ms = (1000 * np.percentile(latencies or [np.nan], (50, 99))).tolist()
    return found


async def _one(connections: Connections, mark: str, streamed: bool) -> Reply:
    async with connections.one() as connection:
        return await connection.ask(chat(f"Repeat after me: {mark}", stream=streamed))


def judge(reply: Reply, mark: str, streamed: bool) -> Verdict:
    """What a client got. Lost is neither a whole answer nor a clean error; wrong has another question's mark."""
    if set(MARK.findall(reply.body)) - {mark.encode()}:
        return "wrong"
    if streamed and reply.status == 200:
        return _judge_stream(reply, mark)
    try:
        content = json.loads(reply.body)
        if not reply.whole:
            return "lost"
        if reply.status == 200:
            return "answered" if content["choices"][0]["message"]["content"] == mark else "lost"
        return "refused" if content["error"]["message"] else "lost"
    except (ValueError, KeyError, TypeError, IndexError):
        return "lost"


def _message(reply: Reply) -> str:
    """What an error says, alike for all requests and replicas; a stream's comes last."""
    said = MESSAGE.findall(reply.body)
    return f"{reply.status} " + re.sub(r"[0-9a-f:.]*[0-9][0-9a-f:.]*", "N", said[-1].decode() if said else "")


def _judge_stream(reply: Reply, mark: str) -> Verdict:
    """Every chunk in order and the end; or an error as the last event, and before it only how the answer begins."""
    *events, rest = reply.body.split(b"\n\n")
    try:
        said = [json.loads(event.removeprefix(b"data: ")) for event in events if event != b"data: [DONE]"]
        failed = bool(said) and "error" in said[-1]
        chunks = said[:-1] if failed else said
        text = "".join(choice["delta"]["content"] for event in chunks for choice in event["choices"])
    except (ValueError, KeyError, TypeError):
        return "lost"
    answer = "".join(f"{mark}/{index} " for index in range(CHUNKS))
    if failed:
        return "refused" if answer.startswith(text) and not rest else "lost"
    return "answered" if text == answer and reply.whole and events[-1] == b"data: [DONE]" and not rest else "lost"
