"""Publishing probes, and what is done with published ones, by the commands and the real client."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from offline import hub_push
from offline.model_card import repository_readme
from offline.reliability_plot import reliability_svg
from probes import hub
from probes.artifact import load_artifact, save_artifact
from probes.card import Estimate, ReliabilityBin
from probes.manifest import Entry, list_probes
from server.__main__ import main
from tests.support.hub import TOKEN, Hub, Repository, reset, status
from tests.support.probes import NANO_POOL, artifact

# What the client does when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).parents[1]
REPO = "ann/probes"
BINS = [
    ReliabilityBin(predicted=p, observed=Estimate(value=p, low=p - 0.05, high=p + 0.05), weight=1 / 3)
    for p in (0.2, 0.5, 0.9)
]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return artifact(tmp_path / "large").folder


def changed(folder: Path, **changes: Any) -> Path:
    """The probe with another card."""
    old = load_artifact(folder, verify=False)
    save_artifact(folder, old.card.model_copy(update=changes), old.probe)
    return folder


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def pushed(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["probes", "push", str(folder), REPO, *options]) == 0
    return summary(capsys)


def test_push_and_fetch(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = pushed(capsys, large)
    repository = loopback.repositories["model", REPO]
    assert repository.private
    assert [commit.message for commit in repository.commits] == ["initial commit", "Probe large"]
    assert done["commit"] == repository.refs["main"]
    names = {"large/config.json", "large/probe.safetensors", "large/README.md", "manifest.json", "README.md"}
    assert set(done["added"]) == names
    assert set(repository.files) == names | {".gitattributes"}
    fetched = hub.fetch(f"hf://{REPO}/large")
    assert load_artifact(fetched.folder, verify=False).revision == load_artifact(large).revision


def test_manifest_and_cards(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = load_artifact(large, verify=False).card
    last = card.metrics[-1].model_copy(update={"reliability": BINS})
    changed(large, metrics=[last])
    pushed(capsys, large)
    files = loopback.repositories["model", REPO].files

    manifest = json.loads(files["manifest.json"])
    assert manifest["version"] == "1.0"
    assert manifest["num_probes"] == 1
    assert manifest["probes"] == [
        {
            "name": "large",
            "model": "nano-large",
            "dataset": "running_total",
            "probe_type": "linear_eoi_probe",
            "label_type": "success_rate",
            "kind": "linear_eoi",
            "arm": "large",
            "revision": load_artifact(large).revision,
            "schema_version": 1,
        }
    ]
    readme = files["large/README.md"].decode()
    for part in (
        "one sampled answer of `nano-large`",
        "layer 1, position -1",
        "the share of correct samples (8 samples per problem)",
        "| this probe, test | 100 | .800 [.700, .900] |",
        "| baseline `tfidf`, test | 100 | .800",
        "![Reliability",
        f"probe: hf://{REPO}/large@main",
        "engine:\n  probe_models: {nano-small: FOLDER}",
        f'load_probe("hf://{REPO}/large", probe_models={{"nano-small": "FOLDER"}})',
    ):
        assert part in readme
    picture = ET.fromstring(files["large/reliability.svg"])
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == len(BINS)
    front = files["README.md"].decode().split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "pika-router"
    assert "| [large](large) | nano-large |" in files["README.md"].decode()


def test_pushing_again_changes_nothing(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(capsys, large)
    again = pushed(capsys, large)
    assert (again["commit"], again["added"], again["changed"]) == (None, [], [])
    assert len(loopback.repositories["model", REPO].commits) == 2


def test_refuses_to_overwrite_another_probe(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(capsys, large)
    changed(large, benchmark="math", dataset="math")
    capsys.readouterr()
    assert main(["probes", "push", str(large), REPO]) == 2
    error = capsys.readouterr().err
    assert "another probe stands at hf://ann/probes/large@main (they differ in benchmark, dataset)" in error
    assert "--overwrite replaces it" in error
    assert len(loopback.repositories["model", REPO].commits) == 2
    kept = pushed(capsys, large, "--name", "large-v2")
    assert "large-v2/config.json" in kept["added"]
    replaced = pushed(capsys, large, "--overwrite")
    assert set(replaced["changed"]) >= {"large/config.json", "manifest.json"}
    entries = list_probes(REPO).entries
    assert [(entry.name, entry.dataset) for entry in entries] == [("large", "math"), ("large-v2", "math")]


def test_other_weights_are_another_probe(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(capsys, large)
    artifact(large, seed=1)
    assert main(["probes", "push", str(large), REPO]) == 2
    assert "their weights differ" in capsys.readouterr().err


def test_overwriting_removes_what_the_new_probe_does_not_have(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loopback.repository(REPO).commit(
        {"large/config.json": b'{"probe_type": "x"}', "large/best_probe.joblib": b"old", "large/notes.txt": b"kept"}
    )
    done = pushed(capsys, large, "--overwrite")
    assert done["removed"] == ["large/best_probe.joblib"]
    assert set(loopback.repositories["model", REPO].files) >= {"large/notes.txt", "large/probe.safetensors"}


def test_dry_run_shows_the_diff_and_changes_nothing(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probes", "push", str(large), REPO, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "would be made, private" in out
    assert '+      "name": "large",' in out
    assert not loopback.repositories
    pushed(capsys, large)
    writes = len(loopback.asked("^(POST|PUT)"))
    changed(large, benchmark="math", dataset="math")
    assert main(["probes", "push", str(large), REPO, "--overwrite", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert '-      "dataset": "running_total",' in out
    assert '+      "dataset": "math",' in out
    result = json.loads(out.splitlines()[-1])
    assert result["commit"] is None
    assert result["unchanged"] == ["large/probe.safetensors"] or "README.md" not in result["unchanged"]
    assert len(loopback.asked("^(POST|PUT)")) == writes
    loopback.fails("GET", status(500))
    assert main(["probes", "push", str(large), REPO, "--dry-run"]) == 1
    assert "nothing was changed; push again" in capsys.readouterr().err


def test_public_when_told(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(capsys, large, "--public")
    assert not loopback.repositories["model", REPO].private


def test_what_others_wrote_stays(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The research project's repository: its manifest's entries, its own card, folders nobody listed."""
    entry = {"name": "theirs", "model": "m", "dataset": "d", "probe_type": "p", "label_type": "l", "note": "kept"}
    config = json.dumps({"model_name": "m2", "dataset": "d", "probe_type": "p", "label_type": "l"}).encode()
    loopback.repository(REPO).commit(
        {
            "manifest.json": json.dumps({"version": "1.0", "num_probes": 1, "probes": [entry], "extra": 1}).encode(),
            "README.md": b"---\nlicense: mit\n---\n\n# Ours\n\nBy hand.\n",
            "theirs/config.json": config,
            "unlisted/config.json": config,
        }
    )
    pushed(capsys, large)
    files = loopback.repositories["model", REPO].files
    manifest = json.loads(files["manifest.json"])
    assert (manifest["extra"], manifest["num_probes"]) == (1, 3)
    assert manifest["probes"][0] == entry
    assert [probe["name"] for probe in manifest["probes"]] == ["theirs", "unlisted", "large"]
    readme = files["README.md"].decode()
    assert readme.startswith("---\nlicense: mit\n---\n\n# Ours\n\nBy hand.\n")
    assert "| [theirs](theirs) | m |" in readme
    pushed(capsys, large, "--name", "another")
    again = loopback.repositories["model", REPO].files["README.md"].decode()
    assert again.count("pika probes: begin") == 1
    assert again.startswith(readme.partition("<!--")[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"\xff\xfe Ours", "README.md of ann/probes is no UTF-8 text"),
        ("manifest.json", b"[" * 10**5, "manifest.json of ann/probes is not valid JSON: maximum recursion"),
        ("manifest.json", b'"\xff"', "manifest.json of ann/probes is not valid JSON: 'utf-8' codec"),
        ("large/config.json", b"[" * 10**5, "another probe stands at hf://ann/probes/large"),
    ],
)
def test_what_cannot_be_read_is_named_and_stays(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    repository = loopback.repository(REPO)
    repository.commit({name: content})
    assert main(["probes", "push", str(large), REPO]) == 2
    assert message in capsys.readouterr().err
    assert repository.files[name] == content


def test_a_push_that_somebody_was_quicker_than_keeps_both(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed(capsys, large)

    def quicker(repository: Repository) -> None:
        manifest = json.loads(repository.files["manifest.json"])
        config = repository.files["large/config.json"]
        manifest["probes"].append({**manifest["probes"][0], "name": "theirs"})
        repository.commit({"manifest.json": json.dumps(manifest).encode(), "theirs/config.json": config})

    loopback.before_commit = quicker
    done = pushed(capsys, large, "--name", "mine")
    assert done["commit"] == loopback.repositories["model", REPO].refs["main"]
    assert [entry.name for entry in list_probes(REPO).entries] == ["large", "theirs", "mine"]


def test_a_repository_that_never_rests(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "ATTEMPTS", 2)
    loopback.fails("POST .*/commit/", status(412, '{"error": "A commit has happened since."}'))
    assert main(["probes", "push", str(large), REPO]) == 2
    assert "changed 2 times before the probe was committed" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [status(500), status(503), reset], ids=["500", "503", "reset"])
@pytest.mark.parametrize("where", ["POST .*/commit/", "POST /api/repos/create", "POST /api/validate-yaml"])
def test_a_hub_that_fails_in_between(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str], fault: Any, where: str
) -> None:
    loopback.fails(where, fault)
    assert main(["probes", "push", str(large), REPO]) == 1
    error = capsys.readouterr().err
    assert "the Hub is away" in error
    assert "there whole or not at all; push again" in error
    for repository in loopback.repositories.values():
        assert set(repository.files) == {".gitattributes"}
    loopback.works()
    assert pushed(capsys, large)["commit"] == loopback.repositories["model", REPO].refs["main"]


