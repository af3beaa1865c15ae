"""`pika ledger export`: every decision of a ledger in a parquet file, of SQLite and PostgreSQL alike."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from offline.ledger_command import main
from server.ledger.database import Database, open_database, parse_url
from server.ledger.row import PoolRow
from server.ledger.tables import outcomes
from server.ledger.writer import Writer
from tests.support.gateway import write_pool
from tests.support.ledger import POOL, decision

NOW = time.time()


@pytest.fixture
def filled(ledger_url: str) -> str:
    """Three decisions among three arms, then one among two others, of which one is new."""
    writer = Writer(Database(parse_url(ledger_url)), POOL)
    for i in range(3):
        writer.put(decision(f"request-{i}", at=NOW - 3600 * (10 - i), allowed=np.array([True, i > 0, True])))
    told = {"correct": 0.5, "at": NOW, "arm": "medium", "path": "routed", "propensity": 1, "pool": 1}
    writer.submit(
        lambda connection: connection.execute(outcomes.insert(), [{"request_id": "request-1", "source": "x", **told}])
    ).result(10)
    writer.close()
    two = PoolRow(["large", "huge"], [(1, 1)] * 2, [(1, 1)] * 2, [None] * 2, {"name": "random"})
    writer = Writer(Database(parse_url(ledger_url)), two)
    both = np.array([True, True])
    writer.put(
        decision("last", arm=1, policy_arm=0, success=np.array([0.1, 0.2]), cost=np.array([1.0, 2.0]), allowed=both)
    )
    writer.close()
    return ledger_url


def test_every_decision_is_a_row_with_columns_by_arm(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.parquet"
    assert main(["export", str(file), "--ledger", filled]) == 0
    assert capsys.readouterr().out == f"4 decisions -> {file}\n"
    table = pq.read_table(file)
    rows = table.to_pylist()
    assert [row["request_id"] for row in rows] == ["request-0", "request-1", "request-2", "last"]
    assert [row["arm"] for row in rows] == ["medium"] * 3 + ["huge"]
    assert [row["policy_arm"] for row in rows] == ["medium"] * 3 + ["large"]
    assert [row["outcome"] for row in rows] == [None, 0.5, None, None]
    assert [row["success_probability.medium"] for row in rows] == pytest.approx([0.7] * 3 + [None])
    assert [row["success_probability.large"] for row in rows] == pytest.approx([None] * 3 + [0.1])
    assert [row["expected_cost_usd.huge"] for row in rows] == [None] * 3 + [2.0]
    assert [row["allowed.medium"] for row in rows] == [False, True, True, None]
    assert [row["cost_usd"] for row in rows] == pytest.approx([39e-6] * 3 + [18e-6])
    assert rows[0]["at"].timestamp() == pytest.approx(NOW - 36000, abs=1e-3)
    assert rows[0]["prompt"] is None
    about = json.loads(table.schema.metadata[b"pika"])
    assert [pool["arms"] for pool in about["pools"]] == [["small", "medium", "large"], ["large", "huge"]]


def test_a_time_is_cut_out_and_a_configuration_names_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_pool(tmp_path, {"small": ["http://127.0.0.1:1/v1"]}, ledger={})
    assert main(["export", str(tmp_path / "out.parquet"), "--ledger", str(pool)]) == 1
    assert "there is no ledger at" in capsys.readouterr().err
    writer = Writer(Database(parse_url(f"sqlite:///{tmp_path}/pika-ledger.sqlite")), POOL)
    for hours in (50, 30, 10):
        writer.put(decision(f"{hours}", at=NOW - 3600 * hours))
    writer.close()
    file = tmp_path / "out.parquet"
    assert main(["export", str(file), "--ledger", str(pool), "--since", "40h", "--until", "1d"]) == 0
    assert pq.read_table(file)["request_id"].to_pylist() == ["30"]
    before = file.read_bytes()
    assert main(["export", str(file), "--ledger", str(pool), "--since", "1h"]) == 1
    assert "no decisions of that time" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out.csv", "--ledger", "x"], "must end in .parquet"),
        (["/nowhere/out.parquet", "--ledger", "x"], "there is no folder /nowhere"),
        (["out.parquet", "--ledger", "sqlite:////nowhere/x"], "there is no ledger at /nowhere/x"),
        (["out.parquet", "--ledger", "postgresql://a:hunter2@127.0.0.1:1/x"], "is PostgreSQL up"),
        (["out.parquet", "--ledger", "missing.yaml"], "cannot read missing.yaml"),
        (["out.parquet", "--ledger", "x", "--since", "soon"], "'soon' is no time"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_fix(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert "hunter2" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_old_ledger_is_read_while_a_gateway_writes(filled: str, tmp_path: Path) -> None:
    database = open_database(filled)
    with database.write() as connection:
        connection.execute(outcomes.delete())
        assert main(["export", str(tmp_path / "out.parquet"), "--ledger", filled]) == 0
    assert pq.read_table(tmp_path / "out.parquet")["outcome"].null_count == 3, "as it was before"
    database.close()
