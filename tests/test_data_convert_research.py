"""Rollouts as the research project's files, and those as rollouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from offline.training_set import read_training_set
from server.config import load
from tests.support.convert import PRICES, answers, fails, run, write

SHARED = Path(__file__).parents[2] / "shared/data"
NANO = Path(__file__).parents[1] / "offline" / "nano_pool" / "rollouts.parquet"


def few_rollouts(folder: Path) -> Path:
    """Some of the nano pool's, as `pika rollouts` wrote them."""
    table = pq.read_table(NANO)
    ids = [f"{split}-{n}" for split in ("train-0", "validation-0", "test-0") for n in range(8)]
    few = table.filter(pc.is_in(table["problem_id"], pa.array(ids)))
    pq.write_table(few, folder / "nano.parquet")
    return folder / "nano.parquet"


KEPT = (
    "problem_id", "split", "benchmark", "problem", "formatted_prompt", "ground_truth", "k", "temperature", "max_tokens",
    "generated_solutions", "correct", "success_rate", "pass_at_k", "majority_vote_answer", "majority_vote_is_correct",
    "input_tokens", "output_tokens",
)  # fmt: skip
COSTS = ("input_cost_usd_once", "total_output_cost_usd", "total_cost_usd")


def test_there_and_back_loses_nothing_that_both_forms_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = few_rollouts(tmp_path)
    before = pq.read_table(file).to_pylist()
    summary, err = run(capsys, file, "--out", tmp_path / "data")
    assert "no place for the arms' own names, the extracted answers, seeds and metadata" in err
    first = before[0]
    name = f"train_maxlen_{first['max_tokens']}_k_{first['k']}_temp_{first['temperature']}.parquet"
    path = tmp_path / "data" / "nano" / first["model"] / "running_total" / name
    assert str(path) in summary["files"]
    theirs = pq.read_table(path).to_pylist()
    assert [row["idx"] for row in theirs] == list(range(len(theirs)))
    assert theirs[0]["model_name"] == first["model"]
    assert [one["score"] for one in theirs[0]["generated_solutions"]] == [float(one) for one in first["correct"]]
    assert {row["split"] for path in summary["files"] for row in pq.read_table(path).to_pylist()} == {
        "train",
        "val",
        "test",
    }
    run(capsys, tmp_path / "data", "--out", tmp_path / "back.parquet")

    def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["model"], row["split"], row["problem_id"]

    after = {key(row): row for row in pq.read_table(tmp_path / "back.parquet").to_pylist()}
    assert len(after) == len(before) > 0
    for row in before:
        again = after[key(row)]
        assert {name: again[name] or "" for name in KEPT} == {name: row[name] or "" for name in KEPT}
        assert [again[name] for name in COSTS] == pytest.approx([row[name] for name in COSTS])


def test_rollouts_become_files_that_were_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = few_rollouts(tmp_path)
    assert "these are rollouts already" in fails(capsys, file, "--out", tmp_path / "again.parquet")
    run(capsys, file, "--out", tmp_path / "data")
    assert "exists: remove it, or name another --out" in fails(capsys, file, "--out", tmp_path / "data")
    mixed = pq.read_table(file).to_pylist()
    mixed[1]["max_tokens"] += 1
    write(tmp_path / "mixed.parquet", mixed)
    assert "mixes max_tokens" in fails(capsys, tmp_path / "mixed.parquet", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def research_rows(split: str) -> list[dict[str, Any]]:
    """As the research project's script writes them where it knows no prices; it shuffles no columns."""
    return [
        {
            "idx": n,
            "problem": f"{split} {n}",
            "formatted_prompt": f"<user>{split} {n}",
            "ground_truth": "1",
            "generated_solutions": [
                {
                    "text": "a",
                    "score": float(i < n % 3),
                    "input_tokens": 9,
                    "output_tokens": 3 + i,
                    "output_cost_usd": None,
                }
                for i in range(2)
            ],
            "total_cost_usd": float("nan"),
            "input_cost_usd_once": float("nan"),
            "success_rate": (n % 3) / 2,
            "pass_at_k": float(n % 3 > 0),
            "model_name": "openai/gpt-oss-20b",
            "task": "MATH",
            "split": split,
        }
        for n in (*range(6), 5)
    ]


def test_the_research_projects_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for effort in ("low", "high"):
        folder = tmp_path / "data" / "openai" / f"gpt-oss-20b_{effort}" / "MATH"
        folder.mkdir(parents=True)
        for split in ("train", "val", "test"):
            write(folder / f"{split}_maxlen_131072_k_2_temp_1.0.parquet", research_rows(split))
    out, pool = tmp_path / "rollouts.parquet", tmp_path / "pool.yaml"
    low, high = "openai--gpt-oss-20b_low", "openai--gpt-oss-20b_high"
    prices = ("--price", f"{low}=0.05/0.2", "--price", f"{high}=0.05/0.2")
    summary, _ = run(capsys, tmp_path / "data", "--out", out, "--pool", pool, *prices)
    assert summary["problems"] == {"train": 6, "validation": 6, "test": 6}
    assert summary["tokens"] == "recorded"
    assert summary["duplicates_removed"] == 3  # of each split's, which repeats one
    data = read_training_set(out, list(load(pool).arms))
    assert data.benchmark == "MATH"
    assert {(arm.model, arm.k, arm.temperature, arm.max_tokens) for arm in data.arms} == {
        (f"openai/gpt-oss-20b_{effort}", 2, 1.0, 131072) for effort in ("low", "high")
    }
    assert data.success_rate[data.rows("test")].T.tolist() == [[0, 0.5, 1, 0, 0.5, 1]] * 2
    assert pq.read_table(out)["total_cost_usd"][0].as_py() == pytest.approx((9 * 0.05 + 7 * 0.2) / 1e6)


def test_a_problem_that_is_trained_on_for_one_arm_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": f"Q {n}", "success_rate": n % 2, "k": 1, "model": model, "split": "test" if n == late else "train"}
        for model, late in (("a/a", 8), ("b/b", 9))
        for n in range(40)
    ]
    file, out = write(tmp_path / "rates.jsonl", rows), tmp_path / "out.parquet"
    message = fails(capsys, file, "--out", out)
    assert "is in test for one arm and in train for another" in message
    assert "--split makes new splits for all" in message
    run(capsys, file, "--out", out, "--split", "train=.5,validation=.25,test=.25")
    read_training_set(out, ["a--a", "b--b"])


