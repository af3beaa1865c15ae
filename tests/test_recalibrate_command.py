"""`pika probes calibrate --ledger`: from a ledger's outcomes to a new revision of a probe, or to none."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.calibrate import main
from offline.recalibrate import EARLIER_SPLIT, logits
from probes import calibration
from probes.artifact import load_artifact
from probes.base import FloatArray
from probes.logistic import sigmoid
from server.ledger.database import Database, open_database, parse_url
from server.ledger.outcome import Outcome
from server.ledger.outcomes import record
from server.ledger.writer import Writer
from tests.support.ledger import POOL, decision
from tests.support.probes import NANO_POOL

ARM = "medium"
Truth = Callable[[FloatArray], FloatArray]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    folder = tmp_path / "probes" / ARM
    shutil.copytree(NANO_POOL / "probes" / "nano-medium", folder)
    return folder


def write(url: str, folder: Path, truth: Truth, n: int, share: float = 0.0, others: Truth | None = None) -> FloatArray:
    """n prompts of which routing sends some to the arm, and what comes of them; returns their raw outputs.

    Args:
        truth: by the probability as given, how likely the answer is right.
        share: of prompts that are audited.
        others: the same for prompts that routing sends elsewhere; None: it sends all to the arm.
    """
    artifact, rng = load_artifact(folder, verify=False), np.random.default_rng(5)
    raw = rng.normal(0, 2, n)
    p = calibration.apply(artifact.card.calibration, raw)
    sent = np.ones(n, dtype=np.bool_) if others is None else rng.random(n) < 0.7
    audited = rng.random(n) < share
    goes = np.where(audited, rng.random(n) < 0.5, sent)
    propensity = share / 2 + (1 - share) * sent
    right = rng.random(n) < np.where(sent, truth(p), (others or truth)(p))
    name = f"{artifact.card.probe_name}@{artifact.revision}"
    writer = Writer(Database(parse_url(url)), replace(POOL, probes=["other@1", name, None]))
    for i in np.flatnonzero(goes).tolist():
        path = "audit" if audited[i] else "routed"
        success = np.array([0.5, p[i], np.nan])
        writer.put(decision(f"r{i}", success=success, path=path, propensity=float(propensity[i]) or 1.0))
    writer.close(within_s=60)
    with closing(open_database(url)) as database, database.write() as connection:
        said = [Outcome(f"r{i}", "client", float(right[i])) for i in np.flatnonzero(goes).tolist()]
        for at in range(0, len(said), 50):
            assert None not in record(connection, said[at : at + 50], now=1e9 + at)
    return raw


def too_sure(p: FloatArray) -> FloatArray:
    return sigmoid(0.5 * logits(p) - 0.5)


def as_said(p: FloatArray) -> FloatArray:
    return p


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, dict[str, Any], str, str]:
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, out, err


def test_what_outcomes_contradict_is_corrected(
    ledger_url: str, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write(ledger_url, probe, too_sure, 2400)
    before = load_artifact(probe, verify=False)
    code, summary, out, _ = run(capsys, probe, "--ledger", ledger_url)
    assert (code, summary["written"], summary["weighed"], summary["outcomes"]) == (0, True, False, 2400)
    assert summary["checked_on"] == 800
    assert summary["after"]["ece"] < summary["before"]["ece"] / 2
    assert summary["after"]["brier"] < summary["before"]["brier"]
    assert "`audit: {share: 0.05}`" in out
    after = load_artifact(probe, verify=False)
    assert after.revision != before.revision
    said = calibration.apply(before.card.calibration, raw)
    assert np.abs(calibration.apply(after.card.calibration, raw) - too_sure(said)).mean() < 0.03
    for name, tensor in before.probe.tensors().items():
        np.testing.assert_array_equal(after.probe.tensors()[name], tensor)
    assert after.card.metrics[-1].n == 800
    assert all(metrics.split.endswith(EARLIER_SPLIT) for metrics in after.card.metrics[:-1])
    assert after.card.training["calibrated_on"]["outcomes"] == 2400
    # The ledger's outcomes are of the earlier revision, which is no longer here.
    code, _, _, err = run(capsys, probe, "--ledger", ledger_url)
    assert code == 2
    assert f"no decisions by {after.card.probe_name}@{after.revision}" in err
    assert f"{ARM} by {before.card.probe_name}@{before.revision}" in err


def test_what_is_no_better_is_not_written(ledger_url: str, probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ledger_url, probe, as_said, 900)
    before = (probe / "config.json").read_bytes()
    code, summary, out, _ = run(capsys, probe, "--ledger", ledger_url)
    assert (code, summary["written"], summary["folder"]) == (0, False, None)
    assert "nothing is written" in out
    assert (probe / "config.json").read_bytes() == before


def test_audited_outcomes_speak_for_all_prompts(
    ledger_url: str, probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What routing sends to the arm turns out as said; of what it sends elsewhere the arm would get little right."""
    raw = write(ledger_url, probe, as_said, 5000, share=0.5, others=lambda p: p / 4)
    code, summary, out, _ = run(capsys, probe, "--ledger", ledger_url, "--out", tmp_path / "new")
    assert (code, summary["written"], summary["weighed"]) == (0, True, True)
    assert "they stand for all prompts" in out
    said = calibration.apply(load_artifact(probe, verify=False).card.calibration, raw)
    new = calibration.apply(load_artifact(tmp_path / "new", verify=False).card.calibration, raw)
    assert np.abs(new - (0.7 * said + 0.3 * said / 4)).mean() < 0.05 < np.abs(new - said).mean()


