"""What people say of answers: written beside its decision, and read back for the gauges of calibration."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sqlalchemy import Connection, Integer, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.ledger import rollups
from server.ledger.insert import own_id, sent_id
from server.ledger.outcome import MAX_SOURCES, Outcome, Recorded
from server.ledger.rollups import Key, Sums, outcome_keys
from server.ledger.row import BoolArray, FloatArray
from server.ledger.tables import decisions, outcomes, pools

PREFIX_ENDS = "-_"
"""vLLM's response ids are the request id behind `chatcmpl-` or the like; such ones are not stored."""
MAX_EQUAL = 100
"""Answers with one id, of other keys', among which a key's own is looked for."""
READ = ("request_id", "at", "pool", "arm", "policy", "path", "propensity", "success", "key", "code")


def record(connection: Connection, posted: Sequence[Outcome], now: float) -> list[Recorded | None]:
    """Write outcomes; None stands for those whose id no decision has.

    The same again changes nothing; another value of the same source replaces the one before, in the sums too. Of an
    answer of which `MAX_SOURCES` have spoken no other source is heard.
    """
    found = _find(connection, posted)
    sources = _sources(connection, {decision.request_id for decision in found.values()})
    results: list[Recorded | None] = [None] * len(posted)
    sums: dict[Key, Sums] = {}
    # In one order, so that two writers never wait for each other.
    for i in sorted(found, key=lambda i: (found[i].request_id, posted[i].source)):
        decision = found[i]
        success = float(np.frombuffer(decision.success, "<f4")[decision.arm])
        probability = None if np.isnan(success) else success
        heard = sources[decision.request_id]
        full = posted[i].source not in heard and len(heard) >= MAX_SOURCES
        changed = None
        if decision.code == 200 and not full:
            changed = _write(connection, posted[i], decision, probability, now)
            heard.add(posted[i].source)
        if changed is not None:
            for key in outcome_keys(decision.at, decision.pool, decision.arm, decision.policy, decision.path):
                sums.setdefault(key, Sums()).add(changed)
        arm = decision.arms[decision.arm]
        results[i] = Recorded(sent_id(decision.request_id), arm, decision.code, probability, changed is not None, full)
    rollups.add(connection, sums)
    return results


def _find(connection: Connection, posted: Sequence[Outcome]) -> dict[int, Any]:
    """The decision of each outcome that has one: by request id, else by response id, of equal ones the latest. Another
    key's is none."""
    chosen = select(*(decisions.c[name] for name in READ), pools.c.arms).join(pools)
    wanted = {
        id_
        for outcome in posted
        for sent in (outcome.id, *_behind_prefix(outcome.id))
        for id_ in (sent, own_id(sent, outcome.key))
    }
    by_request = {
        row.request_id: row
        for row in connection.execute(chosen.where(decisions.c.request_id.in_(sorted(wanted))))
    }  # fmt: skip
    newest_first = chosen.order_by(decisions.c.id.desc()).limit(MAX_EQUAL)

    def sent_as(id_: str, key: str | None) -> Any:
        both = [by_request.get(one) for one in (id_, own_id(id_, key))]
        own = [row for row in both if row is not None and key in (None, row.key)]
        return max(own, key=lambda row: (row.key == key, row.at), default=None)

    found = {}
    for i, outcome in enumerate(posted):
        row = sent_as(outcome.id, outcome.key)
        if row is None:
            equal = connection.execute(newest_first.where(decisions.c.response_id == outcome.id))
            row = next((one for one in equal.all() if outcome.key in (None, one.key)), None)
        for id_ in _behind_prefix(outcome.id):
            row = row or sent_as(id_, outcome.key)
        if row is not None:
            found[i] = row
    return found


def _sources(connection: Connection, request_ids: Collection[str]) -> dict[str, set[str]]:
    """Who has spoken of each."""
    found = defaultdict(set)
    query = select(outcomes.c.request_id, outcomes.c.source).where(outcomes.c.request_id.in_(request_ids))
    for request_id, source in connection.execute(query):
        found[request_id].add(source)
    return found


