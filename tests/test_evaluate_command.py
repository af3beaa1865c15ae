"""`pika evaluate` as people type it: its files' figures are recomputed from the parquet by other code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from offline.data_convert import convert
from offline.report.command import main as report
from tests.support.colours import ARMS, QUICK, rollouts, run
from tests.support.probes import NANO_POOL
from tests.test_tune import write_pool


def cheapest_mixture(points: list[dict[str, Any]], accuracy: float) -> float | None:
    """The least cost at which a mixture of two points is as accurate, by trying all pairs."""
    costs = [point["cost_usd"] for point in points if point["accuracy"] >= accuracy - 1e-12]
    for low in points:
        for high in points:
            if low["accuracy"] < accuracy < high["accuracy"]:
                share = (accuracy - low["accuracy"]) / (high["accuracy"] - low["accuracy"])
                costs.append(low["cost_usd"] + share * (high["cost_usd"] - low["cost_usd"]))
    return min(costs, default=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rollouts().to_parquet(tmp_path / "rollouts.parquet")
    return tmp_path / "rollouts.parquet"


def test_figures_are_those_of_the_rows(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write_pool(tmp_path)
    code, out, err = run(capsys, pool, "--data", file, "--out", tmp_path / "out", "--draws", "100")
    assert code == 0, err
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    rows = pd.read_parquet(tmp_path / "out/results.parquet")
    assert found["data"] == {
        "file": "rollouts.parquet",
        "benchmark": "colours",
        "problems": {"validation": 120, "test": 60},
        "k": {"small": 4, "medium": 4, "large": 4},
        "tokens": "recorded",
        "duplicates_removed": 0,
    }
    assert len(rows) == 60
    best = found["best_single"]
    always = (rows[f"success_rate:{best}"].mean(), rows[f"cost:{best}"].mean())
    names = [method["name"] for method in found["methods"]]
    for name in ("utility", "cascade:steps", "always:small", "random", "shuffled", "tfidf", "length", "limit"):
        assert name in names
    assert "self_consistency" in names
    for method in found["methods"]:
        name = method["name"]
        accuracy, usd = rows[f"correct:{name}"].mean(), rows[f"usd:{name}"].mean()
        assert method["accuracy"]["value"] == pytest.approx(accuracy)
        assert method["cost_usd"]["value"] == pytest.approx(usd)
        assert method["accuracy_diff"]["value"] == pytest.approx(accuracy - always[0])
        assert method["saving"]["value"] == pytest.approx(1 - usd / always[1])
        for figure in ("accuracy", "cost_usd", "saving"):
            assert method[figure]["low"] <= method[figure]["value"] <= method[figure]["high"]
        assert sum(method["mix"].values()) == pytest.approx(1)
        if f"arm:{name}" in rows:
            picked = [row[f"success_rate:{row[f'arm:{name}']}"] for _, row in rows.iterrows()]
            cost = [row[f"cost:{row[f'arm:{name}']}"] for _, row in rows.iterrows()]
            assert accuracy == pytest.approx(np.mean(picked))
            assert usd == pytest.approx(np.mean(cost) + (found["prefill_usd"] if method["group"] == "policy" else 0))
            shares = rows[f"arm:{name}"].value_counts(normalize=True)
            for arm, share in method["mix"].items():
                assert share == pytest.approx(shares.get(arm, 0.0))
        assert any(point["accuracy"] == pytest.approx(accuracy) for point in method["frontier"])
        parity = cheapest_mixture(method["frontier"], always[0])
        if parity is None:
            assert method["parity_saving"] is None
        else:
            assert method["parity_saving"]["value"] == pytest.approx(1 - parity / always[1])
    # Measured cost: tokens x prices per million, by hand.
    assert rows["cost:large"].iloc[0] == pytest.approx((20 * 0.5 + 40 * 2.0) / 1e6)
    # This pool's probabilities are constants: they know nothing of single problems, and the verdict says so.
    assert not found["verdict"]["beats_controls"]
    last = json.loads(out.splitlines()[-1])
    assert last["verdict"] == found["verdict"]
    assert found["verdict"]["sentence"].split()[0] == "Routing"
    assert found["verdict"]["sentence"][:40] in err.replace("\n", " ")
    assert len(found["provenance"]["inputs"]["rollouts.parquet"]) == 64
    metadata = pyarrow.parquet.read_schema(tmp_path / "out/results.parquet").metadata
    assert json.loads(metadata[b"pika"]) == found["provenance"]


def test_the_same_seed_gives_the_same_figures(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, found = write_pool(tmp_path), []
    for name in ("a", "b"):
        assert run(capsys, pool, "--data", file, "--out", tmp_path / name, *QUICK)[0] == 0
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    for one in found:
        del one["provenance"], one["results_sha256"]  # the parquet holds its provenance
    assert found[0] == found[1]


def test_two_arms_have_apgr_and_cpt(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_pool(tmp_path).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("  medium:")]
    (tmp_path / "two.yaml").write_text("\n".join(lines))
    code, _, err = run(capsys, tmp_path / "two.yaml", "--data", file, "--out", tmp_path / "out", "--draws", "50")
    assert code == 0, err
    methods = {one["name"]: one for one in json.loads((tmp_path / "out/evaluation.json").read_text())["methods"]}
    # TF-IDF sees the colour: red ones go to small, and half of the gap needs far less than half of the calls.
    assert methods["tfidf"]["apgr"]["low"] > 0.5
    assert methods["tfidf"]["cpt50"] < 0.4
    assert methods["tfidf"]["cpt50"] <= methods["tfidf"]["cpt80"]
    assert methods["limit"]["apgr"] is None


def test_human_difficulty_is_correlated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = rollouts()
    frame["metadata"] = [json.dumps({"human_difficulty": "red" not in text, "level": 1}) for text in frame["problem"]]
    frame["metadata"] = [text.replace("true", "2.5").replace("false", "1.0") for text in frame["metadata"]]
    frame.loc[frame["problem_id"] == "test-3", "metadata"] = '{"human_difficulty": 2.5, "tests_left_out": 4}'
    frame.to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path / "out", *QUICK)
    assert run(capsys, write_pool(tmp_path), *words)[0] == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert any(
        note.startswith("1 problems are judged without their longest tests, 4 in all") for note in found["notes"]
    )
    found = found["human_difficulty"]
    assert found["column"] == "metadata.human_difficulty"
    assert found["spearman"]["small"]["low"] > 0.7
    assert found["spearman"]["large"]["value"] < 0.4


def nano(problems: int) -> pd.DataFrame:
    """The first problems of each split of the nano pool's rollouts."""
    frame = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    first = frame.groupby("split")["problem_id"].unique().map(lambda ids: ids[:problems]).explode()
    return frame[frame["problem_id"].isin(first)]


