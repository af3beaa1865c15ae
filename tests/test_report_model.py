import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from offline.report.command import main
from tests.support.evaluated import build, write


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return build()


def run(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    code = main([str(folder)])
    return code, capsys.readouterr().err


NO_NUMBER = {"low": float("nan"), "high": 1.0, "problems": 1, "mix": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schema_version": 2},
            "has schema version 2, and this pika reads 1: run the `pika report` of the version that",
        ),
        ({"best_single": "huge"}, "arm 'huge' is named and not described; run `pika evaluate` again"),
        ({"methods": []}, "methods: Tuple should have at least 1 item"),
        ({"notes": 7}, "notes: Input should be a valid array"),
        ({"mix_by_difficulty": [{"method": "utility", "bins": [NO_NUMBER]}]}, "bins.0.low: Input should be a finite"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_one_clear_line(
    tmp_path: Path, built: dict[str, Any], capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path, built)
    (folder / "evaluation.json").write_text(json.dumps(built["evaluation"] | change))
    code, err = run(capsys, folder)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", None, "evaluation.json (No such file or directory): `pika evaluate --out"),
        ("evaluation.json", b'{"schema_version": 1,', "evaluation.json: the file: Invalid JSON"),
        ("results.parquet", None, "results.parquet (No such file or directory): `pika evaluate --out"),
        ("results.parquet", b"PAR1", "results.parquet as parquet"),
    ],
)
def test_files_that_are_missing_or_damaged(
    tmp_path: Path,
    built: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    file = write(tmp_path, built) / name
    file.unlink() if content is None else file.write_bytes(content)
    code, err = run(capsys, tmp_path)
    assert (code, message in err, len(err.splitlines())) == (2, True, 1), err


def test_files_of_two_evaluations(tmp_path: Path, built: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_parquet(write(tmp_path, built) / "results.parquet")
    frame.head(7).to_parquet(tmp_path / "results.parquet")
    assert "lacks 400 rows: it has 7; run `pika evaluate` again" in run(capsys, tmp_path)[1]
    frame.drop(columns="success:large").to_parquet(tmp_path / "results.parquet")
    code, err = run(capsys, tmp_path)
    assert code == 2
    assert "is not of the same evaluation as evaluation.json, it lacks the arms large" in err
    frame[::-1].to_parquet(tmp_path / "results.parquet")
    code, err = run(capsys, tmp_path)
    assert (code, "is not of the same evaluation as evaluation.json, which knows another" in err) == (2, True), err
