"""What is the operator's opens to the admin key alone; who asks from this machine is told from who seems to."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

from server.access import bearer, is_loopback
from server.admin import redacted, router
from server.app import create_app
from server.config import ConfigError, Settings
from server.sections.serving import Admin
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, nano_pool, serving
from tests.support.gateway_client import gateway

ADMIN_KEY = "an-admin-key-of-the-tests"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
ROUTES = [(*route.methods, route.path) for route in router.routes if isinstance(route, APIRoute)]


@pytest.fixture
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIKA_ADMIN_KEY", ADMIN_KEY)


@pytest.fixture
def client(admin_key: None) -> Iterator[httpx.Client]:
    with gateway({"small": [faults.answers]}, admin={"key_env": "PIKA_ADMIN_KEY"}) as (client, _):
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {ADMIN_KEY}"},
        {"authorization": ADMIN_KEY},
        {"authorization": f"Bearer {ADMIN_KEY}x"},
        [("authorization", f"Bearer {ADMIN_KEY}"), ("authorization", "Bearer wrong")],
    ],
)
def test_only_the_admin_key_opens_admin(client: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_admin_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert ADMIN_KEY not in answer.text


def test_the_admin_key_opens_admin(client: httpx.Client) -> None:
    assert client.get("/admin/config", headers=ADMIN).json()["admin"] == {"key_env": "PIKA_ADMIN_KEY"}
    assert client.get("/admin/config", headers={"authorization": f"bearer  {ADMIN_KEY}"}).status_code == 200


def test_without_a_key_of_its_own_admin_is_off() -> None:
    with gateway({"small": [faults.answers]}) as (client, _):
        for method, path in ROUTES:
            answer = client.request(method, path, headers=ADMIN)
            assert answer.status_code == 404, path
            assert "admin: {key_env: PIKA_ADMIN_KEY}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("value", "said"), [("", "PIKA_ADMIN_KEY is not set"), ("short", "fewer than 16 characters")])
def test_an_admin_key_that_anybody_could_guess_is_refused(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIKA_ADMIN_KEY", value)
    with pytest.raises(ConfigError, match=said):
        create_app(constant_pool({"small": ["http://127.0.0.1:1/v1"]}, admin={"key_env": "PIKA_ADMIN_KEY"}))


def test_the_configuration_is_shown_without_what_it_keeps_secret(admin_key: None) -> None:
    with gateway({"small": [faults.answers]}, admin={"key_env": "PIKA_ADMIN_KEY"}) as (client, _):
        shown = client.get("/admin/config", headers=ADMIN)
    assert shown.json()["arms"]["small"]["success_probability"] == 0.5
    assert ADMIN_KEY not in shown.text

    launched = constant_pool({"small": ["http://127.0.0.1:1/v1"]}).model_dump(by_alias=True)
    launched["models"]["small"]["replicas"] = [{"launch": {"env": {"VLLM_API_KEY": "a-secret"}}}]
    assert "a-secret" not in str(redacted(Settings.model_validate(launched)))


def test_admin_tells_which_probes_serve(admin_key: None) -> None:
    with faults.running(faults.answers) as upstream:
        settings = nano_pool(upstream.url).model_copy(update={"admin": Admin(key_env="PIKA_ADMIN_KEY")})
        with serving(create_app(settings)) as base:
            arms = httpx.get(f"{base}/admin/probes", headers=ADMIN, timeout=10).json()["arms"]
    assert list(arms) == ["nano-small", "nano-medium", "nano-large"]
    assert arms["nano-large"]["revision"]
    assert arms["nano-large"]["target"]["model"]
    assert arms["nano-large"]["calibrated"]


LOOPBACK = [
    (("127.0.0.1", 5), {"host": "127.0.0.1:8000"}, True),
    (("127.0.0.1", 5), {"host": "localhost"}, True),
    (("::1", 5), {"host": "[::1]:8000"}, True),
    (("10.0.0.5", 5), {"host": "localhost"}, False),
    (("127.0.0.1", 5), {"host": "evil.example"}, False),  # a name that was made to lead here
    (("127.0.0.1", 5), {"host": "localhost.evil.example"}, False),
    (("127.0.0.1", 5), {"host": "localhost", "x-forwarded-for": "10.0.0.5"}, False),  # a proxy beside us
    (("127.0.0.1", 5), {"host": "localhost", "forwarded": "for=10.0.0.5"}, False),
    (("127.0.0.1", 5), {}, False),
    (None, {"host": "localhost"}, False),
]


@pytest.mark.parametrize(("client", "headers", "here"), LOOPBACK)
def test_who_asks_from_this_machine(client: tuple[str, int] | None, headers: dict[str, str], here: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert is_loopback({"client": client, "headers": raw}) is here


def test_a_bearer_is_read_as_http_writes_it() -> None:
    assert bearer([(b"authorization", b"BEARER  abc ")]) == b"abc"
    assert bearer([(b"authorization", b"Basic abc")]) == b""