def test_samples_without_token_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": "12345", "generated_solutions": [{"text": "a" * 9, "score": 1.0}], "split": "train"}]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.parquet"
    summary, _ = run(capsys, file, "--out", out, "--model", "a/m", "--price", "a/m=1/1")
    assert summary["tokens"] == "estimated: characters / 4"
    [row] = pq.read_table(out).to_pylist()
    assert (row["input_tokens"], row["output_tokens"], row["correct"]) == (2, [3], [True])


def test_that_tokens_were_estimated_is_not_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = run(capsys, write(tmp_path / "a.jsonl", answers()), "--out", tmp_path / "1.parquet", *PRICES)
    run(capsys, tmp_path / "1.parquet", "--out", tmp_path / "data")
    again, _ = run(capsys, tmp_path / "data", "--out", tmp_path / "2.parquet")
    assert again["tokens"] == "estimated: characters / 4"
    assert again["notes"] == first["notes"]


def test_success_rates_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Q {n}", "answer": "7", "success_rate": n % 5 / 4, "split": "train"} for n in range(20)]
    file, out = write(tmp_path / "rates.parquet", rows), tmp_path / "out.parquet"
    assert "tell the model: give --model OWNER/NAME" in fails(capsys, file, "--out", out)
    assert "nothing tells how many samples a success rate is of: give --k N" in fails(
        capsys, file, "--out", out, "--model", "owner/m"
    )
    words = (
        "--out",
        out,
        "--model",
        "owner/m",
        "--price",
        "owner/m=1/1",
        "--split",
        "train=.5,validation=.25,test=.25",
    )
    assert "is not that of 3 samples" in fails(capsys, file, *words, "--k", 3)
    summary, _ = run(capsys, file, *words, "--k", 4)
    assert summary["tokens"] == "estimated: characters / 4"
    table = pq.read_table(out).to_pylist()
    assert [sum(row["correct"]) / row["k"] for row in table] == [row["success_rate"] for row in table]
    assert {row["ground_truth"] for row in table} == {"7"}
    read_training_set(out, ["owner--m"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_the_golden_success_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "research/tiny", "--k", 5, "--temperature", 0.7, "--out", tmp_path / "golden.parquet")
    summary, _ = run(capsys, SHARED / "golden" / "dataset.parquet", *words)
    assert summary["problems"] == {"train": 400, "validation": 100, "test": 200}
    golden = pq.read_table(SHARED / "golden" / "dataset.parquet")
    ours = pq.read_table(tmp_path / "golden.parquet")
    for name in ("success_rate", "formatted_prompt"):
        assert ours[name].to_pylist() == golden[name].to_pylist()
    assert ours["majority_vote_is_correct"].to_pylist() == [
        one == 1 for one in golden["majority_vote_is_correct"].to_pylist()
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_six_real_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = SHARED / "gsm8k_six_models.parquet", tmp_path / "gsm8k.parquet"
    theirs = pq.read_table(source)
    models = theirs["model"].unique().to_pylist()
    prices = [word for model in models for word in ("--price", f"{model}=1/1")]
    summary, _ = run(capsys, source, "--out", out, "--pool", tmp_path / "pool.yaml", *prices)
    assert sum(summary["problems"].values()) == 1319
    ours = pq.read_table(out)
    for model in models:
        right = pc.mean(theirs.filter(pc.equal(theirs["model"], model))["is_correct"].cast(pa.int8())).as_py()
        assert pc.mean(ours.filter(pc.equal(ours["model"], model))["success_rate"]).as_py() == pytest.approx(right)
    assert len(load(tmp_path / "pool.yaml").arms) == 6
