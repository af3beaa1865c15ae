"""Probes from the Hub, with the real client against a loopback Hub that misbehaves on demand."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes import hub
from probes.artifact import load_artifact
from probes.base import ProbeError
from probes.hub import Reference, fetch, parse
from probes.hub_errors import HubAwayError
from probes.reference import load_probe
from tests.support import hub_http
from tests.support.hub import TOKEN, Fault, Hub, cut, not_the_hub, reset, running, stall, status, wrong_size
from tests.support.probes import artifact

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
REPO = "ann/probes"
REFERENCE = f"hf://{REPO}/large"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("probe") / "large").folder


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    """A Hub with one private repository of one probe, which this process uses."""
    with running() as there:
        there.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(hub, "WAITS_S", (0.0, 0.0))
        files = {f"large/{file.name}": file.read_bytes() for file in folder.iterdir()}
        there.repository(REPO, private=True).commit({**files, "README.md": b"# probes", "large/notes.txt": b"mine"})
        yield there


def half_written(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.name.endswith(".incomplete") or ".tmp" in path.name]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf://ann/probes/large", Reference("ann/probes", "large", "main")),
        ("hf://ann/probes/v2/large@main", Reference("ann/probes", "v2/large", "main")),
        ("hf://ann/probes@v1.0", Reference("ann/probes", "", "v1.0")),
        ("hf://ann/probes/large@refs/pr/4", Reference("ann/probes", "large", "refs/pr/4")),
        (
            "hf://CoffeeGitta/pika-probes/Qwen2.5-7B--MATH--linear_eoi_probe--success_rate--k5-t0.7@" + "a" * 40,
            Reference("CoffeeGitta/pika-probes", "Qwen2.5-7B--MATH--linear_eoi_probe--success_rate--k5-t0.7", "a" * 40),
        ),
    ],
)
def test_parses(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "ann/probes/large",
        "hf://ann",
        "hf:///probes/large",
        "hf://ann/../large",
        "hf://ann/probes/../../etc",
        "hf://ann/probes//large",
        "hf://ann/probes/large/",
        "hf://ann/probes/.git",
        "hf://ann/probes/la rge",
        "hf://ann/probes/large?x=1",
        "hf://ann/probes/large\n",
        "hf://ann/probes/large@",
        "hf://ann/probes/large@../main",
        "hf://ann/probes/large@a@b",
        "hf://ann/probes/large@-f",
        "hf://datasets/ann/rollouts",
        "hf://an--n/probes",
    ],
)
def test_refuses_what_is_no_reference(text: str) -> None:
    with pytest.raises(ProbeError, match=r"hf://owner/repo/folder\[@revision\]"):
        parse(text)


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