def test_an_upload_that_fails_once(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loopback.fails("PUT /upload/", status(500), times=1)
    pushed(capsys, large)
    assert len(loopback.asked("PUT /upload/")) == 2


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("POST /api/repos/create", 403, "your token may not do this with ann/probes"),
        ("POST /api/repos/create", 401, "if it is private, log in with"),
        ("POST .*/commit/", 403, "your token may not do this with ann/probes"),
        ("POST .*/commit/", 400, "the Hub answers 400 for ann/probes"),
    ],
)
def test_a_hub_that_refuses(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str], where: str, code: int, message: str
) -> None:
    loopback.fails(where, status(code, '{"error": "no"}'))
    assert main(["probes", "push", str(large), REPO]) == 2
    assert message in capsys.readouterr().err


def test_without_a_token(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["probes", "push", str(large), REPO]) == 2
    assert "log in with `hf auth login` or set HF_TOKEN" in capsys.readouterr().err


def test_pickles_are_not_published(loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "legacy"
    folder.mkdir()
    (folder / "best_probe.joblib").write_bytes(b"")
    assert main(["probes", "push", str(folder), REPO]) == 2
    assert "convert it with `pika probes convert`" in capsys.readouterr().err


def test_download(loopback: Hub, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(capsys, large)
    out = tmp_path / "new/place"
    assert main(["probes", "download", f"hf://{REPO}/large", "--out", str(out)]) == 0
    assert summary(capsys)["commit"] == loopback.repositories["model", REPO].refs["main"]
    assert {file.name: (file.read_bytes(), file.is_symlink()) for file in out.iterdir()} == {
        file.name: (file.read_bytes(), False) for file in large.iterdir()
    }
    assert main(["probes", "download", f"hf://{REPO}/large", "--out", str(out)]) == 2
    assert "exists: remove it" in capsys.readouterr().err


def test_pull_a_probe_a_repository_and_a_revision(
    loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pushed(capsys, large)["commit"]
    second = pushed(capsys, large, "--name", "other")["commit"]
    for targets, expected in (
        ([REPO], [("large", second), ("other", second)]),
        ([f"hf://{REPO}/large@{first}"], [("large", first)]),
        ([f"hf://{REPO}/large", "--revision", first], [("large", first)]),
        ([f"hf://{REPO}/large", f"hf://{REPO}/large@main"], [("large", second)]),
    ):
        assert main(["probes", "pull", *targets]) == 0
        found = summary(capsys)["pulled"]
        assert [(one["reference"], one["from_cache"]) for one in found] == [
            (f"hf://{REPO}/{name}@{commit}", False) for name, commit in expected
        ]
    loopback.fails("", status(503))
    assert main(["probes", "pull", f"hf://{REPO}/large"]) == 0
    assert summary(capsys)["pulled"][0]["from_cache"]
    assert main(["probes", "pull"]) == 2


def test_pull_what_a_configuration_names(
    loopback: Hub, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = pushed(capsys, large)["commit"]
    pool = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    pool["policy"] = {"name": "utility", "lambda": 0.1}
    for name, arm in pool["arms"].items():
        arm["probe"] = f"hf://{REPO}/large" if name == "nano-large" else str(large)
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(pool))
    assert main(["probes", "pull", "--config", str(tmp_path / "pool.yaml")]) == 0
    assert [one["commit"] for one in summary(capsys)["pulled"]] == [commit]


def test_show(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = pushed(capsys, large)["commit"]
    assert main(["probes", "show", f"hf://{REPO}/large", "--json"]) == 0
    shown = summary(capsys)
    assert (shown["commit"], shown["card"]["target"]["arm"]) == (commit, "large")
    assert main(["probes", "show", str(large)]) == 0
    out = capsys.readouterr().out
    assert "success before generation" in out
    assert json.loads(out.splitlines()[-1])["revision"] == load_artifact(large).revision


def test_verify(loopback: Hub, large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probes", "verify", str(large)]) == 0
    assert summary(capsys)["checks"]["tokenizer"] == "ok"

    pass_ = load_artifact(large, verify=False).card.pass_
    assert pass_ is not None
    changed(large, pass_=pass_.model_copy(update={"probe_model": "../nano-small"}))
    pushed(capsys, large)
    # The path in the card leads nowhere from the Hub's cache.
    assert main(["probes", "verify", f"hf://{REPO}/large"]) == 1
    assert summary(capsys)["checks"]["probe-model"] == "no"
    model = str(NANO_POOL / "nano-small")
    assert main(["probes", "verify", f"hf://{REPO}/large", "--probe-model", model]) == 0
    assert summary(capsys)["ok"]

    recipe = pass_.recipe.model_copy(update={"chat_template_sha256": "0" * 64})
    changed(large, pass_=pass_.model_copy(update={"recipe": recipe}), canary_token_ids=[1, 2, 3])
    assert main(["probes", "verify", str(large)]) == 1
    checks = summary(capsys)["checks"]
    assert (checks["chat-template"], checks["tokenizer"], checks["dtype"]) == ("no", "no", "ok")
    assert main(["probes", "verify", str(large), "--allow-mismatch", "tokenizer"]) == 1
    both = ["--allow-mismatch", "tokenizer", "--allow-mismatch", "chat-template"]
    assert main(["probes", "verify", str(large), *both]) == 0
    assert summary(capsys)["checks"]["tokenizer"] == "allowed"


def test_verify_says_what_is_wrong_with_the_files(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (large / "probe.safetensors").write_bytes(b"no safetensors")
    assert main(["probes", "verify", str(large)]) == 1
    assert summary(capsys)["checks"] == {"files": "no"}


def test_the_token_is_never_said(loopback: Hub, large: Path, tmp_path: Path) -> None:
    """The commands as they are run, with the client's own debug output."""
    home = tmp_path / "home"
    environment = {**os.environ, **loopback.environment(home), "PYTHONPATH": str(ROOT), "HF_DEBUG": "1"}

    def pika(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "server", "probes", *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    done = [pika("push", str(large), REPO), pika("pull", REPO)]
    loopback.fails("/resolve/|/api/models", status(403, '{"error": "forbidden"}'))
    done.append(pika("pull", f"hf://{REPO}/large"))
    assert [one.returncode for one in done] == [0, 0, 2], done[1].stderr
    assert not [one for one in done if TOKEN in one.stdout + one.stderr]
    # It went where it belongs, and into no file.
    assert loopback.asked("POST .*/commit/")[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert not [file for file in home.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


def test_cards_hold_what_they_are_given() -> None:
    entry = Entry(name="a|b", model="<script>alert(1)</script>", dataset="two\nlines")
    text = repository_readme([entry], REPO, None)
    assert "a\\|b" in text
    assert "<script>" not in text
    assert "two lines" in text
    picture = reliability_svg([BINS[0].model_copy(update={"predicted": 7.0})], "<&>")
    ET.fromstring(picture)
