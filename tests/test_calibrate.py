"""`pika probes calibrate` on the nano pool's probes and rollouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from offline.calibrate import main
from probes.artifact import load_artifact
from probes.card import ProbeCard
from server.pool import Arm, Model
from server.sections.pool import Prices
from tests.support.probes import NANO_POOL

MEDIUM = "nano-medium"


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred problems of each split."""
    frame = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    some = frame.groupby(["arm", "split"], sort=False).head(300)
    file = tmp_path_factory.mktemp("data") / "rollouts.parquet"
    some[some["split"] != "train"].to_parquet(file)
    return file


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A copy of the nano pool's probe of medium, in a folder where its probe model is not."""
    folder = tmp_path / "probes" / MEDIUM
    shutil.copytree(NANO_POOL / "probes" / MEDIUM, folder)
    card = json.loads((folder / "config.json").read_text())
    card["pass"]["probe_model"] = str(NANO_POOL / "nano-medium")
    (folder / "config.json").write_text(json.dumps(card))
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, dict[str, Any], str]:
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if captured.out else {}, captured.err


def arm(folder: Path) -> Arm:
    model = Model("m", 512, frozenset(), Prices(input=1, output=1), ())
    return Arm("a", model, {}, {}, load_artifact(folder), None, 1, 1)


