"""Outcomes of a gateway that is killed, and of one whose probe they correct."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from offline.benchmarks.running_total import RunningTotal
from offline.calibrate import main
from probes.artifact import load_artifact
from server.ledger.database import open_database
from server.ledger.tables import outcomes
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import chat, metric
from tests.support.processes import until
from tests.support.serve import served
from tests.test_reload import write


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream:
        file = write_pool(tmp_path, {"large": [upstream.url]}, ledger={})
        with served(file) as gateway:
            acknowledged = set()

            def judge(_: int) -> None:
                with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
                    for _ in range(100):
                        try:
                            id_ = chat(client).headers["x-request-id"]
                            said = client.post("/v1/outcomes", json={"id": id_, "correct": True})
                        except httpx.TransportError:
                            return
                        if said.status_code == 200:
                            acknowledged.add(id_)

            with ThreadPoolExecutor(8) as threads:
                judging = [threads.submit(judge, i) for i in range(8)]
                until(lambda: len(acknowledged) > 40, 60, "some outcomes are acknowledged")
                gateway.process.send_signal(signal.SIGKILL)
                for one in judging:
                    one.result(timeout=60)
        with closing(open_database(f"sqlite:///{tmp_path}/pika-ledger.sqlite")) as database, database.read() as kept:
            assert acknowledged <= set(kept.execute(select(outcomes.c.request_id)).scalars())


def test_a_probe_that_outcomes_contradict_is_corrected_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are told to be right half as often as the probe of the one arm says."""
    problems = [problem.problem for problem in RunningTotal().problems("test", 240, 31)]
    with faults.running(faults.answers) as upstream:
        file = write(tmp_path, upstream.url, ledger={}, policy={"name": "max_success"}, engine={"deadline_ms": 60_000})
        with served(file) as gateway:
            base = gateway.client.base_url

            def probability(client: httpx.Client, problem: str) -> tuple[str, float]:
                answer = chat(
                    client, messages=[{"role": "user", "content": problem}], routing={"arms": ["nano-medium"]}
                )
                return answer.headers["x-request-id"], float(answer.headers["x-pika-success-probability"])

            def judge(problem: str) -> None:
                with httpx.Client(base_url=base, timeout=60) as client:
                    id_, p = probability(client, problem)
                    outcome = {"id": id_, "correct": Random(problem).random() < p / 2}
                    assert client.post("/v1/outcomes", json=outcome).json()["recorded"]

            with ThreadPoolExecutor(24) as threads:
                list(threads.map(judge, problems))
            with httpx.Client(base_url=base, timeout=60) as client:
                of_medium = '{arm="nano-medium"}'
                assert metric(client, "pika_calibration_outcomes" + of_medium) == len(problems)
                wrong = metric(client, "pika_calibration_error" + of_medium)
                assert wrong > 0.2
                before = [probability(client, problem)[1] for problem in problems[:40]]
                assert main([str(tmp_path / "nano-medium"), "--ledger", str(file)]) == 0
                assert json.loads(capsys.readouterr().out.splitlines()[-1])["written"]
                new = load_artifact(tmp_path / "nano-medium", verify=False)
                gateway.hang_up(f"nano-medium by {new.card.probe_name}@{new.revision}")
                after = [probability(client, problem)[1] for problem in problems[:40]]
                # Two parameters fitted to 160 outcomes: a standard error of some .04 on average.
                assert np.mean(after) == pytest.approx(np.mean(before) / 2, abs=0.15)
                # What the earlier revision said is no longer said; the counters go on.
                assert metric(client, "pika_calibration_outcomes" + of_medium) == 0
                assert metric(client, 'pika_outcomes_total{arm="nano-medium"') == len(problems)
                judge(problems[0])
                assert metric(client, "pika_calibration_outcomes" + of_medium) == 1
