"""Decisions of a ledger as parquet, some ten thousand at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offline.provenance import METADATA, versions
from offline.whole_file import whole
from server.ledger.database import Database, LedgerError
from server.ledger.reader import StoredPool, chunks, id_range, mean_outcomes, read_pools

TEXT = pa.dictionary(pa.int32(), pa.string())
PLAIN: dict[str, Any] = {
    "id": pa.int64(), "request_id": pa.string(), "response_id": pa.string(), "pool": pa.int64(), "policy": TEXT,
    "path": TEXT, "flags": TEXT, "propensity": pa.float64(), "percentile": pa.float64(), "key": TEXT,
    "session": pa.string(), "code": pa.int16(), "attempts": pa.int16(), "input_tokens": pa.int64(),
    "output_tokens": pa.int64(), "cost_usd": pa.float64(), "probe_usd": pa.float64(), "routing_ms": pa.float64(),
    "total_ms": pa.float64(), "stream": pa.bool_(), "prompt": pa.string(),
}  # fmt: skip
"""Columns that are written as they stand in the ledger."""
BY_ARM = {"success_probability": pa.float32(), "expected_cost_usd": pa.float32(), "allowed": pa.bool_()}
READ = (*PLAIN, "at", "arm", "policy_arm", "allowed", "success", "cost")


def export(
    database: Database,
    file: Path,
    since: float | None,
    until: float | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write all decisions of a time, and return how many they are.

    Args:
        since: Unix seconds.
        on_progress: told of rows written, and about how many there are.

    Raises:
        LedgerError: the ledger cannot be read, or has no decisions of that time.
        OSError: the file cannot be written.
    """
    pools = {pool.id: pool for pool in read_pools(database)}
    arms = list(dict.fromkeys(arm for pool in pools.values() for arm in pool.arms))
    first, last = id_range(database, None, since, until, None)
    if last < first:
        raise LedgerError(f"the ledger {database} has no decisions of that time: give an earlier --since")
    schema = _schema(database, arms, pools)
    written = 0
    with whole(file) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for rows in chunks(database, READ, first, last, None, since, until):
            columns = dict(zip(READ, zip(*rows, strict=True), strict=True))
            outcome = mean_outcomes(database, np.array(columns["id"], dtype=np.int64))
            arrays = _arrays(columns, outcome, arms, pools)
            writer.write_table(pa.table([arrays[name] for name in schema.names], schema=schema))
            written += len(rows)
            on_progress(written, last - first + 1)
    return written


def _schema(database: Database, arms: Sequence[str], pools: Mapping[int, StoredPool]) -> Any:
    fields = [("at", pa.timestamp("us", "UTC")), ("arm", TEXT), ("policy_arm", TEXT), *PLAIN.items()]
    fields.append(("outcome", pa.float64()))
    for name, kind in BY_ARM.items():
        fields += [(f"{name}.{arm}", kind) for arm in arms]
    about = {
        "command": "pika ledger export",
        "ledger": str(database),
        "versions": versions(),
        "pools": [asdict(pool) for pool in pools.values()],
    }
    return pa.schema(fields, metadata={METADATA: json.dumps(about, default=str).encode()})


def _arrays(
    columns: Mapping[str, Sequence[Any]], outcome: Any, arms: Sequence[str], pools: Mapping[int, StoredPool]
) -> dict[str, Any]:
    """By column of the file, of one chunk."""
    n = len(columns["id"])
    columns = {**columns, "stream": [bool(one) for one in columns["stream"]]}  # SQLite has 0 and 1
    arrays = {name: pa.array(columns[name], kind) for name, kind in PLAIN.items()}
    arrays["at"] = pa.array((np.array(columns["at"]) * 1e6).astype("datetime64[us]"), pa.timestamp("us", "UTC"))
    for name in ("arm", "policy_arm"):
        names = [pools[pool].arms[index] for pool, index in zip(columns["pool"], columns[name], strict=True)]
        arrays[name] = pa.array(names, TEXT)
    arrays["outcome"] = pa.array(outcome, from_pandas=True)  # NaN is null
    success, cost = np.full((2, n, len(arms)), np.nan, dtype=np.float32)
    allowed, there = np.zeros((2, n, len(arms)), dtype=np.bool_)
    of_pool = np.array(columns["pool"])
    masks = np.array(columns["allowed"], dtype=np.int64)
    for pool_id in np.unique(of_pool).tolist():
        pool, rows = pools[pool_id], np.flatnonzero(of_pool == pool_id)
        places = np.ix_(rows, np.array([arms.index(arm) for arm in pool.arms]))
        for to, name in ((success, "success"), (cost, "cost")):
            packed = b"".join(columns[name][row] for row in rows)
            to[places] = np.frombuffer(packed, "<f4").reshape(len(rows), -1)
        allowed[places] = (masks[rows, None] >> np.arange(len(pool.arms)) & 1).astype(np.bool_)
        there[places] = True
    for i, arm in enumerate(arms):
        arrays[f"success_probability.{arm}"] = pa.array(success[:, i], from_pandas=True)
        arrays[f"expected_cost_usd.{arm}"] = pa.array(cost[:, i], from_pandas=True)
        arrays[f"allowed.{arm}"] = pa.array(allowed[:, i], mask=~there[:, i])
    return arrays
