"""`pika init`: asks running vLLM servers what they serve, and writes a first configuration."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.commands.first_config import Entry, InitError, Served, config_text, entries
from server.config import Settings
from server.sections.pool import Replica

TIMEOUT_S = 5.0
"""Of each step of a request."""
TOTAL_S = 15.0
"""To ask one server all that is asked."""
MOST_BYTES = 1_000_000
"""Of an answer."""
MOST_SERVERS = 256
NO_CHAT = (404, 405, 501)


class Card(BaseModel):
    """What vLLM's /v1/models says of one model."""

    model_config = ConfigDict(strict=True)

    id: str = Field(min_length=1, max_length=200)
    owned_by: str | None = None
    root: str | None = Field(default=None, max_length=1000)
    parent: str | None = None
    max_model_len: int | None = Field(default=None, gt=0)

    @field_validator("id", "root", "parent")
    @classmethod
    def _one_line(cls, text: str | None) -> str | None:
        if text is not None and not text.isprintable():
            raise ValueError("has characters that no terminal should see")
        return text


class Cards(BaseModel):
    data: list[Card] = Field(min_length=1, max_length=1000)


def main(argv: list[str]) -> int:
    """`pika init`; exit code 0 where the file is written, 1 where a server did not say what is needed, 2 for wrong
    input."""
    args = _parser().parse_args(argv)
    try:
        urls = list(dict.fromkeys(_base_url(text) for text in args.urls))
        if len(urls) > MOST_SERVERS:
            raise InitError(f"{len(urls)} servers are more than a first configuration takes ({MOST_SERVERS})")
        if args.out.is_dir():
            raise InitError(f"{args.out} is a folder: give the file as -o {args.out / 'pool.yaml'}")
        if args.out.exists() and not args.force:
            raise InitError(f"{args.out} exists: give another -o, or --force to replace it")
        key = None if args.api_key_env is None else os.environ.get(args.api_key_env)
        if args.api_key_env is not None and not key:
            raise InitError(f"the environment variable {args.api_key_env} is not set: it shall hold the servers' key")
    except InitError as error:
        print(f"pika init: {error}", file=sys.stderr)
        return 2
    with Console(stderr=True).status(f"Asking {len(urls)} server{'s' * (len(urls) > 1)}"):
        answers = asyncio.run(_ask_all(urls, key))
    problems = [answer for answer in answers if isinstance(answer, InitError)]
    for problem in problems:
        print(f"pika init: {problem}", file=sys.stderr)
    if problems:
        return 1
    try:
        found = entries([one for answer in answers if not isinstance(answer, InitError) for one in answer])
        text = config_text(found, str(args.out), args.api_key_env)
        Settings.model_validate(yaml.safe_load(text))
    except (InitError, ValidationError) as error:
        print(f"pika init: {error}", file=sys.stderr)
        return 1
    try:
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"pika init: cannot write {args.out}: {error.strerror}; choose another -o", file=sys.stderr)
        return 1
    _show(found)
    print(f"wrote {args.out}: set what is marked GUESS there, then\n  pika check {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika init",
        description="Ask running vLLM servers what they serve, and write a first configuration of a pool.",
        epilog="examples:\n"
        "  pika init http://127.0.0.1:8001 http://127.0.0.1:8002\n"
        "  pika init gpu-a:8000 gpu-b:8000 -o pool.yaml --api-key-env VLLM_API_KEY",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("urls", metavar="URL", nargs="+", help="of a server; several of one model become its replicas")
    parser.add_argument("-o", "--out", type=Path, default=Path("pool.yaml"), help="file to write (default: pool.yaml)")
    parser.add_argument("--force", action="store_true", help="replace the file where there is one")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the servers' key")
    return parser


def _base_url(text: str) -> str:
    """
    Raises:
        InitError: it is no URL of a server.
    """
    url = text if "://" in text else f"http://{text}"
    url = url.rstrip("/")
    try:
        return str(Replica(url=url if url.endswith("/v1") else f"{url}/v1").url)
    except ValidationError as error:
        raise InitError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


async def _ask_all(urls: list[str], key: str | None) -> list[list[Served] | InitError]:
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def ask(url: str) -> list[Served] | InitError:
        try:
            async with asyncio.timeout(TOTAL_S):
                return await _ask(client, url)
        except InitError as error:
            return error
        except (httpx.HTTPError, TimeoutError) as error:
            said = str(error) or "it took too long"
            return InitError(f"{url} does not answer ({said}): start the server, or correct the URL")

    each = httpx.Limits(max_connections=None)  # none waits for another
    async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S, limits=each, trust_env=False) as client:
        return list(await asyncio.gather(*map(ask, urls)))


async def _ask(client: httpx.AsyncClient, url: str) -> list[Served]:
    """
    Raises:
        InitError: it is no vLLM server that answers chats, or asks for a key.
        httpx.HTTPError: it does not answer.
    """
    status, body = await _exchange(client, "GET", f"{url}/models")
    if status in (401, 403):
        raise InitError(f"{url} refuses the key, or asks for one ({status}): --api-key-env names its variable")
    try:
        cards = Cards.model_validate_json(body).data if status == 200 else []
    except ValidationError:
        cards = []
    if any(card.owned_by == "pika" for card in cards):
        raise InitError(f"{url} is a gateway of PIKA: give the URLs of the vLLM servers behind it")
    by_id = {card.id: card for card in cards}
    served = []
    roots = set()
    _, said = await _exchange(client, "GET", f"{url.removesuffix('/v1')}/version")
    for card in cards:
        base = by_id.get(card.parent or "", card)  # what an adapter adapts
        length = card.max_model_len or base.max_model_len
        if length is None:
            raise InitError(
                f"{url} does not tell the context length of {card.id!r}, as vLLM does: leave this server out, and "
                "write its entry by hand as the README shows"
            )
        root = card.root or card.id
        if root not in roots:  # else another name of the same model
            roots.add(root)
            served.append(Served(url, card.id, root, base.root or base.id, length, _version(said)))
    if not served:
        raise InitError(f"{url} does not answer GET /models as vLLM does (status {status}): is it a vLLM server?")
    status, _ = await _exchange(client, "POST", f"{url}/chat/completions")
    if status in NO_CHAT:
        raise InitError(f"{url} answers no chats (status {status}): a server with --runner pooling cannot be an arm")
    return served


async def _exchange(client: httpx.AsyncClient, method: str, url: str) -> tuple[int, bytes]:
    """Status and body; of a POST the body is an empty object, which no server takes for a question.

    Raises:
        InitError: the body has no end in sight.
    """
    async with client.stream(method, url, json={} if method == "POST" else None) as answer:
        body = b""
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise InitError(f"{url} answers more than {MOST_BYTES / 1e6:g} MB: is it a vLLM server?")
        return answer.status_code, body


def _version(body: bytes) -> str | None:
    """What /version says, where it is there and a version."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return version if isinstance(version, str) and len(version) < 50 and version.isprintable() else None


def _show(found: list[Entry]) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("arm", "model", "context", "replicas"):
        table.add_column(heading, justify="right" if heading == "context" else "left", overflow="fold")
    for entry in found:
        replicas = " ".join(url.removesuffix("/v1") for url in entry.urls)
        table.add_row(escape(entry.arm), escape(entry.root), f"{entry.max_context_tokens:,}", escape(replicas))
    Console().print(table)
