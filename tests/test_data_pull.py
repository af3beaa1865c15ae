"""Rollouts from the Hub: the research project's, and what goes wrong on the way."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.rollout_store import METADATA, SCHEMA, write
from offline.training_set import read_training_set
from tests.support.hub import Fault, Hub, cut, status, wrong_size
from tests.support.hub_rollouts import ARMS, CONFIGS, REPO, fails, rollouts, run

# What the client does when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "rollouts.parquet", rollouts(list(ARMS)))
    return tmp_path / "rollouts.parquet"


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
