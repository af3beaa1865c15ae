"""The dashboard's files and figures over HTTP: who may see them, and what bad requests get."""

import asyncio
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.dashboard.cache import THREADS, Cache
from server.dashboard.routes import FILES, FOLDER
from server.ledger.section import Ledger
from server.sections.serving import Admin
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import chat
from tests.support.processes import until

DATA = "/dashboard/data"
OF_LEDGER = ("mix", "frontier", "replay?lambda=1", "reliability", "drift", "decisions", "decisions/1")
KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway with a ledger, after five requests."""
    file = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with faults.running(faults.answers) as upstream:
        settings = constant_pool(
            {"small": [upstream.url], "large": [upstream.url]}, ledger=Ledger(url=f"sqlite:///{file}")
        )
        with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
            for _ in range(5):
                assert chat(client).status_code == 200
            until(lambda: client.get(f"{DATA}/decisions").json()["decisions"][4:] != [], 10, "five are recorded")
            yield client


@pytest.fixture(scope="module")
def bare() -> Iterator[httpx.Client]:
    """A gateway without a ledger, after three requests."""
    with faults.running(faults.answers) as upstream:
        settings = constant_pool({"small": [upstream.url], "large": [upstream.url]})
        with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
            for _ in range(3):
                assert chat(client).status_code == 200
            yield client


def test_the_page_and_all_that_it_names_is_there(client: httpx.Client) -> None:
    page = client.get("/dashboard")
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text)
    assert len(named) >= 5
    for path in named:
        assert client.get("/" + path).status_code == 200
    for path in FILES:
        for module in re.findall(r'from "\./(.+?)"', FILES[path][0].decode()) if path.endswith(".js") else ():
            assert client.get(f"/dashboard/static/{module}").headers["content-type"].startswith("text/javascript")


def test_nothing_but_our_own_files_may_run(client: httpx.Client) -> None:
    page = client.get("/dashboard")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=|https?://", page.text)
    ours = [FILES[path][0].decode() for path in FILES if path.endswith(".js") and "vendor" not in path]
    for text in ours:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://", text)


def test_the_vendored_library_is_as_it_was_published() -> None:
    """By SHA-256 of the files of uplot 1.6.32 in the npm registry; with its licence beside it."""
    folder = FOLDER / "vendor/uplot"
    assert {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} == {
        "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }


def test_files_are_asked_for_once(client: httpx.Client) -> None:
    first = client.get("/dashboard/static/app.js")
    again = client.get("/dashboard/static/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_slash_too_many_leads_to_the_page(client: httpx.Client) -> None:
    assert client.get("/dashboard/", follow_redirects=True).url.path == "/dashboard"


@pytest.mark.parametrize(
    "path", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "..%2froutes.py", "vendor", "", "app.js/"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(f"/dashboard/static/{path}").status_code in (404, 307)
    assert b"APIRouter" not in client.get(f"/dashboard/static/{path}", follow_redirects=True).content


def test_figures_agree_with_the_metrics(client: httpx.Client, bare: httpx.Client) -> None:
    for one, requests in ((client, 5), (bare, 3)):
        summary = one.get(f"{DATA}/summary?period=1h").json()
        spent = sum(arm["cost_usd"] for arm in summary["arms"])
        assert summary["requests"] == requests
        assert summary["spent_usd"] == pytest.approx(spent + summary["probe_usd"])
        assert summary["expected"]["accuracy"] == pytest.approx(0.7)
        large = summary["arms"][1]
        assert large["always_usd"] == pytest.approx(requests * (11 * 1 + 7 * 4) / 1e6)
        assert summary["best"] == "large"
        assert summary["ledger"] is (one is client)


@pytest.mark.parametrize("path", OF_LEDGER)
def test_without_a_ledger_figures_say_what_to_add(bare: httpx.Client, path: str) -> None:
    refused = bare.get(f"{DATA}/{path}")
    assert refused.status_code == 404
    assert "ledger: {}" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "names"),
    [
        ("summary?period=1y", 400, "period"),
        ("mix?period=%00<script>", 400, "period"),
        ("replay?period=1h", 400, "lambda"),
        ("replay?lambda=nan", 400, "lambda"),
        ("replay?lambda=-1", 400, "lambda"),
        ("replay?lambda=1e400", 400, "lambda"),
        ("replay?lambda=" + "9" * 20_000, 400, "lambda"),
        ("decisions?limit=0", 400, "limit"),
        ("decisions?limit=101", 400, "limit"),
        ("decisions?before=-1", 400, "before"),
        ("decisions?before=99999999999999999999", 400, "before"),
        ("decisions?before=٣", 400, "before"),
        ("decisions/99999999999999999999", 404, "no such decision"),
        ("decisions/1;DROP TABLE decisions", 404, "no such decision"),
        ("decisions/²", 404, "no such decision"),
        ("nothing", 404, "no path here"),
    ],
)
def test_bad_questions_get_clear_errors(client: httpx.Client, path: str, status: int, names: str) -> None:
    answer = client.get(f"{DATA}/{path}")
    assert answer.status_code == status
    assert names in answer.json()["error"]["message"]


def test_decisions_are_listed_and_told(client: httpx.Client) -> None:
    listed = client.get(f"{DATA}/decisions?limit=3").json()
    assert len(listed["decisions"]) == 3
    assert listed["next"] == listed["decisions"][-1]["id"]
    rest = client.get(f"{DATA}/decisions?before={listed['next']}").json()
    assert len(rest["decisions"]) == 2
    assert rest["next"] is None
    one = client.get(f"{DATA}/decisions/{listed['next']}").json()
    assert one["why"] == "utility chose large among the arms that could serve the request. " + (
        "The arm's probability is a constant, or not calibrated to single answers."
    )
    assert [arm["name"] for arm in one["arms"]] == ["small", "large"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "pika.example"},  # a page whose name was made to lead here
        {"x-forwarded-for": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
    ],
)
@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/static/app.js", f"{DATA}/summary", f"{DATA}/decisions"])
def test_others_see_nothing_without_an_admin_key(client: httpx.Client, headers: dict[str, str], path: str) -> None:
    refused = client.get(path, headers=headers)
    assert refused.status_code == 403
    assert "admin: {key_env" in refused.json()["error"]["message"]


def test_pages_of_other_sites_may_not_use_the_playground(client: httpx.Client) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post(f"{DATA}/route", json=body).json()["arm"] == "large"
    foreign = client.post(f"{DATA}/route", json=body, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_the_admin_key_opens_figures_and_the_page_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", KEY)
    with faults.running(faults.answers) as upstream:
        settings = constant_pool({"small": [upstream.url]}, admin=Admin(key_env="ADMIN"))
        with serving(create_app(settings)) as base, httpx.Client(base_url=base) as client:
            assert client.get("/dashboard").status_code == 200
            assert client.get("/dashboard", headers={"host": "pika.example"}).status_code == 200
            for key in ("", "Bearer", f"Bearer {KEY}x", KEY, f"Basic {KEY}"):
                refused = client.get(f"{DATA}/summary", headers={"authorization": key})
                assert refused.status_code == 401
                assert KEY not in refused.text
            assert client.post(f"{DATA}/route", json={}).status_code == 401
            for host in ("pika.example", "localhost"):
                headers = {"authorization": f"Bearer {KEY}", "host": host}
                assert client.get(f"{DATA}/summary", headers=headers).json()["ledger"] is False


def test_a_ledger_that_breaks_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with faults.running(faults.answers) as upstream:
        settings = constant_pool({"small": [upstream.url]}, ledger=Ledger(url=f"sqlite:///{file}"))
        with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
            assert client.get(f"{DATA}/mix").status_code == 200
            for one in tmp_path.glob("ledger.sqlite*"):
                one.write_bytes(b"no database at all" * 4096)
            broken = client.get(f"{DATA}/reliability")
            assert broken.status_code == 503
            assert broken.json()["error"]["code"] == "ledger_unavailable"
            assert "move it away" in broken.json()["error"]["message"]
            assert client.get("/dashboard").status_code == 200
            assert client.get(f"{DATA}/replicas").json()["models"][0]["replicas"][0]["healthy"] is True
            assert chat(client).status_code == 200


async def test_many_who_look_cost_no_more_than_one() -> None:
    made = 0
    go_on = threading.Event()

    def make() -> int:
        nonlocal made
        made += 1
        assert go_on.wait(10)
        return made

    now = [0.0]
    cache = Cache(clock=lambda: now[0])
    asked = [asyncio.create_task(cache.get("key", 2, make)) for _ in range(1000)]
    await asyncio.sleep(0)
    asked[0].cancel()  # one who leaves takes it from nobody else
    go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [1] * 999
    assert await cache.get("key", 2, make) == 1
    now[0] = 2.0
    assert await cache.get("key", 2, make) == 2


async def test_a_failure_is_not_kept() -> None:
    cache = Cache()
    outcomes = iter([ValueError("away"), 7])

    def make() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(ValueError, match="away"):
        await cache.get("key", 60, make)
    assert await cache.get("key", 60, make) == 7


async def test_no_more_threads_than_allowed_are_taken() -> None:
    cache = Cache()
    running, most = 0, 0
    lock, together = threading.Lock(), threading.Event()

    def make() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == THREADS:
                together.set()
        assert together.wait(10)
        with lock:
            running -= 1

    await asyncio.gather(*(cache.get(i, 60, make) for i in range(THREADS * 4)))
    assert most == THREADS
