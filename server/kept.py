"""The ledger that a configuration names, and what of a request goes into it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from probes.prompt import conversation_text
from server.config import ConfigError, Settings
from server.ledger.jumps import Jumps
from server.ledger.row import DecisionRow, PoolRow
from server.metrics import Metrics
from server.pool import Pool
from server.routing.policies import Policies
from server.sections.routing import Session
from server.upstream.retry import Dispatch

if TYPE_CHECKING:  # SQLAlchemy is loaded where there is a ledger
    from server.keys.budget import Budgets
    from server.ledger.writer import Writer

OPEN_S = 10.0
"""So long a start waits for the database; requests are answered without it."""


def check_ledger(settings: Settings) -> None:
    """
    Raises:
        ConfigError: the ledger's URL is none that can be used, whether or not its database is there.
    """
    url = settings.ledger_url
    if url is None:
        return
    from server.ledger.database import LedgerError, parse_url

    try:
        parse_url(url)
    except LedgerError as error:
        raise ConfigError(f"ledger: {error}") from error


@asynccontextmanager
async def opened_ledger(
    settings: Settings, pool: Pool, policies: Policies, metrics: Metrics, jumps: Jumps
) -> "AsyncIterator[Writer]":
    """The ledger's writer, which writes what waits on the way out."""
    from server.ledger.database import Database, parse_url
    from server.ledger.retention import Keep
    from server.ledger.writer import Writer

    assert settings.ledger is not None
    assert settings.ledger_url is not None
    minutes = (settings.session or Session()).minutes
    keep = Keep(settings.ledger.keep_days, settings.ledger.max_decisions, minutes)
    database = Database(parse_url(settings.ledger_url))
    writer = Writer(database, pool_row(pool, policies), keep, metrics.ledger_dropped.inc, jumps=jumps)
    try:
        await asyncio.to_thread(writer.opened.wait, OPEN_S)
        yield writer
    finally:
        await asyncio.to_thread(writer.close)


@asynccontextmanager
async def opened_budgets(settings: Settings, jumps: Jumps) -> "AsyncIterator[Budgets]":
    """Keys' budgets, in the ledger's database; what has ended is settled on the way out."""
    from server.keys.budget import Budgets
    from server.ledger.database import Database, parse_url

    assert settings.ledger_url is not None
    budgets = Budgets(Database(parse_url(settings.ledger_url)), jumps=jumps)
    try:
        yield budgets
    finally:
        await asyncio.to_thread(budgets.close)


def shared_by_others(settings: Settings, writer: "Writer") -> bool:
    """Whether other processes of the same service write to the ledger."""
    return settings.server.workers > 1 or writer.database.file is None


def pool_row(pool: Pool, policies: Policies) -> PoolRow:
    """What decisions are made among, as the ledger keeps it."""
    return PoolRow(
        arms=pool.names,
        prices=[(arm.model.prices.input, arm.model.prices.output) for arm in pool.arms],
        mean_tokens=[(arm.mean_input_tokens, arm.mean_output_tokens) for arm in pool.arms],
        probes=[arm.probe_name for arm in pool.arms],
        policy=json.loads(json.dumps({"name": policies.name, **policies.knobs}, default=str)),
    )


def decision_row(
    request_id: str,
    sent: Dispatch,
    code: int,
    tokens: tuple[int, int] | None,
    routing_s: float,
    total_s: float,
    beginning: bytes,
) -> DecisionRow:
    """One request at its end.

    Args:
        tokens: (input, output), as the upstream counted them.
        beginning: the answer's first bytes.
    """
    first, decision, prediction = sent.first, sent.decision, sent.decision.prediction
    key = sent.request.head.key
    return DecisionRow(  # in its order: naming two dozen fields would take three times as long
        request_id,
        time.time() - total_s,
        decision.arm,
        first.policy_arm,
        decision.policy,
        decision.path,
        decision.flags,
        first.propensity,
        first.allowed,
        prediction.success,
        decision.cost,
        prediction.percentile,
        prediction.prefill_usd,
        code,
        sent.attempts,
        None if tokens is None else tokens[0],
        None if tokens is None else tokens[1],
        routing_s,
        total_s,
        sent.request.stream,
        beginning,
        None if key is None else key.name,
        None if first.conversation is None else first.conversation.key.hex(),
        conversation_text(sent.request.messages) if sent.state.keeps_prompts else None,
    )
