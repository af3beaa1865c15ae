"""GET /ready says which part is not, for machines; GET /health only that the process answers."""

import httpx

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving


def test_a_model_whose_replicas_are_all_away_is_named() -> None:
    away = "http://127.0.0.1:1/v1"
    with (
        faults.running(faults.answers) as upstream,
        serving(create_app(constant_pool({"small": [away], "large": [away, upstream.url]}))) as base,
    ):
        answer = httpx.get(f"{base}/ready", timeout=10)
        assert answer.status_code == 200, "the other model answers what is asked"
        [problem] = answer.json()["problems"]
        assert problem == {"part": "models.small", "message": "none of its replicas is healthy"}
        assert list(answer.json()["replicas"]["large"].values()) == [False, True]


def test_where_nobody_answers_it_is_not_ready_but_alive() -> None:
    with serving(create_app(constant_pool({"small": ["http://127.0.0.1:1/v1"]}))) as base:
        answer = httpx.get(f"{base}/ready", timeout=10)
        assert answer.status_code == 503
        assert (answer.json()["ready"], answer.json()["engine"]) == (False, True)
        assert [problem["part"] for problem in answer.json()["problems"]] == ["models.small"]
        assert httpx.get(f"{base}/health", timeout=10).json() == {"status": "ok"}
