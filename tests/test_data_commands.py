"""Rollouts to and from the Hub, by the commands and the real client against a loopback Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from offline.provenance import Caveats, caveats
from offline.rollout_store import METADATA, SCHEMA, to_table, write
from offline.training_set import read_training_set
from probes import hub
from server.__main__ import main
from tests.support.hub import Fault, Hub, cut, running, status, wrong_size

# What the client does when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "ann/rollouts"
ARMS = {
    "small": {"model": "qwen", "source": "Qwen/Qwen2.5-Math-1.5B-Instruct", "temperature": 0.7, "max_tokens": 64},
    "low": {"model": "oss", "source": "openai/gpt-oss-20b", "reasoning_effort": "low", "max_tokens": 64},
    "high": {"model": "oss", "source": "openai/gpt-oss-20b", "reasoning_effort": "high", "max_tokens": 64},
}
CONFIGS = ["Qwen--Qwen2.5-Math-1.5B-Instruct", "openai--gpt-oss-20b_low", "openai--gpt-oss-20b_high"]


def row(arm: str, split: str, n: int) -> dict[str, Any]:
    correct = [(n + i) % 3 == 0 for i in range(4)]
    return {
        "problem_id": f"{split}-{n}",
        "split": split,
        "benchmark": "sums",
        "problem": f"What is {n} + {n} ({split})?",
        "formatted_prompt": f"<user>What is {n} + {n}?",
        "ground_truth": str(2 * n),
        "arm": arm,
        "model": ARMS[arm]["model"],
        "k": 4,
        "temperature": 0.7,
        "max_tokens": 64,
        "seed": 0,
        "generated_solutions": [f"\\boxed{{{2 * n if ok else 'ü'}}}" for ok in correct],
        "extracted_answers": [str(2 * n) if ok else "" for ok in correct],
        "correct": correct,
        "success_rate": sum(correct) / 4,
        "pass_at_k": float(any(correct)),
        "majority_vote_answer": "",
        "majority_vote_is_correct": sum(correct) > 2,
        "input_tokens": 10 + n,
        "output_tokens": [5, 6, 7, 8],
        "input_cost_usd_once": 1e-6,
        "total_output_cost_usd": 2e-6,
        "total_cost_usd": 3e-6,
    }


def rollouts(arms: list[str]) -> pa.Table:
    rows = [row(arm, split, n) for arm in arms for split in ("train", "validation", "test") for n in range(6)]
    return to_table(rows, {"command": "pika rollouts", "settings": {"arms": ARMS, "k": 4}})


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as there:
        there.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(hub, "WAITS_S", (0.0, 0.0))
        yield there


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "rollouts.parquet", rollouts(list(ARMS)))
    return tmp_path / "rollouts.parquet"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["data", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["data", *arguments]) == code
    *_, error = capsys.readouterr().err.splitlines()  # progress comes before
    assert error.startswith(f"pika data {arguments[0]}: ")
    return error


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


def test_one_configuration_and_one_revision(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(capsys, "push", str(file), REPO)["commit"]
    loopback.repositories["dataset", REPO].commit({f"{CONFIGS[0]}/train-00000-of-00001.parquet": b"other"})
    out = tmp_path / "low.parquet"
    run(capsys, "pull", REPO, "--config", CONFIGS[1], "--out", str(out))
    table = pq.read_table(out)
    assert set(table["arm"].to_pylist()) == {"low"}
    # `pika rollouts` would take the file for its whole run otherwise.
    assert json.loads(table.schema.metadata[METADATA]) == {"command": "pika rollouts"}
    run(capsys, "pull", REPO, "--revision", first, "--out", str(tmp_path / "old.parquet"))
    assert pq.read_table(tmp_path / "old.parquet").equals(pq.read_table(file))
    error = fails(capsys, 2, "pull", REPO, "--config", "gpt-oss-20b-low", "--out", str(tmp_path / "none.parquet"))
    assert f"no configuration 'gpt-oss-20b-low'; it has {CONFIGS[1]}" in error


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


def research_rows(split: str) -> list[dict[str, Any]]:
    return [
        {
            "problem": f"{split} {n}",
            "formatted_prompt": "p",
            "ground_truth": "1",
            "generated_solutions": [
                {"text": "a", "score": float(i < n), "input_tokens": 9, "output_tokens": 3, "output_cost_usd": 0.1}
                for i in range(2)
            ],
            "success_rate": n / 2,
            "majority_vote_is_correct": int(n == 2),
            "rating": None,
            "k": 2,
            "temperature": 1.0,
            "max_len": 131072,
        }
        for n in (0, 1, 2, 2)
    ]


def test_pulls_the_research_projects_rows(loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files: dict[str, bytes | None] = {}
    for config in CONFIGS[1:]:
        for split in ("train", "val", "test"):
            pq.write_table(pa.Table.from_pylist(research_rows(split)), tmp_path / "part.parquet")
            files[f"{config}/{split}-00000-of-00001.parquet"] = (tmp_path / "part.parquet").read_bytes()
    loopback.repository("ann/pika-math", "dataset").commit(files)
    out = tmp_path / "research.parquet"
    run(capsys, "pull", "ann/pika-math", "--benchmark", "MATH", "--out", str(out))
    table = pq.read_table(out)
    assert table.schema.equals(SCHEMA)
    training_set = read_training_set(out, CONFIGS[1:])
    assert training_set.benchmark == "MATH"
    assert training_set.success_rate[training_set.rows("validation")].T.tolist() == [[0, 0.5, 1]] * 2
    arm = training_set.arms[0]
    assert (arm.model, arm.k, arm.max_tokens, arm.mean_tokens.output) == ("openai/gpt-oss-20b_low", 2, 131072, 3)
    first = table.to_pylist()[1]
    assert (first["correct"], first["generated_solutions"]) == ([True, False], ["a", "a"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}], "has no column `problem` or `question`"),
        ([{"problem": "x"}], "tells neither success_rate nor which answers are correct"),
    ],
)
def test_other_datasets_are_refused(
    loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part.parquet")
    content = (tmp_path / "part.parquet").read_bytes()
    loopback.repository(REPO, "dataset").commit({"data/train-00000-of-00001.parquet": content})
    assert message in fails(capsys, 2, "pull", REPO, "--out", str(tmp_path / "out.parquet"))
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"part.parquet"}


FAULTS: dict[str, tuple[str, Fault, int, str]] = {
    "401": ("/api/datasets", status(401, '{"error": "no"}'), 2, "log in with `hf auth login`"),
    "404": ("/api/datasets", status(404, '{"error": "no"}'), 2, "shows no repository ann/rollouts"),
    "429": (
        "/api/datasets",
        status(429, Retry_After="3600"),
        1,
        "the Hub is away (it answers 429): nothing was written",
    ),
    "500": ("HEAD .*parquet", status(500), 1, "it answers 500"),
    "wrong size": ("HEAD .*parquet", wrong_size(9), 1, "Consistency check failed"),
}


@pytest.mark.parametrize(("where", "fault", "code", "message"), FAULTS.values(), ids=FAULTS)
def test_a_pull_that_fails_leaves_nothing(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    where: str, fault: Fault, code: int, message: str,
) -> None:  # fmt: skip
    run(capsys, "push", str(file), REPO)
    loopback.fails(where, fault)
    assert message in fails(capsys, code, "pull", REPO, "--out", str(tmp_path / "out.parquet"))
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"rollouts.parquet"}
    loopback.works()
    run(capsys, "pull", REPO, "--out", str(tmp_path / "out.parquet"))


def test_a_cut_download_goes_on(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "push", str(file), REPO)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    loopback.fails("GET /large/", cut(1050), times=1)
    run(capsys, "pull", REPO, "--out", str(tmp_path / "out.parquet"))
    assert "bytes=1000-" in {request.headers.get("range") for request in loopback.asked("GET /large/")}
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(file))


def test_a_commit_that_fails_changes_nothing(loopback: Hub, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loopback.fails("POST .*/commit/", status(500))
    assert "whole or not at all; push again" in fails(capsys, 1, "push", str(file), REPO)
    assert set(loopback.repositories["dataset", REPO].files) == {".gitattributes"}
    loopback.works()
    assert run(capsys, "push", str(file), REPO)["commit"]


def test_wrong_input(
    loopback: Hub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot read" in fails(capsys, 2, "push", str(tmp_path / "none.parquet"), REPO)
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
