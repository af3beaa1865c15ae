"""Commands that read a probe, given one on the Hub: they do what they do with the same folder at hand."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from probes.artifact import load_artifact
from probes.reference import load_probe
from server.__main__ import main
from tests.support.hub import Hub, reset
from tests.support.legacy import legacy_folder
from tests.support.probes import NANO_POOL

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"


def example(which: str, tmp_path: Path) -> tuple[Path, Path, Path]:
    """(probe, probe model, data)"""
    if which == "golden":
        [probe] = GOLDEN.glob("*majority_vote_is_correct*")
        return probe, GOLDEN / "model", GOLDEN / "dataset.parquet"
    arm = "nano-medium" if which == "ours" else "nano-small"
    rollouts = pd.read_parquet(NANO_POOL / "rollouts.parquet").query(f"arm == '{arm}' and split != 'train'")
    if which != "ours":  # of random weights, which happen to rank upside down
        rollouts["success_rate"] = 1 - rollouts["success_rate"]
    rollouts.groupby("split", sort=False).head(150).to_parquet(tmp_path / "rollouts.parquet")
    probe = NANO_POOL / "probes" / arm if which == "ours" else legacy_folder(tmp_path / "old")
    return probe, NANO_POOL / arm, tmp_path / "rollouts.parquet"


@pytest.mark.parametrize(
    "which",
    [
        "ours",
        "the research project's",
        pytest.param("golden", marks=pytest.mark.skipif(not GOLDEN.is_dir(), reason="no shared data")),
    ],
)
def test_label_calibrate_and_convert(
    which: str, loopback: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, model, data = example(which, tmp_path)
    files = {f"some/{file.name}": file.read_bytes() for file in probe.iterdir()}
    commit = loopback.repository("ann/probes").commit(dict(files))
    reference, on_hub = "hf://ann/probes/some", ["--probe-model", str(model)]

    def pika(*arguments: object) -> dict[str, Any]:
        code = main([*map(str, arguments)])
        output = capsys.readouterr()
        assert code == 0, output.err
        summary: dict[str, Any] = json.loads(output.out.splitlines()[-1])
        return summary

    def label(probe: object, name: str) -> tuple[str, str]:
        out = tmp_path / name
        summary = pika(
            "label", "--probe", probe, *on_hub, "--data", data, "--split", "test", "--out", out, "--device", "cpu"
        )
        return summary["probe"], out.read_text()

    source, labels = label(reference, "hub.csv")
    assert source == f"{reference}@{commit}"
    assert labels == label(probe, "here.csv")[1]

    calibrate = ["probes", "calibrate", reference, *on_hub, "--data", data, "--device", "cpu"]
    assert main([*map(str, calibrate)]) == 2, "the Hub's cache is not written to"
    assert "say --out FOLDER" in capsys.readouterr().err
    pika(*calibrate, "--out", tmp_path / "calibrated")
    pika("probes", "calibrate", probe, *on_hub, "--data", data, "--out", tmp_path / "here", "--device", "cpu")
    made, expected = (load_artifact(tmp_path / name, verify=False).card for name in ("calibrated", "here"))
    assert (made.calibration.of, made.calibration) == ("success", expected.calibration)

    convert = ["probes", "convert", reference, "--out", tmp_path / "converted"]
    if which == "ours":
        # The card named its model by a path from where it was; the copy names it from where it is.
        assert load_artifact(tmp_path / "calibrated").mismatches == ()
        assert main([*map(str, convert)]) == 2
        assert "is a probe artifact already" in capsys.readouterr().err
    else:
        assert pika(*convert, *on_hub)["from"] == source
        assert label(tmp_path / "converted", "converted.csv")[1] == labels
        pika("probes", "verify", tmp_path / "converted")

    loopback.fails("", reset)
    assert label(reference, "away.csv") == (source, labels)
    assert (
        main(["label", "--probe", "hf://ann/probes/other", "--data", str(data), "--out", str(tmp_path / "o.csv")]) == 1
    )
    assert "its cache lacks the probe" in capsys.readouterr().err
    assert load_probe(reference, verify=False).from_cache
