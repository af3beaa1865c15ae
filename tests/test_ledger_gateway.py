"""What a gateway writes to its ledger, told by its clients' own records."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from server.app import create_app
from server.config import ConfigError
from server.ledger.database import open_database
from server.ledger.reader import read_decisions
from server.ledger.tables import decisions
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, nano_pool, serving
from tests.support.gateway_client import chat, gateway, metric
from tests.support.processes import until

SECRET = "the prompt that nobody shall find"
ALL = {"small": [faults.answers], "medium": [faults.answers], "large": [faults.answers]}


def test_every_request_with_a_decision_is_written(ledger_url: str) -> None:
    with gateway(ALL, ledger={"url": ledger_url}) as (client, _):
        chat(client, {"x-request-id": "routed"}, messages=[{"role": "user", "content": SECRET}])
        chat(client, {"x-request-id": "cheap"}, model="auto-min_cost")
        chat(client, {"x-request-id": "pinned"}, model="medium")
        chat(client, {"x-request-id": "stream"}, stream=True)
        assert chat(client, {"x-request-id": "none"}, model="unknown").status_code == 404
        assert client.get("/ready").json()["problems"] == []
        assert metric(client, "pika_ledger_dropped_total") == 0
    database = open_database(ledger_url)
    with database.read() as connection:
        rows = {row.request_id: row for row in connection.execute(select(decisions))}
    assert set(rows) == {"routed", "cheap", "pinned", "stream"}
    assert {name: row.arm for name, row in rows.items()} == {"routed": 2, "cheap": 0, "pinned": 1, "stream": 2}
    assert {row.path for row in rows.values()} == {"routed", "pinned"}
    assert rows["cheap"].policy == "min_cost"
    assert all(
        (row.code, row.attempts, row.input_tokens, row.output_tokens) == (200, 1, 11, 7) for row in rows.values()
    )
    assert rows["routed"].cost_usd == pytest.approx((11 * 10 + 7 * 40) / 1e6)
    assert [rows["routed"].stream, rows["stream"].stream] == [False, True]
    assert rows["routed"].response_id == "chatcmpl-1"
    assert rows["stream"].response_id == "c"
    assert SECRET not in str(rows["routed"])
    read = read_decisions(database)
    np.testing.assert_allclose(read.success, [[0.5, 0.7, 0.9]] * 4, rtol=1e-6)
    assert read.pool.policy == {"name": "utility", "lambda": 0}
    database.close()


def test_what_failed_is_written_with_what_was_chosen_first(ledger_url: str) -> None:
    handlers = {"small": [faults.answers], "large": [faults.fails_with(500)]}
    with gateway(handlers, ledger={"url": ledger_url}) as (client, _):
        assert chat(client, {"x-request-id": "fallback"}).headers["x-pika-path"] == "fallback"
        assert chat(client, {"x-request-id": "failed"}, model="large").status_code == 500
    database = open_database(ledger_url)
    read = read_decisions(database)
    assert read.path.tolist() == ["fallback", "pinned"]
    assert (read.arm.tolist(), read.policy_arm.tolist()) == ([0, 1], [1, 1])
    assert read.code.tolist() == [200, 500]
    assert read.allowed.tolist() == [[True, True], [False, True]]
    database.close()


def test_prompts_are_kept_where_that_is_switched_on(ledger_url: str) -> None:
    with gateway(ALL, ledger={"url": ledger_url, "prompts": True}) as (client, _):
        chat(client, messages=[{"role": "user", "content": SECRET}])
    database = open_database(ledger_url)
    with database.read() as connection:
        assert connection.execute(select(decisions.c.prompt)).scalars().all() == [SECRET]
    database.close()


def test_probes_are_named_and_their_probabilities_written(tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream:
        settings = nano_pool(upstream.url)
        ledger = constant_pool({"a": []}, ledger={"url": f"sqlite:///{tmp_path}/ledger.sqlite"}).ledger
        with serving(create_app(settings.model_copy(update={"ledger": ledger}))) as base:
            body = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 2. Add 1."}]}
            httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60)
    database = open_database(f"sqlite:///{tmp_path}/ledger.sqlite")
    read = read_decisions(database)
    assert all(probe is not None and "@" in probe for probe in read.pool.probes)
    assert np.isfinite(read.success).all()
    assert read.probe_usd[0] > 0
    database.close()


def test_without_a_ledger_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with gateway(ALL) as (client, _):
        assert chat(client).status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_counted_and_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ledger.writer.MAX_WAITING", 5)
    with gateway(ALL, ledger={"url": f"sqlite:///{tmp_path}/gone/ledger.sqlite"}) as (client, _):
        assert [chat(client).status_code for _ in range(20)] == [200] * 20
        until(lambda: metric(client, "pika_ledger_dropped_total") == 15, 10, "all but those that wait are lost")


def test_an_url_that_cannot_be_one_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "mysql://pika:hunter2@host/x")
    with pytest.raises(ConfigError, match=r"ledger: .* must be sqlite:///FILE") as raised:
        create_app(constant_pool({"a": ["http://127.0.0.1:1/v1"]}, ledger={"url_env": "WHERE"}))
    assert "hunter2" not in str(raised.value)
    monkeypatch.delenv("WHERE")
    with pytest.raises(ConfigError, match="set the environment variable WHERE"):
        create_app(constant_pool({"a": ["http://127.0.0.1:1/v1"]}, ledger={"url_env": "WHERE"}))
