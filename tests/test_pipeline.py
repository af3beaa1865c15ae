"""`pika run`: steps run when something changed, and a killed chain goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from offline.pipeline import main
from probes.artifact import load_artifact
from tests.support.probes import NANO_POOL
from tests.support.processes import until

pytestmark = pytest.mark.timeout(600)  # many processes, each of which loads its libraries

ROOT = Path(__file__).parents[1]
QUICK = NANO_POOL / "quick"
PROBLEMS = {"train": 200, "validation": 120, "test": 100}
CHAIN: dict[str, Any] = {
    "pool": "pool.yaml",
    "train": {"data": "rollouts.parquet", "kind": "tfidf", "out": "probes"},
    "tune": {"data": "rollouts.parquet", "policies": ["utility"], "target": "accuracy=0.85"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A chain, its pool and its rollouts."""
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    parts = [rows.head(PROBLEMS[str(split)]) for (_, split), rows in whole.groupby(["arm", "split"], sort=False)]
    pd.concat(parts).to_parquet(tmp_path / "rollouts.parquet")
    shutil.copy(QUICK / "pool.yaml", tmp_path / "pool.yaml")
    write(tmp_path, CHAIN)
    return tmp_path


def write(folder: Path, chain: dict[str, Any]) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(chain, sort_keys=False))
    return file


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(folder / "run.yaml")]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return summary


def would_run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main([str(folder / "run.yaml"), "--dry-run", *options]) == 0
    steps: list[str] = json.loads(capsys.readouterr().out.splitlines()[-1])["would_run"]
    return steps


def what_was_tuned(folder: Path) -> dict[str, Any]:
    """All that the file says, but for when."""
    said: dict[str, Any] = json.loads((folder / "policy.tuned.json").read_text())
    del said["provenance"]["finished_at"]
    return said


def test_a_killed_chain_goes_on_and_then_has_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert would_run(folder, capsys) == ["train", "tune"]
    awaited = random.choice(["run.state.json", "probes/nano-small", "probes/nano-large"])
    command = [sys.executable, "-m", "server", "run", str(folder / "run.yaml")]
    killed = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until(lambda: (folder / awaited).exists() or killed.poll() is not None, 300, awaited)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    summary = run(folder, capsys)
    assert summary["ran"][-1] == "tune"
    tuned = what_was_tuned(folder)
    weights = {arm: load_artifact(folder / "probes" / arm).predictions_sha256 for arm in ("nano-small", "nano-large")}

    assert would_run(folder, capsys) == []
    assert run(folder, capsys)["skipped"] == ["train", "tune"]
    # Undisturbed, it makes the same.
    for made in ("run.state.json", "policy.tuned.json"):
        (folder / made).unlink()
    shutil.rmtree(folder / "probes")
    assert run(folder, capsys)["ran"] == ["train", "tune"]
    assert what_was_tuned(folder) == tuned
    assert weights == {arm: load_artifact(folder / "probes" / arm).predictions_sha256 for arm in weights}

    check_changes(folder, capsys)


def check_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a finished chain does again when something changes."""
    assert would_run(folder, capsys, "--force", "tune") == ["tune"]
    assert would_run(folder, capsys, "--force", "train") == ["train", "tune"]
    assert would_run(folder, capsys, "--force", "train", "--only", "train") == ["train"]
    write(folder, {**CHAIN, "tune": {**CHAIN["tune"], "seed": 1}})
    assert would_run(folder, capsys) == ["tune"]
    write(folder, CHAIN)
    tuned = folder / "policy.tuned.json"
    before = tuned.read_bytes()
    tuned.write_bytes(before + b" ")
    assert would_run(folder, capsys) == ["tune"]
    tuned.write_bytes(before)
    assert would_run(folder, capsys) == []
    rollouts = folder / "rollouts.parquet"
    pd.read_parquet(rollouts).iloc[::-1].to_parquet(rollouts)
    assert would_run(folder, capsys) == ["train", "tune"]


def test_a_chain_from_other_peoples_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Converted anew, pool and all, when the data changes, although `pika data convert` replaces no file."""
    correct = [
        {"id": i, "question": f"What is {i} + {i}?", "small": i % 3 == 0, "large": i % 7 != 0} for i in range(300)
    ]
    convert = {"inputs": ["results.csv"], "out": "rollouts.parquet", "pool": "pool.yaml", "models": ["small", "large"]}
    convert |= {"price": ["small=0.1/0.1", "large=1/1"]}
    pd.DataFrame(correct).to_csv(tmp_path / "results.csv", index=False)
    write(tmp_path, {"pool": "pool.yaml", "data convert": convert})
    assert run(tmp_path, capsys)["ran"] == ["data convert"]
    assert would_run(tmp_path, capsys) == []
    pd.DataFrame(correct[:250]).to_csv(tmp_path / "results.csv", index=False)
    assert run(tmp_path, capsys)["ran"] == ["data convert"]
    assert pd.read_parquet(tmp_path / "rollouts.parquet")["problem_id"].nunique() == 250


def test_a_step_that_fails_is_named_with_its_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flawed = pd.read_parquet(folder / "rollouts.parquet").assign(success_rate=1.0)
    flawed.to_parquet(folder / "rollouts.parquet")
    assert main([str(folder / "run.yaml")]) == 2
    err = capfd.readouterr().err
    assert "give the arm a success_probability" in err
    assert f"pika run: train failed with exit code 2; by hand, in {folder}:" in err
    assert err.splitlines()[-1] == "  pika train pool.yaml --data=rollouts.parquet --kind=tfidf --out=probes"
    assert not (folder / "policy.tuned.json").exists()


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ({"pool": "pool.yaml", "trian": {}}, "unknown key 'trian': did you mean 'train'?"),
        ({"train": {"out": "probes"}}, "must say pool"),
        ({"pool": "pool.yaml"}, "names no step: choose of data convert, rollouts, train"),
        ({"pool": "pool.yaml", "train": {"dat": "x"}}, "train: unknown key 'dat': did you mean 'data'?"),
        ({"pool": "pool.yaml", "train": ["data"]}, "train must be a mapping of its options"),
        ({"pool": "pool.yaml", "train": {"options": "train.yaml"}}, "train: write the options here"),
        ({"pool": "none.yaml", "tune": {"data": "rollouts.parquet"}}, "cannot read"),
    ],
)
def test_flaws_of_the_file_are_named(
    chain: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(folder, chain))]) == 2
    assert message in capsys.readouterr().err


def test_a_value_that_no_option_takes_stops_it_before_any_step(folder: Path) -> None:
    file = write(folder, {**CHAIN, "tune": {"data": "rollouts.parquet", "split": "test"}})
    with pytest.raises(SystemExit) as refused:
        main([str(file)])
    assert refused.value.code == 2
    assert not (folder / "probes").exists()


def test_the_quick_chain_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.yaml", "pool.yaml"):
        shutil.copy(QUICK / name, tmp_path / name)
    assert would_run(tmp_path, capsys) == ["rollouts", "train", "tune", "evaluate", "report"]