def test_a_majority_vote_probe_becomes_one_of_single_answers(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rollouts = NANO_POOL / "rollouts.parquet"
    original = load_artifact(probe)
    assert not arm(probe).uncalibrated
    code, first, _ = run(capsys, probe, "--data", rollouts, "--label", "majority_vote_is_correct")
    assert (code, first["of"]) == (0, "majority_vote")
    assert arm(probe).uncalibrated
    vote = load_artifact(probe)

    code, second, _ = run(capsys, probe, "--data", rollouts)
    assert (code, second["of"], second["problems"], second["split"]) == (0, "success", 1500, "test")
    assert not arm(probe).uncalibrated
    assert second["after"]["ece"] < min(0.03, second["before"]["ece"])
    assert second["after"]["brier"] < second["before"]["brier"]

    new = load_artifact(probe)
    assert len({artifact.revision for artifact in (original, vote, new)}) == 3
    for name, tensor in original.probe.tensors().items():
        np.testing.assert_array_equal(new.probe.tensors()[name], tensor)
    assert new.card.metrics[0].ece.value == second["after"]["ece"]
    assert len(new.card.metrics[0].reliability) == 15
    assert new.card.training["calibrated_on"]["problems"] == 4000
    assert new.card.training["rollouts_sha256"] == original.card.training["rollouts_sha256"]
    assert list(new.card.baselines) == ["length"]  # TF-IDF's went when it was of another label
    changed = {"calibration", "metrics", "baselines", "training", "exported_at"}
    assert new.card.model_dump(exclude=changed) == original.card.model_dump(exclude=changed)


def test_a_copy_finds_its_probe_model_from_where_it_is(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = NANO_POOL / "probes" / MEDIUM
    before = (committed / "config.json").read_bytes()
    out = tmp_path / "deep" / "er" / MEDIUM
    code, summary, _ = run(capsys, committed, "--data", rollouts, "--method", "isotonic", "--out", out)
    assert (code, summary["folder"], summary["method"]) == (0, str(out), "isotonic")
    assert (committed / "config.json").read_bytes() == before
    made = load_artifact(out)
    assert made.pass_ == load_artifact(committed).pass_
    assert made.card.calibration.knots
    assert list(made.card.baselines) == ["length"]  # TF-IDF was measured on other problems


def test_baselines_on_the_same_problems_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = load_artifact(NANO_POOL / "probes" / MEDIUM).card
    folder, rollouts = NANO_POOL / "probes" / MEDIUM, NANO_POOL / "rollouts.parquet"
    assert run(capsys, folder, "--data", rollouts, "--out", tmp_path / "new")[0] == 0
    made = load_artifact(tmp_path / "new").card
    assert made.baselines == committed.baselines


def test_without_test_problems_metrics_are_cross_fitted(
    probe: Path, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the research project's form: question, val, and no column for the arm."""
    frame = pd.read_parquet(rollouts).query("arm == 'nano-medium' and split == 'validation'").head(200)
    table = frame.rename(columns={"problem": "question"})[["question", "success_rate"]].assign(split="val")
    table.to_parquet(tmp_path / "table.parquet")
    words = (probe, "--data", tmp_path / "table.parquet", "--split", "val", "--method", "isotonic")
    code, summary, _ = run(capsys, *words)
    assert (code, summary["split"], summary["problems"]) == (0, "validation, cross-fitted", 200)
    # In-sample, isotonic regression has no gaps at all; and it cannot rank worse than what it was fitted on.
    assert 0 < summary["after"]["auroc"] < summary["before"]["auroc"]


def test_equal_seeds_give_equal_revisions(probe: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = []
    for _ in range(2):
        assert run(capsys, probe, "--data", rollouts, "--seed", "5")[0] == 0
        cards.append(ProbeCard.model_validate_json((probe / "config.json").read_text()).model_dump())
        del cards[-1]["exported_at"]
    assert cards[0] == cards[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arm", "nano-huge"], "has no rows of arm 'nano-huge': name one of nano-large, nano-medium, nano-small"),
        (["--split", "holdout"], "no rows of split 'holdout'; its splits: validation, test"),
        (["--split", "test"], "the test split is for the final figures"),
        (["--data", "absent.parquet"], "there is no file absent.parquet"),
        (["--probe-model", "./absent"], "no folder at absent"),
    ],
)
def test_bad_input_is_one_clear_line(
    probe: Path, rollouts: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = (probe / "config.json").read_bytes()
    code, _, err = run(capsys, probe, "--data", rollouts, *words)
    assert code == 2
    assert err.startswith("pika probes calibrate: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert (probe / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="success_rate"), "lacks the columns success_rate"),
        (lambda frame: frame.assign(success_rate=1.5), "success_rate must lie in [0, 1]"),
        (lambda frame: pd.concat([frame, frame]), "has problems twice in one split"),
        (lambda frame: frame.assign(success_rate=frame["success_rate"].astype(str)), "must be a number in every row"),
        (lambda frame: frame.assign(success_rate=0.5), "is 0.5 on every validation problem of"),
        (
            lambda frame: frame.assign(success_rate=frame["success_rate"].where(frame["split"] != "test", 1.0)),
            "is 1 on every test problem of",
        ),
        (
            lambda frame: frame.groupby(["arm", "split"], sort=False).head(29),
            "has 29 validation problems; calibration needs at least 30",
        ),
    ],
)
def test_bad_data_is_one_clear_line(
    probe: Path, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    before = (probe / "config.json").read_bytes()
    change(pd.read_parquet(rollouts)).to_parquet(tmp_path / "bad.parquet")
    code, _, err = run(capsys, probe, "--data", tmp_path / "bad.parquet")
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
    assert (probe / "config.json").read_bytes() == before


@pytest.mark.parametrize("method", ["auto", "temperature", "platt", "isotonic"])
def test_a_probe_that_ranks_upside_down_is_left_alone(
    probe: Path, rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    before = (probe / "config.json").read_bytes()
    frame = pd.read_parquet(rollouts)
    frame.assign(success_rate=1 - frame["success_rate"]).to_parquet(tmp_path / "inverted.parquet")
    code, _, err = run(capsys, probe, "--data", tmp_path / "inverted.parquet", "--method", method)
    assert code == 2
    assert "as the probe's output rises" in err
    assert (probe / "config.json").read_bytes() == before


def test_raw_outputs_taken_as_they_are_make_nothing_known(
    probe: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, probe, "--data", rollouts, "--method", "none")[1]["of"] is None
    assert arm(probe).uncalibrated


def test_a_mismatch_must_be_allowed_by_name(probe: Path, rollouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads((probe / "config.json").read_text())
    (probe / "config.json").write_text(json.dumps(card | {"canary_token_ids": [1, 2, 3]}))
    code, _, err = run(capsys, probe, "--data", rollouts)
    assert (code, "--allow-mismatch tokenizer" in err) == (2, True)
    assert run(capsys, probe, "--data", rollouts, "--allow-mismatch", "tokenizer")[0] == 0
