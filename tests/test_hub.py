"""Probes from the Hub, with the real client against a loopback Hub that misbehaves on demand."""

from pathlib import Path

import pytest

from probes import hub
from probes.artifact import load_artifact
from probes.base import ProbeError
from probes.hub import fetch
from probes.hub_errors import HubAwayError
from probes.reference import load_probe
from tests.support import hub_http
from tests.support.hub import TOKEN, Hub, status
from tests.support.hub_probe import REFERENCE, REPO, publish
from tests.support.probes import artifact

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("probe") / "large").folder


@pytest.fixture
def loopback(loopback: Hub, folder: Path) -> Hub:
    publish(loopback, folder)
    return loopback


def test_fetches_one_commit_into_the_hubs_cache(loopback: Hub, folder: Path, tmp_path: Path) -> None:
    fetched = fetch(REFERENCE)
    assert (fetched.repo, fetched.path, fetched.from_cache) == (REPO, "large", False)
    assert fetched.commit == loopback.repositories["model", REPO].refs["main"]
    assert fetched.folder.is_relative_to(tmp_path / "home/hub")
    # What is no part of a probe is not fetched.
    assert {file.name: file.read_bytes() for file in fetched.folder.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
    assert load_artifact(fetched.folder, verify=False).revision == load_artifact(folder, verify=False).revision


def test_the_token_goes_to_the_hub_alone(loopback: Hub) -> None:
    fetch(REFERENCE)
    elsewhere = loopback.asked("GET /large/")
    assert elsewhere
    assert not [request for request in elsewhere if "authorization" in request.headers]
    assert {request.headers["authorization"] for request in loopback.asked("/api/")} == {f"Bearer {TOKEN}"}


def test_fetches_a_branch_a_tag_and_a_commit(loopback: Hub) -> None:
    repository = loopback.repositories["model", REPO]
    first = repository.refs["main"]
    repository.refs["v1"] = repository.refs["refs/pr/1"] = first
    second = repository.commit({"large/config.json": repository.files["large/config.json"] + b"\n"})
    assert fetch(REFERENCE).commit == fetch(f"{REFERENCE}@{second}").commit == second
    assert fetch(f"{REFERENCE}@v1").commit == fetch(f"{REFERENCE}@refs/pr/1").commit == first
    # Both stay: a gateway that was pinned to the first one reads what it was pinned to.
    assert fetch(f"{REFERENCE}@{first}").folder != fetch(REFERENCE).folder


def test_a_repository_may_be_one_probe(loopback: Hub, folder: Path) -> None:
    loopback.repository("ann/one").commit({file.name: file.read_bytes() for file in folder.iterdir()})
    fetched = fetch("hf://ann/one")
    assert (fetched.path, fetched.folder.name) == ("", fetched.commit)
    loopback.fails("", status(503))
    assert fetch("hf://ann/one").commit == fetched.commit


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no shared data")
def test_fetches_the_research_projects_folders(loopback: Hub) -> None:
    files = {str(file.relative_to(GOLDEN)): file.read_bytes() for file in GOLDEN.glob("medium--*/*")}
    loopback.repository("CoffeeGitta/pika-probes").commit({**files, "manifest.json": b"{}"})
    for name in {path.partition("/")[0] for path in files}:
        fetched = fetch(f"hf://CoffeeGitta/pika-probes/{name}")
        assert load_probe(fetched.folder, verify=False).card.probe_name == name
        loopback.fails("", status(503))
        assert fetch(f"hf://CoffeeGitta/pika-probes/{name}").from_cache
        loopback.works()


def test_a_hub_that_tells_sizes_in_the_tree_alone(loopback: Hub) -> None:
    loopback.sizes_in_info = False
    assert fetch(REFERENCE).commit == loopback.repositories["model", REPO].refs["main"]
    assert len(loopback.asked("/tree/")) == 2, "the tree has two pages"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf://ann/nothing/large", "shows no repository ann/nothing: check the name; if it is private, log in with"),
        (f"hf://{REPO}/large@v9", "has no revision 'v9': name a branch, a tag or a commit"),
        (f"hf://{REPO}/larg", "no probe folder 'larg': 'large' would be near"),
        (f"hf://{REPO}", "no probe at its top: 'large' would be there"),
    ],
)
def test_says_what_is_not_there(loopback: Hub, reference: str, message: str) -> None:
    with pytest.raises(ProbeError, match="(?s)" + message) as caught:
        fetch(reference)
    assert not isinstance(caught.value, HubAwayError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_is_no_reason_to_use_the_cache(loopback: Hub, code: int) -> None:
    fetch(REFERENCE)
    loopback.fails("GET /api/models", status(code, '{"error": "not for you"}'))
    with pytest.raises(ProbeError, match="hf auth login") as caught:
        fetch(REFERENCE)
    assert not isinstance(caught.value, HubAwayError)


def test_private_and_gated_without_a_token(loopback: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ProbeError, match="if it is private, log in with `hf auth login` or set HF_TOKEN"):
        fetch(REFERENCE)
    loopback.repositories["model", REPO].private = False
    loopback.repositories["model", REPO].gated = True
    with pytest.raises(ProbeError, match="is gated: ask for access on its page"):
        fetch(REFERENCE)


def test_a_wrong_token_is_named_as_such(loopback: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ProbeError, match="Invalid credentials") as caught:
        fetch(REFERENCE)
    assert "hf_wrong" not in str(caught.value)


def test_a_probe_that_is_fetched_anew_does_not_hide_the_others(loopback: Hub) -> None:
    repository = loopback.repositories["model", REPO]
    files = {name.replace("large/", "v2/large/"): content for name, content in repository.files.items()}
    repository.commit(dict(files))
    first = fetch(REFERENCE)
    repository.commit({"README.md": b"later"})
    second = fetch(f"hf://{REPO}/v2/large")
    loopback.fails("", status(503))
    assert fetch(REFERENCE).commit == first.commit
    assert fetch(f"hf://{REPO}/v2/large").commit == second.commit != first.commit


def test_reads_what_another_tool_put_into_the_cache(loopback: Hub) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(REPO)) / "large"
    loopback.fails("", status(503))
    fetched = fetch(REFERENCE)
    assert (fetched.folder, fetched.from_cache) == (folder, True)


