"""The list of a repository's probes, with the real client against a loopback Hub."""

import json
from pathlib import Path

import pytest

from probes.base import ProbeError
from probes.hub_errors import HubAwayError
from probes.manifest import list_probes
from server.__main__ import main
from tests.support.hub import Hub, status

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
REPO = "ann/probes"
ENTRIES = [
    {
        "name": f"{model}--MATH--{kind}--success_rate--k5-t0.7",
        "model": model,
        "dataset": "MATH",
        "probe_type": kind,
        "label_type": "success_rate",
    }
    for model in ("openai/gpt-oss-20b_low", "Qwen/Qwen2.5-Math-7B-Instruct")
    for kind in ("linear_eoi_probe", "tfidf_probe")
]
MANIFEST = {"version": "1.0", "generated_at": "2026-01-01T00:00:00", "num_probes": 4, "probes": ENTRIES}


@pytest.fixture
def loopback(loopback: Hub) -> Hub:
    loopback.repository(REPO).commit({"manifest.json": json.dumps(MANIFEST).encode()})
    return loopback


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["probes", "list", *options]) == 0
    return [probe["name"] for probe in json.loads(capsys.readouterr().out.splitlines()[-1])["probes"]]


def test_lists_by_the_research_projects_manifest(loopback: Hub) -> None:
    found = list_probes(REPO)
    assert found.commit == loopback.repositories["model", REPO].refs["main"]
    assert [entry.model_dump(exclude_none=True) for entry in found.entries] == ENTRIES


def test_filters(loopback: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry["name"] for entry in ENTRIES]
    assert listed(capsys, REPO) == names
    assert listed(capsys, REPO, "--model", "gpt-oss-20b") == names[:2]
    assert listed(capsys, REPO, "--probe-type", "tfidf", "--dataset", "math") == [names[1], names[3]]
    assert listed(capsys, REPO, "--probe-type", "linear_eoi_probe", "--model", "qwen") == [names[2]]
    assert listed(capsys, REPO, "--dataset", "gsm8k") == []


def test_lists_folders_where_there_is_no_manifest(loopback: Hub) -> None:
    config = {"model_name": "m", "dataset": "d", "probe_type": "p", "label_type": "l", "k": 5}
    loopback.repository("ann/plain").commit(
        {"one/config.json": json.dumps(config).encode(), "deep/two/config.json": b"[" * 10**5, "three/readme": b""}
    )
    found = list_probes("ann/plain")
    assert [(entry.name, entry.model) for entry in found.entries] == [("deep/two", ""), ("one", "m")]


@pytest.mark.parametrize("content", [b"[" * 10**5, b'"\xff"'])
@pytest.mark.parametrize("name", ["manifest.json", "large/config.json"])
def test_a_folder_with_damaged_json(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / name).write_bytes(content)
    assert main(["probes", "list", str(tmp_path)]) == 2
    assert f"{name} is not valid JSON" in capsys.readouterr().err


def test_a_revision(loopback: Hub) -> None:
    repository = loopback.repositories["model", REPO]
    repository.refs["v1"] = repository.refs["main"]
    repository.commit({"manifest.json": json.dumps({**MANIFEST, "probes": ENTRIES[:1]}).encode()})
    assert len(list_probes(REPO).entries) == 1
    assert len(list_probes(REPO, "v1").entries) == 4


def test_the_cache_stands_in(loopback: Hub) -> None:
    before = list_probes(REPO)
    loopback.fails("", status(503))
    assert list_probes(REPO).from_cache
    assert list_probes(REPO).entries == before.entries
    with pytest.raises(HubAwayError, match="cannot list ann/other: the Hub is away"):
        list_probes("ann/other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "is no manifest of probes"),
        (b"{", "is not valid JSON"),
        (b'{"probes":' + b"[" * 10**5, "manifest.json of ann/probes is not valid JSON: maximum recursion"),
        (b'{"probes": "\xff"}', "manifest.json of ann/probes is not valid JSON: 'utf-8' codec"),
        (b'{"probes": [{"model": "m"}]}', "manifest.json of ann/probes: name: Field required"),
        (b'{"probes": {}}', "is no manifest of probes"),
    ],
)
def test_a_damaged_manifest(loopback: Hub, content: bytes, message: str) -> None:
    loopback.repositories["model", REPO].commit({"manifest.json": content})
    with pytest.raises(ProbeError, match=message):
        list_probes(REPO)


def test_a_manifest_that_is_too_large_is_not_fetched(loopback: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.manifest.MANIFEST_LIMIT", 100)
    with pytest.raises(ProbeError, match="more than the 100 allowed: not taken"):
        list_probes(REPO)
    assert not loopback.asked("/resolve/")


def test_names_cannot_command_the_terminal(loopback: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {**ENTRIES[0], "name": "a\x1b]0;owned\x07b", "model": "[red]m[/red]"}
    loopback.repositories["model", REPO].commit({"manifest.json": json.dumps({"probes": [entry]}).encode()})
    assert main(["probes", "list", REPO]) == 0
    out = capsys.readouterr().out
    assert "\x1b]" not in out
    assert "\x07" not in out
    assert "[red]m" in out


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="no shared data")
def test_lists_the_golden_folder(capsys: pytest.CaptureFixture[str]) -> None:
    names = [probe["name"] for probe in json.loads((GOLDEN / "manifest.json").read_bytes())["probes"]]
    assert sorted(listed(capsys, str(GOLDEN), "--probe-type", "linear_eoi")) == sorted(names)


@pytest.mark.parametrize("repo", ["ann", "hf://ann/probes/large", "ann/../x"])
def test_what_is_no_repository(repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probes", "list", repo]) == 2
    assert capsys.readouterr().err.startswith("pika probes list: ")