def _behind_prefix(id_: str) -> Iterable[str]:
    return [behind for mark in PREFIX_ENDS if (behind := id_.partition(mark)[2])]


def _write(
    connection: Connection, outcome: Outcome, decision: Any, probability: float | None, now: float
) -> Sums | None:
    """What it adds to the sums; None where it is known already."""
    values = {
        "request_id": decision.request_id,
        "source": outcome.source,
        "correct": outcome.correct,
        "at": now,
        "pool": decision.pool,
        "arm": decision.arms[decision.arm],
        "success_probability": probability,
        "path": decision.path,
        # What is on record is that of the arm which failed; this one came by no draw.
        "propensity": 1.0 if decision.path == "fallback" else decision.propensity,
    }
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(outcomes)
    new = insert.values(**values).on_conflict_do_nothing().returning(outcomes.c.source)
    if connection.execute(new).first() is not None:
        return Sums(outcomes=1, correct=outcome.correct)
    same = (outcomes.c.request_id == decision.request_id) & (outcomes.c.source == outcome.source)
    before: float = connection.execute(select(outcomes.c.correct).where(same).with_for_update()).scalar_one()
    if before == outcome.correct:
        return None
    connection.execute(update(outcomes).where(same).values(correct=outcome.correct, at=now))
    return Sums(correct=outcome.correct - before)


@dataclass(frozen=True)
class Judged:
    """Outcomes of an arm where its probability was known, oldest first, each field (n,)."""

    at: FloatArray
    """Unix seconds."""
    p: FloatArray
    correct: FloatArray
    propensity: FloatArray
    audited: BoolArray
    """Whether an audit drew the arm."""

    def where(self, rows: BoolArray) -> "Judged":
        return Judged(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def while_audited(self) -> "Judged":
        """Those of the time in which the arm could be drawn for every prompt.

        Outside of it chance may have taken part too, but a trial draws between two policies' arms alone.
        """
        times = self.at[self.audited]
        if not len(times):
            return self.where(self.audited)
        return self.where((self.propensity < 1) & (self.at >= times.min()) & (self.at <= times.max()))


def scored_arms(connection: Connection) -> list[tuple[str, str | None]]:
    """Every arm that decisions were made among, with its probe as name@revision."""
    rows = connection.execute(select(pools.c.arms, pools.c.probes).order_by(pools.c.id))
    return [pair for row in rows for pair in zip(row.arms, row.probes, strict=True)]


def latest(
    connection: Connection, arm: str, probe: str | None, limit: int, since: float = 0, paths: Sequence[str] = ()
) -> Judged:
    """The latest outcomes of an arm under this probe; what another revision of it said is no longer said.

    Args:
        probe: name@revision; None for an arm without one.
        since: Unix seconds.
        paths: how the arm came to be chosen; empty: in whichever way.
    """
    chosen = (
        select(
            outcomes.c.at,
            outcomes.c.success_probability,
            outcomes.c.correct,
            outcomes.c.propensity,
            (outcomes.c.path == "audit").cast(Integer),
        )
        .where(outcomes.c.arm == arm, outcomes.c.at >= since, outcomes.c.success_probability.is_not(None))
        .where(outcomes.c.pool.in_(_pools(connection, arm, probe)))
        .order_by(outcomes.c.at.desc())
        .limit(limit)
    )
    if paths:
        chosen = chosen.where(outcomes.c.path.in_(paths))
    rows = [tuple(row) for row in reversed(connection.execute(chosen).all())]
    at, p, correct, propensity, audited = np.array(rows, dtype=np.float64).reshape(-1, len(fields(Judged))).T
    return Judged(at, p, correct, propensity, audited > 0)


def _pools(connection: Connection, arm: str, probe: str | None) -> list[int]:
    """Ids of the pools in which the arm had this probe."""
    rows = connection.execute(select(pools.c.id, pools.c.arms, pools.c.probes))
    return [row.id for row in rows if (arm, probe) in zip(row.arms, row.probes, strict=True)]
