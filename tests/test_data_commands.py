"""Rollouts to and from the Hub, by the commands and the real client against a loopback Hub."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from offline.provenance import Caveats, caveats
from offline.rollout_store import METADATA, write
from offline.training_set import read_training_set
from server.__main__ import main
from tests.support.hub import Hub, status
from tests.support.hub_rollouts import ARMS, CONFIGS, REPO, fails, rollouts, run

# What the client does when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "rollouts.parquet", rollouts(list(ARMS)))
    return tmp_path / "rollouts.parquet"


def test_push_and_pull_give_the_same_rows(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, "push", str(file), REPO)
    repository = loopback.repositories["dataset", REPO]
    assert repository.private
    assert done["commit"] == repository.refs["main"]
    assert len(repository.commits) == 2
    out = tmp_path / "again.parquet"
    pulled = run(capsys, "pull", REPO, "--out", str(out))
    assert pulled["commit"] == repository.refs["main"]
    assert pulled["rows"] == {config: {"train": 6, "validation": 6, "test": 6} for config in CONFIGS}
    before, after = pq.read_table(file), pq.read_table(out)
    assert after.equals(before)
    assert after.schema.metadata[METADATA] == before.schema.metadata[METADATA]
    assert after.schema.metadata[b"pika_source"] == f"hf://datasets/{REPO}@{pulled['commit']}".encode()
    assert read_training_set(out, list(ARMS)).problems == read_training_set(file, list(ARMS)).problems


def test_what_rows_say_of_themselves_comes_back(
    loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"tokens": "estimated: characters / 4", "notes": ["Guessed."], "duplicates_removed": 3}
    table = rollouts(list(ARMS))
    write(tmp_path / "converted.parquet", table.replace_schema_metadata({METADATA: json.dumps(said)}))
    run(capsys, "push", str(tmp_path / "converted.parquet"), REPO)
    run(capsys, "pull", REPO, "--out", str(tmp_path / "pulled.parquet"))
    assert caveats([tmp_path / "pulled.parquet"]) == Caveats("estimated: characters / 4", ("Guessed.",), 3)


def test_rows_from_before_there_was_a_metadata_column_are_taken(
    loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rollouts(["small"])
    pq.write_table(whole.drop_columns(["metadata"]), tmp_path / "older.parquet")
    run(capsys, "push", str(tmp_path / "older.parquet"), REPO)
    run(capsys, "pull", REPO, "--out", str(tmp_path / "pulled.parquet"))
    assert pq.read_table(tmp_path / "pulled.parquet").equals(whole)


def test_the_layout_is_the_one_that_datasets_reads(
    loopback: Hub, file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(capsys, "push", str(file), REPO)
    files = loopback.repositories["dataset", REPO].files
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == CONFIGS
    assert front["configs"][1]["data_files"] == [
        {"split": split, "path": f"openai--gpt-oss-20b_low/{split}-*"} for split in ("train", "validation", "test")
    ]
    (tmp_path / "one.parquet").write_bytes(files["openai--gpt-oss-20b_low/test-00000-of-00001.parquet"])
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    assert {(one["arm"], one["split"], one["max_len"], one["k"], one["temperature"]) for one in rows} == {
        ("low", "test", 64, 4, 0.7)
    }
    assert {type(one["majority_vote_is_correct"]) for one in rows} == {bool}


def test_more_configurations_are_added_to_a_card(
    loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.parquet", rollouts(["small"]))
    write(tmp_path / "b.parquet", rollouts(["low", "high"]))
    run(capsys, "push", str(tmp_path / "a.parquet"), REPO)
    repository = loopback.repositories["dataset", REPO]
    card = repository.files["README.md"].decode().replace("tags:", "license: mit\ntags:") + "\nBy hand.\n"
    repository.commit({"README.md": card.encode()})
    run(capsys, "push", str(tmp_path / "b.parquet"), REPO)
    card = repository.files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], [config["config_name"] for config in front["configs"]]) == ("mit", CONFIGS)
    assert card.endswith("\nBy hand.\n")
    run(capsys, "pull", REPO, "--out", str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").equals(rollouts(list(ARMS)))


def test_other_rows_are_not_overwritten_unless_told(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "push", str(file), REPO)
    assert run(capsys, "push", str(file), REPO)["commit"] is None, "nothing changed"
    table = pq.read_table(file)
    write(tmp_path / "fewer.parquet", table.slice(1))
    error = fails(capsys, 2, "push", str(tmp_path / "fewer.parquet"), REPO)
    assert f"other rows in {CONFIGS[0]}/train-00000-of-00001.parquet: --overwrite replaces them" in error
    done = run(capsys, "push", str(tmp_path / "fewer.parquet"), REPO, "--overwrite")
    assert [path for path, kind in done["files"].items() if kind == "changed"] == [
        f"{CONFIGS[0]}/train-00000-of-00001.parquet"
    ]


def test_overwriting_removes_a_splits_other_shards(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = f"{CONFIGS[1]}/train-00001-of-00002.parquet"
    loopback.repository(REPO, "dataset").commit({shard: b"old", "notes.parquet": b"kept"})
    assert "other rows in" in fails(capsys, 2, "push", str(file), REPO)
    assert run(capsys, "push", str(file), REPO, "--overwrite")["files"][shard] == "removed"
    assert set(loopback.repositories["dataset", REPO].files) >= {"notes.parquet"}
    run(capsys, "pull", REPO, "--out", str(tmp_path / "all.parquet"))
    assert pq.read_table(tmp_path / "all.parquet").equals(pq.read_table(file))


def test_dry_run(loopback: Hub, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "push", str(file), REPO, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "+- config_name: openai--gpt-oss-20b_low" in out
    assert "would be made, private" in out
    assert not loopback.repositories
    assert not loopback.asked("^(POST|PUT)")


def test_a_commit_that_fails_changes_nothing(loopback: Hub, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loopback.fails("POST .*/commit/", status(500))
    assert "whole or not at all; push again" in fails(capsys, 1, "push", str(file), REPO)
    assert set(loopback.repositories["dataset", REPO].files) == {".gitattributes"}
    loopback.works()
    assert run(capsys, "push", str(file), REPO)["commit"]


def test_wrong_input(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no file" in fails(capsys, 2, "push", str(tmp_path / "none.parquet"), REPO)
    pq.write_table(pa.table({"arm": ["a"]}), tmp_path / "other.parquet")
    assert "lacks the columns problem_id, split" in fails(capsys, 2, "push", str(tmp_path / "other.parquet"), REPO)
    assert "exists: remove it" in fails(capsys, 2, "pull", REPO, "--out", str(file))
    table = pq.read_table(file)
    split = table.column_names.index("split")
    bad = table.set_column(split, "split", pa.array(["../x"] * table.num_rows))
    pq.write_table(bad, tmp_path / "bad.parquet")
    assert "'../x' cannot be the name of a dataset's split" in fails(
        capsys, 2, "push", str(tmp_path / "bad.parquet"), REPO
    )
    run(capsys, "push", str(file), REPO)
    monkeypatch.setattr("offline.dataset_hub.MAX_BYTES", 100)
    assert "name one --config" in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "out.parquet"))
    assert main(["data", "frobnicate"]) == 2