def test_the_clients_own_tools_read_the_cache(loopback: Hub) -> None:
    from huggingface_hub import scan_cache_dir

    commit = fetch(REFERENCE).commit
    info = scan_cache_dir()
    assert not info.warnings
    assert [revision.commit_hash for repository in info.repos for revision in repository.revisions] == [commit]


def test_files_over_the_limits_are_refused_before_they_are_fetched(
    loopback: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.FILE_LIMITS, "probe.safetensors", 100)
    with pytest.raises(ProbeError, match=r"probe.safetensors of ann/probes has \d+ bytes, more than the 100 allowed"):
        fetch(REFERENCE)
    assert not loopback.asked("/resolve/")
    assert not loopback.asked("/large/")


@pytest.mark.parametrize("cached", [False, True])
def test_a_listing_that_tells_too_small_a_size(loopback: Hub, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    from huggingface_hub import snapshot_download

    repository = loopback.repositories["model", REPO]
    repository.commit({"large/config.json": b" " * (hub.FILE_LIMITS["config.json"] + 1)})
    if cached:
        snapshot_download(REPO)
    loopback.requests.clear()
    tree_entry = hub_http.tree_entry
    monkeypatch.setattr(hub_http, "tree_entry", lambda path, content: tree_entry(path, content) | {"size": 100})
    with pytest.raises(
        ProbeError, match=r"large/config.json of ann/probes has 4,194,305 bytes, more than the 4,194,304"
    ):
        fetch(REFERENCE)
    assert not loopback.asked("GET .*/resolve/")


@pytest.mark.parametrize(
    "config",
    [
        b'{"files": 5}',
        b'{"files": {"config.json": 1}}',
        b'{"files": [["config.json"], 5]}',
        b'{"files": ["' + b"x" * 5000 + b'"]}',
        b'{"files": ["../../x"]}',
        b"[]",
        b"[" * 10**5,
        b'"\xff"',
    ],
    ids=lambda config: config[:30].decode("latin-1"),
)
def test_a_bad_card_in_the_cache_does_not_outlast_its_mending(loopback: Hub, config: bytes) -> None:
    repository = loopback.repositories["model", REPO]
    good = repository.files["large/config.json"]
    repository.commit({"large/config.json": config})
    fetch(REFERENCE)
    for _ in range(2):
        with pytest.raises(ProbeError, match=r"config.json"):
            load_probe(REFERENCE, verify=False)
    mended = repository.commit({"large/config.json": good})
    assert load_probe(REFERENCE, verify=False).revision == mended


def test_a_cache_that_cannot_be_written(loopback: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file/hub"))
    with pytest.raises(ProbeError, match=r"the Hub's cache: .*HF_HOME") as caught:
        fetch(REFERENCE)
    assert not isinstance(caught.value, HubAwayError)
