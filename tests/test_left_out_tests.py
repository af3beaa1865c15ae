"""Tests that rollouts leave out are counted by problem, whatever else metadata may hold."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from offline.left_out_tests import LeftOut, left_out
from offline.rollout_report import report
from offline.rollout_store import SCHEMA
from tests.support.probes import NANO_POOL


def test_counts_of_metadata() -> None:
    told = ['{"tests_left_out": 3}', '{"tests_left_out": 0}', '{"tests_left_out": "x"}', '{"level": 1}']
    assert left_out([*told, "[1]", "{", None, 7.0, '{"tests_left_out": 2}']) == LeftOut(problems=2, tests=5)
    assert left_out([]) == LeftOut(0, 0)


def test_the_report_of_rollouts_says_them_once_per_problem(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_parquet(NANO_POOL / "rollouts.parquet").query("split == 'test'").groupby("arm").head(3)
    frame = frame.assign(truncated=[[False] * 8] * len(frame), metadata=None)
    first = frame["problem_id"] == frame["problem_id"].iloc[0]
    frame.loc[first, "metadata"] = '{"tests_left_out": 4}'
    columns = {name: frame[name] for name in SCHEMA.names}
    table = pa.Table.from_pandas(pd.DataFrame(columns), schema=SCHEMA, preserve_index=False)
    report(table, Path("rollouts.parquet"))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tests_left_out"] == 4
    assert "1 problems are judged without their longest tests, 4 in all" in " ".join(printed.err.split())
