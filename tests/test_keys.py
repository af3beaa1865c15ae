"""Users' keys: who has none gets nothing but whether the gateway lives; who has one, what it may use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.app import create_app
from server.config import ConfigError
from server.other_request import PATHS
from tests.support import upstream as faults
from tests.support.gateway import constant_pool
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.keys import new_key, revoke
from tests.support.processes import until
from tests.support.upstream import Upstream

ASKING = [
    ("POST", PATH),
    ("POST", "/v1/completions"),
    *(("POST", path) for path in PATHS),
    ("POST", "/score"),
    ("POST", "/route"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/auto"),
    ("GET", PATH),
    ("GET", "/nothing"),
    ("POST", "/v1/nothing"),
    ("OPTIONS", PATH),
    ("GET", "/healthy"),
    ("GET", "/administer"),
    ("GET", "//v1/models"),
    ("GET", "/v1/models/"),
]
Asked = tuple[httpx.Client, list[Upstream]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def key(file: Path) -> dict[str, str]:
    """Of team-a, which may do everything."""
    return new_key(file, "team-a")


@pytest.fixture
def asked(file: Path, key: dict[str, str]) -> Iterator[Asked]:
    with gateway({"small": [faults.answers], "large": [faults.answers]}, keys={"file": str(file)}) as running:
        yield running


def test_without_a_valid_key_nothing_answers(asked: Asked, key: dict[str, str]) -> None:
    client, upstreams = asked
    right = key["authorization"]
    refused: list[dict[str, str]] = [
        {}, {"authorization": "Bearer"}, {"authorization": "Bearer nobody's"}, {"authorization": "Bearer team-a"},
        {"authorization": right[:-1]}, {"authorization": right.replace("Bearer", "Basic")}, {"x-api-key": "nobody's"},
    ]  # fmt: skip
    bodies = set()
    for headers in refused:
        for method, path in ASKING:
            answer = client.request(method, path, headers=headers, json={"model": "auto", "messages": MESSAGES})
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            bodies.add(answer.text)
    [body] = bodies  # the same for all: nothing tells a key that is nearly right from none
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert not upstreams[0].requests + upstreams[1].requests
    chats = len(refused) * sum(method == "POST" and (path.startswith("/v") or path in PATHS) for method, path in ASKING)
    assert metric(client, 'pika_requests_total{arm="none",code="401"') >= chats - len(refused)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_whether_the_gateway_lives_is_told_to_all(asked: Asked, path: str) -> None:
    client, _ = asked
    answer = client.get(path)
    assert answer.status_code == 200
    assert "team-a" not in answer.text


def test_a_key_opens_all_and_reaches_no_upstream(asked: Asked, key: dict[str, str]) -> None:
    client, upstreams = asked
    secret = key["authorization"].removeprefix("Bearer ")
    ways = [key, {"x-api-key": secret}, {"api-key": secret}, {**key, "x-api-key": "another"}]
    for headers in ways:
        assert chat(client, headers).status_code == 200
        assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.post("/route", json={"model": "auto", "messages": MESSAGES}, headers=key).status_code == 200
    assert client.get("/nothing", headers=key).status_code == 404
    sent = upstreams[1].requests
    assert len(sent) == len(ways)
    for request in sent:
        assert not {"authorization", "x-api-key", "api-key"} & set(request.headers)
        assert secret not in str(request)


def test_the_official_client(asked: Asked, key: dict[str, str]) -> None:
    client, _ = asked
    secret = key["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=secret, max_retries=0) as official:
        answer = official.chat.completions.create(model="auto", messages=[{"role": "user", "content": "1 + 1?"}])
        assert answer.choices[0].message.content == "hi"
        assert "auto" in {model.id for model in official.models.list()}
        with pytest.raises(openai.AuthenticationError):
            official.with_options(api_key="wrong").models.list()


def test_without_keys_nothing_asks_for_one() -> None:
    with gateway({"small": [faults.answers]}) as (client, _):
        assert chat(client).status_code == 200
        assert chat(client, {"authorization": "Bearer whatever"}).status_code == 200


@pytest.fixture
def limited(file: Path) -> dict[str, str]:
    """Of a key that may use two of three arms, and two policies beside its own."""
    return new_key(
        file, "limited", arms=["medium", "small"], policies=["utility", "cascade"], routing={"policy": "max_success"}
    )


@pytest.fixture
def three(file: Path, key: dict[str, str], limited: dict[str, str]) -> Iterator[httpx.Client]:
    arms = {"small": [faults.answers], "medium": [faults.answers], "large": [faults.answers]}
    with gateway(arms, keys={"file": str(file)}) as (client, _):
        yield client


def test_a_key_gets_its_own_arms_and_policy(three: httpx.Client, key: dict[str, str], limited: dict[str, str]) -> None:
    assert chat(three, key).headers["x-pika-arm"] == "large"
    mine = chat(three, limited)
    assert (mine.headers["x-pika-arm"], mine.headers["x-pika-policy"]) == ("medium", "max_success")
    assert chat(three, limited, routing={"policy": "cascade", "thresholds": 0.4}).headers["x-pika-arm"] == "small"
    assert chat(three, limited, model="small").headers["x-pika-path"] == "pinned"
    assert chat(three, limited, routing={"arms": ["small"]}).headers["x-pika-arm"] == "small"
    listed = {model["id"] for model in three.get("/v1/models", headers=limited).json()["data"]}
    assert listed == {"auto", "small", "medium"}
    body = {"model": "auto", "messages": MESSAGES}
    considered = three.post("/route", json=body, headers=limited).json()
    assert (considered["arm"], considered["fallbacks"]) == ("medium", ["small"])


def test_the_dashboard_decides_for_whom_it_is_asked_and_not_for_who_asked_before(
    three: httpx.Client, limited: dict[str, str]
) -> None:
    """On one kept connection."""
    body = {"model": "auto", "messages": MESSAGES}
    assert three.post("/route", json=body, headers=limited).json()["arm"] == "medium"
    assert three.post("/dashboard/data/route", json=body).json()["arm"] == "large"
    assert three.post("/dashboard/data/route?key=limited", json=body).json()["arm"] == "medium"
    assert three.post("/dashboard/data/route", json=body).json()["arm"] == "large"
    unknown = three.post("/dashboard/data/route?key=nobody", json=body)
    assert unknown.status_code == 400
    assert "no key of this name" in unknown.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "large"}, "may not use the arm 'large'; it may use small, medium"),
        ({"routing": {"arms": ["small", "large"]}}, "may not use the arm 'large'"),
        (
            {"routing": {"policy": "min_cost"}},
            "may not use the policy min_cost; it may use cascade, max_success, utility",
        ),
        ({"model": "auto-min_cost"}, "may not use the policy min_cost"),
    ],
)
def test_what_a_key_may_not_use_is_refused(
    three: httpx.Client, limited: dict[str, str], fields: dict[str, Any], said: str
) -> None:
    answer = chat(three, limited, **fields)
    assert answer.status_code == 403
    assert said in answer.json()["error"]["message"]


def test_another_endpoint_is_for_its_arms_too(three: httpx.Client, limited: dict[str, str]) -> None:
    assert three.post("/v1/embeddings", json={"model": "large", "input": "x"}, headers=limited).status_code == 403
    assert three.post("/v1/embeddings", json={"model": "small", "input": "x"}, headers=limited).status_code == 200
    assert three.get("/v1/models/large", headers=limited).status_code == 404


def test_an_arm_that_fails_is_replaced_by_one_that_the_key_may_use(file: Path, limited: dict[str, str]) -> None:
    arms = {"small": [faults.answers], "medium": [faults.fails_with(500)], "large": [faults.answers]}
    with gateway(arms, keys={"file": str(file)}) as (client, upstreams):
        answer = chat(client, limited)
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "small")
        assert not upstreams[2].requests


def test_the_file_is_followed(asked: Asked, file: Path, key: dict[str, str]) -> None:
    client, _ = asked
    new = new_key(file, "team-b")
    until(lambda: chat(client, new).status_code == 200, 2, "a new key opens")
    revoke(file, "team-a")
    until(lambda: chat(client, key).status_code == 401, 2, "a revoked key opens nothing")
    assert chat(client, new).status_code == 200


def test_a_typo_leaves_the_keys_as_they_were(
    asked: Asked, file: Path, key: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = asked
    right = file.read_text()
    for wrong, said in (
        (right + "  armz: [small]\n", f"{file}:3: team-a: unknown key 'armz': did you mean 'arms'?"),
        ("models: {", "not valid YAML"),
        (None, "there is no"),
    ):
        file.unlink() if wrong is None else file.write_text(wrong)
        until(lambda said=said: said in caplog.text, 3, f"the log says {said}")  # type: ignore[misc]
        [problem] = client.get("/ready").json()["problems"]
        assert problem["part"] == "keys"
        assert client.get("/ready").status_code == 200
        assert chat(client, key).status_code == 200
    file.write_text(right)
    until(lambda: not client.get("/ready").json()["problems"], 3, "all is well again")


SHA = "ab" * 32


ENTRY = f"team-a:\n  sha256: {SHA}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENTRY + "  arms: [smal]\n", ":3: arms of team-a names the unknown arm 'smal': did you mean 'small'?"),
        (ENTRY + "  request_per_minute: 5\n", ":3: team-a: unknown key 'request_per_minute': did you mean"),
        (ENTRY + "  requests_per_minute: -5\n", ":3: team-a.requests_per_minute: "),
        (ENTRY + "  policies: [utilty]\n", ":3: policies of team-a names the unknown policy 'utilty'"),
        (ENTRY + "  routing: {lamda: 1}\n", ":3: routing of team-a: routing.lamda is unknown"),
        (ENTRY + "  routing: {policy: utility, variant: best}\n", ":3: routing of team-a: "),
        (
            ENTRY + "  arms: [small]\n  routing: {arms: [large]}\n",
            ":4: routing of team-a: this key may not use the arm",
        ),
        (ENTRY + "  usd_per_day: 5\n", ":3: usd_per_day of team-a: budgets are kept in the ledger: add `ledger: {}`"),
        ("team-a:\n  created: 2026-01-01\n", ":1: team-a.sha256: must be the key's SHA-256"),
        ("team-a:\n  sha256: pika-secret\n", ":2: team-a.sha256: must be the key's SHA-256, 64 hexadecimal digits"),
        ("team-a: pika-secret\n", ":1: team-a must be a mapping"),
        (ENTRY + ENTRY, ":3: team-a stands there twice"),
        (ENTRY + ENTRY.replace("-a", "-b"), ":4: sha256 of team-b is that of team-a"),
        (ENTRY.replace("-", " "), ":1: names of keys have up to 64 letters"),
        ("team-a: {\n", ": not valid YAML"),
        ("team-a: 2026-99-99\n", ": not valid YAML"),
        ("- team-a\n", "must be a mapping of names"),
        (None, "there is no"),
    ],
)
def test_a_wrong_file_is_named_by_line_at_start(file: Path, text: str | None, said: str) -> None:
    if text is not None:
        file.write_text(text)
    settings = constant_pool({"small": ["http://127.0.0.1:1/v1"], "large": ["http://127.0.0.1:2/v1"]})
    settings = settings.model_validate({**settings.model_dump(by_alias=True), "keys": {"file": str(file)}})
    with pytest.raises(ConfigError) as caught:
        create_app(settings)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "pika-secret" not in str(caught.value)


def test_an_empty_file_opens_to_nobody(file: Path) -> None:
    file.write_text("# nobody yet\n")
    with gateway({"small": [faults.answers]}, keys={"file": str(file)}) as (client, _):
        assert chat(client).status_code == 401


def test_requests_a_minute(file: Path) -> None:
    slow, fast = new_key(file, "slow", requests_per_minute=3), new_key(file, "fast")
    with gateway({"small": [faults.answers]}, keys={"file": str(file)}) as (client, upstreams):
        answers = [chat(client, slow) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        refused = answers[3]
        assert 19 <= int(refused.headers["retry-after"]) <= 20
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert "3 requests a minute" in error["message"]
        assert len(upstreams[0].requests) == 3
        assert client.get("/v1/models", headers=slow).status_code == 429
        unlimited = chat(client, fast)
        assert unlimited.status_code == 200
        assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


def test_tokens_a_minute_are_those_of_the_usage(file: Path) -> None:
    """The upstream says 18 of each answer, whatever `max_tokens` made us think."""
    key = new_key(file, "team", tokens_per_minute=1000)
    with gateway({"small": [faults.answers]}, keys={"file": str(file)}) as (client, _):
        for stream in (False, True):
            before = chat(client, key, max_tokens=400, stream=stream)
            assert before.status_code == 200
            assert int(before.headers["x-ratelimit-remaining-tokens"]) < 600
        whole = chat(client, key, max_tokens=900)  # two estimates of over 400 would not leave so many
        assert whole.status_code == 200
        assert chat(client, key, model="nobody", max_tokens=900).status_code == 404  # given back
        assert chat(client, key, max_tokens=900).status_code == 200
        refused = chat(client, key, max_tokens=990)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")


def test_what_failed_gives_its_tokens_back(file: Path) -> None:
    key = new_key(file, "team", tokens_per_minute=1000)
    with gateway({"small": [faults.fails_with(400)]}, keys={"file": str(file)}) as (client, _):
        for _ in range(5):
            assert chat(client, key, max_tokens=900).status_code == 400


def test_limits_outlive_a_change_of_the_file(file: Path) -> None:
    key = new_key(file, "team", requests_per_minute=2)
    with gateway({"small": [faults.answers]}, keys={"file": str(file)}) as (client, _):
        assert [chat(client, key).status_code for _ in range(3)] == [200, 200, 429]
        other = new_key(file, "other")
        until(lambda: chat(client, other).status_code == 200, 3, "the file is read again")
        assert chat(client, key).status_code == 429