def test_too_few_audited_outcomes_speak_for_some_and_it_says_how_many_more_are_needed(
    tmp_path: Path, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    write(url, probe, too_sure, 900, share=0.02, others=too_sure)
    code, summary, out, _ = run(capsys, probe, "--ledger", url)
    assert (code, summary["weighed"]) == (0, False)
    worth = re.search(r"audited times are worth (\d+) of all prompts; 150 are needed", out)
    assert worth is not None
    assert 0 < int(worth[1]) < 150


def test_a_configuration_names_the_ledger(tmp_path: Path, probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(f"sqlite:///{tmp_path}/pika-ledger.sqlite", probe, too_sure, 900)
    config = tmp_path / "pool.yaml"
    config.write_text((NANO_POOL / "pool.yaml").read_text() + "\nledger: {}\n")
    assert run(capsys, probe, "--ledger", config)[:1] == (0,)


@pytest.mark.parametrize(
    ("n", "words", "message"),
    [
        (40, (), "at least 150 are needed, about 110 more"),
        (0, (), "has no decisions by"),
        (40, ("--arm", "small"), "for the arm small; it has"),
    ],
)
def test_too_little_to_go_by_is_one_clear_line(
    n: int, words: tuple[str, ...], message: str, tmp_path: Path, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    write(url, probe, too_sure, n)
    code, _, _, err = run(capsys, probe, "--ledger", url, *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("pika probes calibrate: ")
    assert message in err


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("sqlite:////nowhere/ledger.sqlite", 1, "there is no ledger at /nowhere/ledger.sqlite"),
        ("mysql://host/db", 1, "must be sqlite:///FILE or postgresql://"),
        ("absent.yaml", 2, "cannot read absent.yaml"),
        (str(NANO_POOL / "pool.yaml"), 2, "configures no ledger: `ledger: {}`"),
        ("postgresql://postgres@127.0.0.1:1/nothing", 1, "is PostgreSQL up"),
    ],
)
def test_a_ledger_that_is_not_there_is_one_clear_line(
    source: str, code: int, message: str, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, _, err = run(capsys, probe, "--ledger", source)
    assert (got, len(err.splitlines())) == (code, 1)
    assert message in err


def test_options_of_data_are_refused(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(probe), "--ledger", "pool.yaml", "--method", "platt"])
    assert "--method is of --data" in capsys.readouterr().err