def test_nano_pool_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The committed probes save half and more on problems that they have not seen, and their figures say how good they
    are."""
    nano(800).to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path, "--draws", "200", "--methods", "utility")
    code, out, _ = run(capsys, NANO_POOL / "pool.yaml", *words)
    assert code == 0
    last = json.loads(out.splitlines()[-1])
    assert last["saving"]["low"] > 0.5
    assert last["accuracy_diff"]["high"] > 0
    assert last["verdict"]["beats_controls"]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["prefill_usd"] > 0
    for arm in found["arms"]:
        probe = arm["probe"]
        assert probe["auroc"]["low"] > 0.85
        assert probe["roc"][0] == [0, 0]
        assert probe["roc"][-1] == [1, 1]
        # The area under the points is the AUROC.
        x, y = np.array(probe["roc"]).T
        assert np.trapezoid(y, x) == pytest.approx(probe["auroc"]["value"], abs=0.005)
        assert sum(bin_["problems"] for bin_ in probe["reliability"]) == pytest.approx(800, abs=15)
    (mix,) = found["mix_by_difficulty"]
    small = [bin_["mix"]["nano-small"] for bin_ in mix["bins"]]
    assert small[0] > 0.4
    assert small[-1] < 0.1


def test_answers_that_nobody_extracted_do_not_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = rollouts(20)
    frame["extracted_answers"] = [[None] * 4] * len(frame)
    frame.to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path / "out", *QUICK)
    assert run(capsys, write_pool(tmp_path), *words)[0] == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert "self_consistency" not in [method["name"] for method in found["methods"]]
    assert any("Self-consistency is left out" in note for note in found["notes"])


def test_a_repeated_text_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = rollouts(20)
    text = frame.loc[frame["problem_id"] == "test-0", "problem"].iloc[0]
    frame.loc[frame["problem_id"] == "test-2", "problem"] = text
    frame.to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path / "out", *QUICK)
    assert run(capsys, write_pool(tmp_path), *words)[0] == 0
    data = json.loads((tmp_path / "out/evaluation.json").read_text())["data"]
    assert (data["duplicates_removed"], data["problems"]["test"]) == (1, 19)


@pytest.mark.parametrize("right", [True, False])
def test_labels_that_are_all_alike_have_no_auroc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], right: bool
) -> None:
    """On the nano pool, whose probes would be measured: all answers of one arm are right, or all wrong."""
    frame = nano(100)
    same = (frame["arm"] == "nano-large").to_numpy()
    frame["correct"] = [
        [right] * 8 if alike else one.tolist() for one, alike in zip(frame["correct"], same, strict=True)
    ]
    frame.loc[same, "success_rate"] = float(right)
    frame.to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path / "out", *QUICK)
    code, _, err = run(capsys, NANO_POOL / "pool.yaml", *words)
    assert code == 0, err
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    large = next(arm for arm in found["arms"] if arm["name"] == "nano-large")
    assert (large["probe"]["auroc"], large["probe"]["spearman"], large["probe"]["roc"]) == (None, None, [])
    assert any(f"All answers of nano-large are {'right' if right else 'wrong'}" in note for note in found["notes"])


def test_one_arm_alone_is_itself(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_pool(tmp_path).read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("  medium:", "  small: {model: small"))]
    (tmp_path / "one.yaml").write_text("\n".join(lines))
    code, out, err = run(capsys, tmp_path / "one.yaml", "--data", file, "--out", tmp_path / "out", "--draws", "20")
    assert code == 0, err
    assert not json.loads(out.splitlines()[-1])["verdict"]["beats_controls"]


def test_what_a_file_says_of_itself_is_said_of_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = rollouts(20, k=1)
    answers = frame.assign(is_correct=[row[0] for row in frame["correct"]], response="word " * 8)
    answers = answers[["problem_id", "problem", "split", "arm", "response", "is_correct"]]
    pd.concat([answers, answers.assign(problem_id="again " + answers["problem_id"])]).to_csv(tmp_path / "set.csv")
    prices = [word for arm in ARMS for word in ("--price", f"{arm}=1/2")]
    converted = tmp_path / "converted.parquet"
    assert convert([str(tmp_path / "set.csv"), "--keep-splits", "--out", str(converted), *prices]) == 0
    for folder, files in (
        ("alone", ("--data", converted)),
        ("second", ("--data", tmp_path / "fresh.parquet", "--validation-data", converted)),
    ):
        fresh = rollouts(20, k=1, seed=9).query("split == 'test'")
        fresh.assign(problem="fresh " + fresh["problem"]).to_parquet(tmp_path / "fresh.parquet")
        code, _, err = run(capsys, write_pool(tmp_path), *files, "--out", tmp_path / folder, *QUICK)
        assert code == 0, err
        found = json.loads((tmp_path / folder / "evaluation.json").read_text())
        assert found["data"]["tokens"] == "estimated: characters / 4"
        assert found["data"]["duplicates_removed"] == 100
        notes = " ".join(found["notes"])
        assert "Costs are tokens (estimated: characters / 4) times the configured prices" in notes
        assert "Costs are recorded tokens" not in notes
        assert "Output tokens are estimated: the response's characters / 4." in notes
        assert "Output tokens are estimated" in err
        assert report([str(tmp_path / folder)]) == 0
        for name in ("report.html", "report.md", "table.tex"):
            assert "okens estimated: characters / 4" in (tmp_path / folder / "report" / name).read_text(), name
