"""A Hub that is away, cuts, stalls and lies: what is in the cache serves, and nothing is left half written."""

import logging
from pathlib import Path

import pytest

from probes import hub
from probes.artifact import load_artifact
from probes.hub import fetch
from probes.hub_errors import HubAwayError
from tests.support.hub import TOKEN, Fault, Hub, cut, not_the_hub, reset, running, stall, status, wrong_size
from tests.support.hub_probe import REFERENCE, REPO, publish
from tests.support.probes import artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("probe") / "large").folder


@pytest.fixture
def loopback(loopback: Hub, folder: Path) -> Hub:
    publish(loopback, folder)
    return loopback


def half_written(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.name.endswith(".incomplete") or ".tmp" in path.name]


AWAY: dict[str, Fault] = {
    "429": status(429, Retry_After="3600"),
    "500": status(500),
    "503": status(503, "<html>maintenance</html>", content_type="text/html"),
    "reset": reset,
    "not the hub": not_the_hub,
}


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY)
@pytest.mark.parametrize("where", ["GET /api/models", "HEAD .*/resolve/"])
def test_the_cache_stands_in_where_the_hub_is_away(
    loopback: Hub, fault: Fault, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = fetch(REFERENCE)
    repository = loopback.repositories["model", REPO]
    repository.commit({"large/config.json": repository.files["large/config.json"] + b"\n"})
    loopback.fails(where, fault)
    with caplog.at_level(logging.DEBUG):
        cached = fetch(REFERENCE)
    assert (cached.folder, cached.commit, cached.from_cache) == (before.folder, before.commit, True)
    warnings = [record.getMessage() for record in caplog.records if record.name == "probes.hub"]
    assert "the Hub is away" in warnings[-1]
    assert f"taken from its cache, as it was at commit {before.commit}" in warnings[-1]
    assert TOKEN not in caplog.text
    loopback.works()
    assert fetch(REFERENCE).commit == repository.refs["main"]


def test_a_dead_hub(loopback: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    repository = loopback.repositories["model", REPO]
    repository.refs["v1"] = repository.refs["main"]
    before = fetch(f"{REFERENCE}@v1")
    with running() as another:
        dead = another.url
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead)
    for reference in (f"{REFERENCE}@v1", f"{REFERENCE}@{before.commit}"):
        cached = fetch(reference)
        assert (cached.folder, cached.commit, cached.from_cache) == (before.folder, before.commit, True)
    assert "refused" in caplog.text
    with pytest.raises(HubAwayError, match=r"cannot fetch .*: the Hub is away .* and its cache lacks the probe"):
        fetch(f"{REFERENCE}@main")


def test_offline_by_the_clients_own_switch(loopback: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(REFERENCE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(REFERENCE).from_cache


def test_a_hub_that_never_answers(loopback: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(REFERENCE)
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    loopback.fails("GET /api/models", stall)
    assert fetch(REFERENCE).from_cache


def test_tries_again_where_the_cache_is_empty(loopback: Hub) -> None:
    loopback.fails("GET /api/models", status(500), times=2)
    assert not fetch(REFERENCE).from_cache
    loopback.fails("GET /api/models", status(500), times=3)
    with pytest.raises(HubAwayError, match="it answers 500"):
        fetch(f"hf://{REPO}/other")


def test_a_cut_download_goes_on_where_it_stopped(loopback: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client keeps whole chunks, of 10 MiB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    loopback.fails("GET /large/", cut(250), times=1)
    fetched = fetch(REFERENCE)
    assert [request.headers.get("range") for request in loopback.asked("GET /large/")] == [None, "bytes=200-"]
    assert (fetched.folder / "probe.safetensors").read_bytes() == (folder / "probe.safetensors").read_bytes()


@pytest.mark.parametrize("fault", [wrong_size(7), wrong_size(-7)], ids=["more", "less"])
def test_wrong_sizes_leave_nothing_half_written(
    loopback: Hub, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.fails("HEAD .*/resolve/.*safetensors", fault)
    with pytest.raises(HubAwayError, match="Consistency check failed"):
        fetch(REFERENCE)
    assert not half_written(tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    loopback.works()
    assert load_artifact(fetch(REFERENCE).folder, verify=False).card.target.arm == "large"


def test_part_of_a_probe_in_the_cache_is_no_probe(loopback: Hub) -> None:
    loopback.fails("HEAD .*/resolve/.*safetensors", status(500))
    with pytest.raises(HubAwayError, match="its cache lacks the probe"):
        fetch(REFERENCE)


def test_a_new_commit_that_cannot_be_fetched_whole_leaves_the_old_one(loopback: Hub) -> None:
    before = fetch(REFERENCE)
    repository = loopback.repositories["model", REPO]
    changed = {f"large/{name}": repository.files[f"large/{name}"] + b" " for name in ("config.json",)}
    repository.commit({**changed, "large/probe.safetensors": b"other weights"})
    loopback.fails("/resolve/.*safetensors", status(500))
    assert fetch(REFERENCE).commit == before.commit
    loopback.works()
    assert fetch(REFERENCE).commit == repository.refs["main"]
