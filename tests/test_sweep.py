"""`pika sweep` on the nano pool's rollouts: cells in processes of their own, killed and resumed."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from offline.sweep import main
from probes.artifact import load_artifact
from tests.support.probes import NANO_POOL
from tests.support.processes import until

pytestmark = pytest.mark.timeout(600)  # many processes, each of which loads its libraries

ROOT = Path(__file__).parents[1]
PROBLEMS = {"train": 200, "validation": 100, "test": 100}
SWEEP: dict[str, Any] = {
    "pool": str(NANO_POOL / "pool.yaml"),
    "out": "sweep",
    "data": ["one.parquet", "two.parquet"],
    "probe-model": str(NANO_POOL / "nano-small"),
    "kind": ["linear_eoi", "tfidf"],
    "layers": 1,
    "positions": -1,
    "arms": ["nano-small", "nano-medium"],
    "test-on": ["one.parquet", "two.parquet"],
    "cache": "cache",
}


def write(folder: Path, **changes: Any) -> Path:
    """A sweep file beside two data sets."""
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    for i, name in enumerate(("one", "two")):
        parts = [
            whole[(whole["arm"] == arm) & (whole["split"] == split)].iloc[i * n : (i + 1) * n]
            for arm in SWEEP["arms"]
            for split, n in PROBLEMS.items()
        ]
        pd.concat(parts).to_parquet(folder / f"{name}.parquet")
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return file


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep, killed on its way; its folder, and what the last run printed."""
    file = write(tmp_path_factory.mktemp("sweep"))
    command = [sys.executable, "-m", "server", "sweep", str(file), "--workers", "2"]
    cells = file.parent / "sweep/cells"
    begun, least = random.choice([("*/log.txt", 1), ("*/result.json", 1), ("*/result.json", 2)])
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(list(cells.glob(begun))) >= least, 300, "cells")
    killed.kill()
    killed.wait()
    until(lambda: not alive(cells), 60, "the cells' processes end with their sweep")
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*/result.json")}
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    return file, finished.stdout


def alive(cells: Path) -> list[int]:
    """Processes that hold a file there open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = entry.readlink()
        except OSError:
            continue
        if cells in target.parents:
            found.append(int(entry.parts[2]))
    return found


def test_a_killed_sweep_ends_as_if_undisturbed(
    swept: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = swept
    assert main([str(write(tmp_path)), "--workers", "2"]) == 0
    found, undisturbed = (json.loads((path.parent / "sweep/sweep.json").read_text()) for path in (file, tmp_path / "x"))
    assert len(found["cells"]) == 4
    assert found["failed"] == {}
    for key in ("cells", "rows"):
        assert found[key] == undisturbed[key]
    # Now everything is done, whatever was taken away of the results.
    assert main([str(file), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["to_do"] == []


def test_winners_are_chosen_on_validation_problems(swept: tuple[Path, str]) -> None:
    file, out = swept
    table = pd.read_csv(file.parent / "sweep/sweep.csv")
    own = table[table["tested_on"].isna()]
    assert len(own) == 8
    winners = json.loads(out.splitlines()[-1])["winners"]
    assert {(row["data_name"], row["arm"]) for row in winners} == {
        (data, arm) for data in ("one", "two") for arm in SWEEP["arms"]
    }
    for row in winners:
        there = own[(own["data_name"] == row["data_name"]) & (own["arm"] == row["arm"])]
        best = there.loc[there["validation_auroc"].idxmax()]
        assert row["cell"] == best["cell"]
        assert row["validation_auroc"] == pytest.approx(best["validation_auroc"])
        artifact = load_artifact(row["folder"])  # checked against its probe model, from where it now stands
        assert artifact.card.kind == best["kind"]
        assert artifact.card.metrics[-1].auroc.value == pytest.approx(best["test_auroc"])


def test_each_is_tested_on_the_others(swept: tuple[Path, str]) -> None:
    file, out = swept
    assert "Winners on others' test problems" in out
    table = pd.read_csv(file.parent / "sweep/sweep.csv").dropna(subset="tested_on")
    assert set(zip(table["data_name"], table["tested_on"], strict=True)) == {("one", "two"), ("two", "one")}
    assert table["test_auroc"].between(0, 1).all()


def test_other_data_is_another_cell(swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = swept
    options = yaml.safe_load(file.read_text())
    changed = file.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({**options, "kind": ["tfidf", "length"], "test-on": []}))
    assert main([str(changed), "--dry-run"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(summary["to_do"]) == summary["cells"] == 4


def test_a_cell_that_fails_is_named_and_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, kind="tfidf", **{"test-on": []})
    flawed = pd.read_parquet(tmp_path / "two.parquet")
    flawed.assign(success_rate=1.0).to_parquet(tmp_path / "two.parquet")
    assert main([str(file)]) == 1
    captured = capsys.readouterr()
    assert "is 1 on every train problem" in captured.err
    summary = json.loads(captured.out.splitlines()[-1])
    assert len(summary["failed"]) == 1
    assert {row["data_name"] for row in summary["winners"]} == {"one"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knd": "mlp"}, "unknown key 'knd': did you mean 'kind'?"),
        ({"data": None}, "must say data: it is missing"),
        ({"kind": "mpl"}, "unknown probe 'mpl': choose one of linear_eoi"),
        ({"next-token": ["yes", "no"], "kind": "mlp"}, "next-token takes true or false, not 'yes'"),
    ],
)
def test_flaws_of_the_file_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, **changes}))
    assert main([str(file)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
